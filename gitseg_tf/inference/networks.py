"""The networks of runs and exports, as functions from windows to probabilities."""

from collections.abc import Callable

import tensorflow as tf
from google.protobuf.message import DecodeError

from gitseg_tf.config import Config
from gitseg_tf.core.paths import AnyPath
from gitseg_tf.errors import RunError, first_line
from gitseg_tf.inference.exported import exported_config, exported_file, exported_formats, exported_version
from gitseg_tf.inference.runtimes import open_network
from gitseg_tf.models.build import with_presence
from gitseg_tf.models.freezing.freeze import freeze, inference_network
from gitseg_tf.runs.folder import has_begun
from gitseg_tf.runs.network import load_model
from gitseg_tf.runs.run import Run, load_run

# What TensorFlow raises for a damaged SavedModel.
_DAMAGE = (
    OSError, IndexError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, AssertionError,
    DecodeError, tf.errors.OpError,
)  # fmt: skip


def run_probabilities(run: Run, precision: str = "float32", *, presence: bool = False) -> Callable:
    """Load the network of a run with its best weights as a function from windows to probabilities.

    Args:
        run: from `load_run`.
        precision: Keras dtype policy, as for `build_model`.
        presence: also return the probabilities of the presence head, which the run must have.

    Returns:
        Function from float32 windows to float32 probabilities [N, ..., L], or [N, H, W, 2 L] with `presence`, see
        `with_presence`.
    """
    return inference_network(load_model(run, precision, presence=presence))


def has_presence(path: AnyPath, config: Config) -> bool:
    """Check whether a model has a presence head; ONNX and TFLite files contain only the segmentation."""
    return config.gates_slices and exported_file(path) is None


def open_model(path: AnyPath) -> tuple[AnyPath, Config, Callable[..., Callable]]:
    """Open one model: its config is read immediately, its network on demand.

    Args:
        path: as for `load_predictor`, but not a cross-validation.

    Returns:
        The path, the config, and a function that loads the network; with presence=True, as for `run_probabilities`.

    Raises:
        RunError: see `load_predictor`.
    """
    if (file := exported_file(path)) is not None:
        config = exported_config(file)
        return path, config, lambda presence=False: open_network(file, window_shape(config), len(config.label_set))
    exported = exported_version(path)
    if exported is None:
        if not has_begun(path) and (inside := exported_formats(path)):
            raise RunError(
                f"{path}: contains networks in several formats; choose the folder of one, such as {inside[0]}"
            )
        run = load_run(path)
        return path, run.config, lambda **how: run_probabilities(run, **how)
    config = exported_config(exported)
    return path, config, lambda presence=False: _saved_network(exported, window_shape(config), presence)


def channel_count(config: Config) -> int:
    """Return the number of channels of a run's input, 1 if the config does not list them."""
    return len(config.channels or ("",))


def window_shape(config: Config) -> tuple[int, ...]:
    """Return the shape of a network's input: (height, width, slices * channels), or (D, H, W, channels) for patches."""
    data, channels = config.data, channel_count(config)
    return (*data.input_size, data.window_slices * channels) if data.patch is None else (*data.patch, channels)


def _saved_network(exported: AnyPath, window: tuple[int, ...], presence: bool) -> Callable:
    try:
        serve = tf.saved_model.load(str(exported)).signatures["serving_default"]
        spec = serve.structured_input_signature[1]["windows"]
    except _DAMAGE as error:
        raise RunError(f"{exported}: the SavedModel is damaged ({first_line(error)}); export it again") from None
    if (*spec.shape[1:],) != window:
        raise RunError(
            f"{exported}: takes windows of {spec.shape.as_list()[1:]}, but its config.yaml says {list(window)}; "
            "export the run again"
        )
    if presence and "presence" not in serve.structured_outputs:
        raise RunError(f"{exported}: has no output of the presence head; export the run again")

    def outputs_of(windows):
        outputs = serve(windows=windows)
        parts = {"logits": outputs["probabilities"]} | ({"presence": outputs["presence"]} if presence else {})
        return with_presence(parts)

    return freeze(outputs_of, spec)
