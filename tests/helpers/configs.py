"""The one small experiment of the tests."""

from gitseg_tf.config import Config, load_config
from gitseg_tf.labels import UWMGI, LabelSet

SETTINGS = {
    "data.input_size": [32, 32],
    "data.window_slices": 3,
    "data.batch_size": 4,
    "data.folds": 3,
    "model.filters": 4,
    "model.levels": 3,
    "training.epochs": 1,
    "training.precision": "float32",
    "training.strategy": "one_device",
}


def tiny_config(labels: LabelSet = UWMGI, channels: tuple[str, ...] = ("image",), **changes) -> Config:
    """An experiment that trains in a second, resolved for a dataset with these labels and channels.

    Args:
        labels: those of the competition, by default.
        channels: one, by default.
        changes: config keys with double underscores for dots, as in data__window_slices=5.
    """
    overrides = SETTINGS | {key.replace("__", "."): value for key, value in changes.items()}
    return load_config(None, overrides).for_dataset(labels, channels)
