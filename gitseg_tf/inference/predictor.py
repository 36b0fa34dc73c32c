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
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, as_path
from gitseg_tf.inference.postprocess import clean_mask, organ_settings, postprocess
from gitseg_tf.inference.volumes import batches_of, make_volume_function, organs_first
from gitseg_tf.models.frozen import freeze
from gitseg_tf.training.trainer import Run, load_model, load_run


def make_predictor(
    probabilities: Callable, config: Config
) -> Callable[[np.ndarray, list[int], np.ndarray, tuple], np.ndarray]:
    """Wrap a network so that it segments whole scans.

    Args:
        probabilities: function from float32 windows [N, height, width, slices] to probabilities [N, height, width, 3];
            with data.patch, see `make_volume_function`.
        config: window, size, threshold, batch size and post-processing.

    Returns:
        Function of (image uint16 [D, H, W], slice numbers [D], percentiles float32 [11] of the scan, spacing
        (z, y, x) in mm) to bool masks [3, D, H, W]. Probabilities are scaled to the scan's size before the threshold.
    """
    settings = organ_settings(config)
    if any(organ.smooth_mm for organ in settings):
        find = make_scan_function(probabilities, config, tf.identity)

        def predict_smooth(image, numbers, percentiles, spacing):
            return postprocess(find(image, numbers, percentiles, spacing), settings, numbers, spacing)

        return predict_smooth
    # Without smoothing, masks alone leave the graph.
    thresholds = np.array([organ.threshold for organ in settings], np.float32)
    segment = make_scan_function(probabilities, config, lambda found: found >= thresholds)

    def predict(image, numbers, percentiles, spacing):
        masks = segment(image, numbers, percentiles, spacing)
        for k, organ in enumerate(settings):
            masks[k] = clean_mask(masks[k], organ, spacing)
        return masks

    return predict


def make_scan_function(
    probabilities: Callable, config: Config, finish: Callable
) -> Callable[[np.ndarray, list[int], np.ndarray, tuple], np.ndarray]:
    """Run a network over whole scans, with no post-processing.

    Args:
        probabilities: as in `make_predictor`.
        config: window, size and batch size.
        finish: function of TensorFlow's from probabilities at the scan's size, float32 [N, H, W, 3], to what is wanted
            of them, of the same shape and any dtype; tf.identity gives the probabilities.

    Returns:
        Function as from `make_predictor`, to [3, D, H, W] of what `finish` gives.
    """
    data, evaluation = config.data, config.evaluation
    if data.patch is not None:
        return make_volume_function(probabilities, config, finish)

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
        return finish(from_model(probabilities(stack_windows(prepared, windows)), placement, shape))

    def over_scan(image, numbers, percentiles, spacing):
        depth, height, width = image.shape
        prepared, placement, windows = prepare(image, numbers, percentiles, spacing)
        batches = batches_of(depth, evaluation.batch_size)
        found = ((part, segment(prepared, placement, windows[part], (height, width)).numpy()) for part in batches)
        return organs_first(found, image.shape)

    return over_scan


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
