"""The function that all formats of the network export."""

from collections.abc import Callable

import tensorflow as tf
import tf_keras as keras


def inference(model: keras.Model) -> Callable:
    """Build a function from windows to probabilities, with the names of the SavedModel's `serving_default`."""
    return lambda windows: {"probabilities": tf.sigmoid(model(windows, training=False))}
