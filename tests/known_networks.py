"""Networks of which it is known what they answer, run over whole scans."""

import numpy as np
import tensorflow as tf

from gitseg_tf.config import load_config
from gitseg_tf.data.records import intensity_percentiles
from gitseg_tf.inference.predictor import make_scan_function

SQUARE = (3.0, 1.5, 1.5)
KINDS = {
    "2-D": {"data.slices": 1},
    "2.5-D": {"data.slices": 3},
    "3-D": {"data.patch": [4, 32, 32], "model.architecture": "unet3d"},
}


def middle_thrice(windows):
    """A network that gives its input back: of a window the middle slice, of a patch all."""
    middle = windows if windows.shape.rank == 5 else windows[..., windows.shape[-1] // 2, None]
    return tf.repeat(middle, 3, -1)


def found_by(network, image, kind="2-D", spacing=SQUARE, **settings):
    overrides = {"data.size": [32, 64], "data.crop": "none", "evaluation.batch_size": 2} | KINDS[kind]
    config = load_config(overrides=overrides | {key.replace("__", "."): value for key, value in settings.items()})
    find = make_scan_function(network, config, tf.identity)
    return find(image, np.arange(1, len(image) + 1), intensity_percentiles(image), spacing)


def noise(shape=(5, 75, 110)):
    return np.random.default_rng(3).integers(0, 5000, shape).astype(np.uint16)


def normalised(image):
    low, high = np.percentile(image, [1, 99], method="inverted_cdf")
    return np.clip((image.astype(float) - low) / (high - low), 0, 1)
