"""Exported SavedModels as folders. It needs no TensorFlow."""

from gitseg_tf.config import Config, load_config
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath


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


def exported_config(exported: AnyPath) -> Config:
    """The config of the run that a SavedModel was exported from.

    Raises:
        InputError: it was not made by gitseg export, or its config is damaged.
    """
    path = exported / "assets.extra" / "config.yaml"
    if not path.is_file():
        raise InputError(f"{exported}: was not made by gitseg export ({path.relative_to(exported)} is missing)")
    return load_config(path)


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _is_saved_model(path: AnyPath) -> bool:
    return (path / "saved_model.pb").is_file()
