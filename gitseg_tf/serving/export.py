"""SavedModels that TensorFlow Serving loads."""

import tensorflow as tf

from gitseg_tf.config import save_config
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, as_path, replace_folder
from gitseg_tf.training.trainer import Run, load_model

VERSION = "1"


class _Windows(tf.Module):
    """Holds the network's variables only, so that what is saved needs neither Keras nor this package."""

    def __init__(self, model):
        super().__init__()
        self.weights = model.variables
        spec = tf.TensorSpec(model.input_shape, tf.float32, name="windows")
        self.serve = tf.function(lambda windows: {"probabilities": tf.sigmoid(model(windows, training=False))}, [spec])


def export(run: Run, out: str | AnyPath | None = None) -> AnyPath:
    """Write a run's network, best weights, as a SavedModel.

    The signature serving_default takes `windows`, float32 [N, height, width, slices] in [0, 1], any N, and gives
    `probabilities`, float32 [N, height, width, 3], organs in the order of ORGANS. Those of a 3-D network are
    [N, depth, height, width, 1] and [N, depth, height, width, 3].

    Args:
        run: a trained run.
        out: the folder that gets 1/; None is RUN/export. It is replaced as a whole when the run's own.

    Returns:
        out/1.

    Raises:
        InputError: out/1 exists (unless it is the run's own), or the weights do not fit the config.
    """
    target = as_path(out or run.path / "export") / VERSION
    if target.exists() and out is not None:
        raise InputError(f"{target}: exists already; remove it or choose another folder")
    module = _Windows(load_model(run))
    with replace_folder(target, marker="saved_model.pb") as folder:
        tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})
        (folder / "assets.extra").mkdir()
        (folder / "assets.extra" / "organs.txt").write_text("\n".join(ORGANS) + "\n")
        save_config(run.config, folder / "assets.extra" / "config.yaml")
    return target
