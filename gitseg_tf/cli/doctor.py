"""Describe the installation, and what `auto` would choose."""

import importlib.metadata
import platform

import tensorflow as tf

from gitseg_tf import __version__
from gitseg_tf.core.versions import TENSORFLOWS
from gitseg_tf.training.distribute.strategy import choose_precision, choose_strategy

_PACKAGES = ("tf-keras", "keras", "keras-cv", "tensorflow-addons", "numpy", "pandas")


def doctor() -> str:
    """Describe versions, devices, strategy and precision, one line each."""
    lines = [f"{'gitseg-tf':<20}{__version__}", f"{'python':<20}{platform.python_version()}"]
    installed = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()}
    kind = next((name for name in TENSORFLOWS if name in installed), "tensorflow")
    lines += [f"{name:<20}{installed.get(name, 'not installed')}" for name in (kind, *_PACKAGES)]
    opencv = next((name for name in ("opencv-python-headless", "opencv-python") if name in installed), None)
    lines.append(f"{'opencv':<20}{f'{installed[opencv]} ({opencv})' if opencv else 'not installed'}")
    strategy, line = choose_strategy()
    lines.append(f"{'devices':<20}{', '.join(device.name for device in tf.config.list_logical_devices())}")
    lines.append(f"{'strategy':<20}{line}")
    _, line = choose_precision("auto", tpu=isinstance(strategy, tf.distribute.TPUStrategy))
    lines.append(f"{'precision':<20}{line}")
    return "\n".join(lines)
