"""Compare the loss of the untrained network with its expected value: a check of inputs, initialization and loss."""

import logging
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.models.heads import INITIAL_LOGIT

logger = logging.getLogger(__name__)

TOLERANCE = 0.3


class InitialLoss(keras.callbacks.Callback):
    """Compares the loss of the first training batch with that of a network that predicts INITIAL_LOGIT everywhere.

    INITIAL_LOGIT is the initial bias of the last layer, so an untrained network whose inputs and weights have the usual
    scale is close to it; see Karpathy, "A Recipe for Training Neural Networks" (2019): "verify loss at init". The first
    step computes its loss before it updates the weights, so the check needs no extra forward pass. The result is
    logged, as a warning if the difference exceeds TOLERANCE times the expected loss.

    Args:
        loss: function from (mask, the model's outputs) to the loss [N], as used in training.
    """

    def __init__(self, loss: Callable):
        super().__init__()
        self._loss, self._mask = loss, None

    def watching(self, windows: tf.data.Dataset) -> tf.data.Dataset:
        """Pass batches (image, mask) through unchanged, and keep the first mask for the check."""

        def keep(mask):
            self._mask = mask
            return mask

        def watch(number, window):
            image, mask = window
            shape = mask.shape
            mask = tf.cond(number == 0, lambda: tf.numpy_function(keep, [mask], mask.dtype), lambda: mask)
            return image, tf.ensure_shape(mask, shape)

        return windows.enumerate().map(watch)

    def on_train_batch_end(self, batch, logs=None):
        if self._mask is None:
            return
        mask, self._mask = self._mask, None
        expected = expected_initial_loss(self._loss, mask, self.model.output)
        _log_initial_loss(logs["loss"], expected)


def expected_initial_loss(loss: Callable, mask: np.ndarray, outputs) -> float:
    """Compute the loss of a network that predicts INITIAL_LOGIT for every voxel and label, and logit 0 for presence.

    Args:
        loss: function from (mask [N, ..., L], outputs) to the loss [N].
        mask: float32 [N, ..., L].
        outputs: the model's outputs, one Keras tensor or a dict of them.

    Returns:
        The mean loss over the batch.
    """

    def constant(output, logit=INITIAL_LOGIT):
        return tf.fill([len(mask), *output.shape[1:]], logit)

    if isinstance(outputs, dict):
        predicted = {name: constant(o, 0.0 if name == "presence" else INITIAL_LOGIT) for name, o in outputs.items()}
    else:
        predicted = constant(outputs)
    return float(tf.reduce_mean(loss(tf.constant(mask), predicted)))


def is_close(loss: float, expected: float) -> bool:
    """Check that a loss is finite and within TOLERANCE times the expected loss of the expected loss."""
    return math.isfinite(loss) and abs(loss - expected) <= TOLERANCE * abs(expected)


def _log_initial_loss(loss: float, expected: float) -> None:
    if is_close(loss, expected):
        logger.info("initial    loss %.3f of the untrained network, %.3f expected", loss, expected)
    else:
        logger.warning(
            "the loss of the untrained network is %.3g, but %.3g was expected; check the scale of the inputs, the "
            "initial weights and the bias of the last layer",
            loss,
            expected,
        )
