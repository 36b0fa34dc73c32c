"""The untrained network's loss against what it should be: a check of inputs, initialisation and loss at no cost."""

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tqdm import tqdm

from gitseg_tf.models.heads import INITIAL_LOGIT

TOLERANCE = 0.3


class InitialLoss(keras.callbacks.Callback):
    """Compares the loss of the first training batch with that of a network which says INITIAL_LOGIT everywhere.

    The last layer begins at that bias, so an untrained network whose inputs and weights are of the usual size is close
    to it; see Karpathy, "A Recipe for Training Neural Networks" (2019): "verify loss at init". The first step computes
    its loss before it changes the weights, so the check takes no forward pass of its own.

    Args:
        loss: function of (mask, the model's outputs) to the loss [N], as the model is trained with.
        say: takes the line for the user; a warning where the two differ by more than TOLERANCE of what is expected.
    """

    def __init__(self, loss: Callable, say: Callable[[str], None]):
        super().__init__()
        self._loss, self._say, self._mask = loss, say, None

    def watching(self, windows: tf.data.Dataset) -> tf.data.Dataset:
        """The same batches (image, mask), the first of whose masks is kept for the check as it passes."""

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
        with tqdm.external_write_mode():
            self._say(initial_loss_line(logs["loss"], expected))


def expected_initial_loss(loss: Callable, mask: np.ndarray, outputs) -> float:
    """The loss of a network that says INITIAL_LOGIT for every pixel and organ, and 0 for an organ's presence.

    Args:
        loss: function of (mask [N, ..., 3], outputs) to the loss [N].
        mask: float32 [N, ..., 3].
        outputs: the model's, one Keras tensor or a dict of them.
    """

    def constant(output, logit=INITIAL_LOGIT):
        return tf.fill([len(mask), *output.shape[1:]], logit)

    if isinstance(outputs, dict):
        said = {name: constant(o, 0.0 if name == "presence" else INITIAL_LOGIT) for name, o in outputs.items()}
    else:
        said = constant(outputs)
    return float(tf.reduce_mean(loss(tf.constant(mask), said)))


def initial_loss_line(loss: float, expected: float) -> str:
    """What to tell the user of the untrained network's loss: a warning where it is far from the expected one."""
    if math.isfinite(loss) and abs(loss - expected) <= TOLERANCE * abs(expected):
        return f"initial    loss {loss:.3f} of the untrained network, {expected:.3f} was expected"
    return (
        f"warning    loss of the untrained network is {loss:.3g}, {expected:.3g} was expected: look at the scale of "
        "the inputs, the initial weights and the bias of the last layer"
    )
