"""What `gitseg export` wrote: SavedModels as folders, and files of other formats. It needs no TensorFlow."""

from gitseg_tf.config import Config, load_config
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath

ONNX_FILE, TFLITE_FILE = "model.onnx", "model.tflite"


def exported_version(path: AnyPath) -> AnyPath | None:
    """The SavedModel that a folder stands for.

    Args:
        path: any path.

    Returns:
        The folder itself where it is a SavedModel; of one with a folder a version (1/, 2/, ...) the highest, as
        TensorFlow Serving takes it; None where there is neither.
    """
    if _is_saved_model(path):
        return path
    versions = [p for p in path.iterdir() if _is_number(p.name) and _is_saved_model(p)] if path.is_dir() else []
    return max(versions, key=lambda version: int(version.name), default=None)


def exported_file(path: AnyPath) -> AnyPath | None:
    """The ONNX or TFLite file that a path stands for.

    Args:
        path: any path.

    Returns:
        The path itself where it has the ending of such a file, which need not be there; of a folder with one the file;
        None of anything else.
    """
    if path.is_dir():
        return next((path / name for name in (ONNX_FILE, TFLITE_FILE) if (path / name).is_file()), None)
    return path if path.suffix in (".onnx", ".tflite") else None


def exported_formats(path: AnyPath) -> list[AnyPath]:
    """The folders with an ONNX or TFLite file that lie in a folder, by name; none of anything else."""
    inside = path.iterdir() if path.is_dir() else ()
    # One that is being written has a name with a dot.
    return sorted(p for p in inside if p.is_dir() and exported_file(p) and not p.name.startswith("."))


def exported_config(exported: AnyPath) -> Config:
    """The config of the run that a SavedModel, or a file of another format, was exported from.

    Raises:
        InputError: no such file, it was not made by gitseg export, or its config is damaged.
    """
    if exported_file(exported) is not None:
        folder, path = exported.parent, exported.parent / "config.yaml"
        if not exported.is_file():
            raise InputError(f"{exported}: there is no such file; gitseg export --format writes it")
    else:
        folder, path = exported, exported / "assets.extra" / "config.yaml"
    if not path.is_file():
        raise InputError(f"{exported}: was not made by gitseg export ({path.relative_to(folder)} is missing)")
    return load_config(path)


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _is_saved_model(path: AnyPath) -> bool:
    return (path / "saved_model.pb").is_file()
