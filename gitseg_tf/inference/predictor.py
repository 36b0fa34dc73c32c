"""From a scan's voxels to its organ masks, at the scan's own size."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from gitseg_tf.config import Config, load_config
from gitseg_tf.data.geometry import (
    from_model,
    normalize,
    place,
    stack_windows,
    to_model,
    window_indices,
    window_offsets,
)
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, as_path
from gitseg_tf.inference.volumes import make_volume_predictor
from gitseg_tf.models.frozen import freeze
from gitseg_tf.training.trainer import Run, load_model, load_run


def make_predictor(
    probabilities: Callable, config: Config
) -> Callable[[np.ndarray, list[int], np.ndarray, tuple], np.ndarray]:
    """Wrap a network so that it segments whole scans.

    Args:
        probabilities: function from float32 windows [N, height, width, slices] to probabilities [N, height, width, 3];
            with data.patch, see `make_volume_predictor`.
        config: window, size, threshold and batch size.

    Returns:
        Function of (image uint16 [D, H, W], slice numbers [D], percentiles float32 [11] of the scan, spacing
        (z, y, x) in mm) to bool masks [3, D, H, W]. Probabilities are scaled to the scan's size before the threshold.
    """
    data, evaluation = config.data, config.evaluation
    if data.patch is not None:
        return make_volume_predictor(probabilities, config)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None], tf.uint16),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None], tf.float32),
            tf.TensorSpec([3], tf.float32),
        ]
    )
    def prepare(image, numbers, percentiles, spacing):
        placement = place(image, percentiles, spacing, data)
        prepared = to_model(normalize(image, percentiles), placement, data.size)
        return prepared, placement, window_indices(numbers, window_offsets(spacing, data))

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, *data.size], tf.float32),
            {"box": tf.TensorSpec([4], tf.int32), "fitted": tf.TensorSpec([2], tf.int32)},
            tf.TensorSpec([None, data.slices], tf.int32),
            tf.TensorSpec([2], tf.int32),
        ]
    )
    def segment(prepared, placement, windows, shape):
        found = probabilities(stack_windows(prepared, windows))
        return from_model(found, placement, shape) >= evaluation.threshold

    def predict(image, numbers, percentiles, spacing):
        depth, height, width = image.shape
        masks = np.empty((len(ORGANS), depth, height, width), bool)
        prepared, placement, windows = prepare(image, numbers, percentiles, spacing)
        for start in range(0, depth, evaluation.batch_size):
            part = slice(start, start + evaluation.batch_size)
            inside = segment(prepared, placement, windows[part], (height, width))
            masks[:, part] = np.moveaxis(inside.numpy(), -1, 0)
        return masks

    return predict


def load_predictor(path: str | AnyPath):
    """A predictor, as `make_predictor` gives, for a run folder or an exported SavedModel.

    Args:
        path: RUN, RUN/export or RUN/export/1.

    Returns:
        The predictor.

    Raises:
        InputError: neither is there, or it is damaged.
    """
    path = as_path(path)
    exported = next((p for p in (path, path / "1") if (p / "saved_model.pb").is_file()), None)
    if exported is None:
        run = load_run(path)
        return make_predictor(run_probabilities(run), run.config)
    try:
        loaded = tf.saved_model.load(str(exported))
    except (OSError, IndexError, tf.errors.OpError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{exported}: the SavedModel is damaged ({reason}); export it again") from None
    settings = exported / "assets.extra" / "config.yaml"
    if not settings.is_file():
        raise InputError(f"{exported}: was not made by gitseg export ({settings.relative_to(exported)} is missing)")
    config = load_config(settings)
    serve = loaded.signatures["serving_default"]
    spec = serve.structured_input_signature[1]["windows"]
    return make_predictor(freeze(lambda windows: serve(windows=windows)["probabilities"], spec), config)


def run_probabilities(run: Run) -> Callable:
    """The network of a run, best weights, as a function of windows to probabilities."""
    model = load_model(run)
    spec = tf.TensorSpec(model.input_shape, tf.float32)
    return freeze(lambda windows: tf.sigmoid(model(windows, training=False)), spec)
