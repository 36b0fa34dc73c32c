"""Find the results of `gitseg export`: SavedModel folders, and files of other formats. Does not import TensorFlow."""

from gitseg_tf.config import Config, load_config
from gitseg_tf.core.paths import AnyPath
from gitseg_tf.core.registry import Registry
from gitseg_tf.errors import RunError

ONNX_FILE, TFLITE_FILE = "model.onnx", "model.tflite"
# Runtimes of network files by extension: functions from a file to (function from float32 windows to float32
# probabilities, description of inputs and outputs). The fact `file` is the file name used by gitseg export.
RUNTIMES = Registry("network file extension")
RUNTIMES.register(".onnx", "gitseg_tf.inference.runtimes:open_onnx", file=ONNX_FILE)
RUNTIMES.register(".tflite", "gitseg_tf.inference.runtimes:open_tflite", file=TFLITE_FILE)


def exported_version(path: AnyPath) -> AnyPath | None:
    """Find the SavedModel in a folder.

    Args:
        path: any path.

    Returns:
        The folder itself if it is a SavedModel; otherwise the highest of its versions (1/, 2/, ...), like TensorFlow
        Serving; None if there is neither.
    """
    if _is_saved_model(path):
        return path
    versions = [p for p in path.iterdir() if _is_number(p.name) and _is_saved_model(p)] if path.is_dir() else []
    return max(versions, key=lambda version: int(version.name), default=None)


def exported_file(path: AnyPath) -> AnyPath | None:
    """Find the network file, such as ONNX or TFLite, at a path.

    Args:
        path: any path.

    Returns:
        The network file in a folder; the path itself if it has the extension of a network file, whether or not it
        exists; otherwise None.
    """
    if path.is_dir():
        names = (RUNTIMES.facts(extension)["file"] for extension in RUNTIMES)
        return next((path / name for name in names if (path / name).is_file()), None)
    return path if path.suffix in RUNTIMES else None


def exported_formats(path: AnyPath) -> list[AnyPath]:
    """List the subfolders with an ONNX or TFLite file, sorted by name."""
    inside = path.iterdir() if path.is_dir() else ()
    # Skip folders that are still being written; their names begin with a dot.
    return sorted(p for p in inside if p.is_dir() and exported_file(p) and not p.name.startswith("."))


def exported_config(exported: AnyPath) -> Config:
    """Read the config of the run from which a SavedModel, or a file of another format, was exported.

    Raises:
        RunError: no such file, or it was not written by gitseg export.
        ConfigError: its config is damaged.
    """
    if exported_file(exported) is not None:
        folder, path = exported.parent, exported.parent / "config.yaml"
        if not exported.is_file():
            raise RunError(f"{exported}: no such file; run gitseg export to write it")
    else:
        folder, path = exported, exported / "assets.extra" / "config.yaml"
    if not path.is_file():
        raise RunError(
            f"{exported}: was not made by gitseg export ({path.relative_to(folder)} is missing); export the run again"
        )
    return load_config(path)


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _is_saved_model(path: AnyPath) -> bool:
    return (path / "saved_model.pb").is_file()
