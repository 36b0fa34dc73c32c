"""Networks with known outputs, run over whole scans."""

import numpy as np
import tensorflow as tf

from gitseg_tf.config import load_config
from gitseg_tf.data.volume import Volume
from gitseg_tf.inference.predictor import Predictor
from gitseg_tf.labels import UWMGI

SQUARE = (3.0, 1.5, 1.5)
KINDS = {
    "2-D": {"data.window_slices": 1},
    "2.5-D": {"data.window_slices": 3},
    "3-D": {"data.patch": [4, 32, 32], "model.architecture": "unet3d"},
}


def repeat_middle_slice(windows):
    """A network that returns its input for each of 3 labels: the middle slice of a window, all of a patch."""
    middle = windows if windows.shape.rank == 5 else windows[..., windows.shape[-1] // 2, None]
    return tf.repeat(middle, 3, -1)


def probabilities_by(network, image, kind="2-D", spacing=SQUARE, **settings):
    overrides = {"data.input_size": [32, 64], "data.crop": "none", "evaluation.batch_size": 2} | KINDS[kind]
    config = labeled(overrides | {key.replace("__", "."): value for key, value in settings.items()})
    return Predictor.of_network(network, config).probabilities(image, spacing=spacing)


def labeled(overrides=None, labels=UWMGI, channels=("mr",)):
    """A config with labels and channels, as a run has."""
    return load_config(overrides=overrides).for_dataset(labels, channels)


def masks_by(network, image, config, numbers=(), spacing=SQUARE):
    """The masks that a Predictor returns with a network."""
    return Predictor.of_network(network, config).predict(Volume(image, spacing, tuple(numbers))).masks


def noise(shape=(5, 75, 110)):
    return np.random.default_rng(3).integers(0, 5000, shape).astype(np.uint16)


def normalized(image):
    low, high = np.percentile(image, [1, 99], method="inverted_cdf")
    return np.clip((image.astype(float) - low) / (high - low), 0, 1)
