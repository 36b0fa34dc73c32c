"""Freeze and unfreeze batch normalization at the right epochs."""

import logging

import tf_keras as keras

from gitseg_tf.core.text import plural
from gitseg_tf.training.optim.freezing import Freezing

logger = logging.getLogger(__name__)


class Unfreezes(keras.callbacks.Callback):
    """Switches the batch normalization of frozen layers, and has the training step traced again when it changes.

    Keras reads `trainable` when it traces a step. Weights need no switch: their learning rate depends on the step.

    Args:
        freezing: of the model.
    """

    def __init__(self, freezing: Freezing):
        super().__init__()
        self._freezing = freezing

    def on_epoch_begin(self, epoch, logs=None):
        if self._freezing.apply(epoch):
            self.model.make_train_function(force=True)
            if epoch == self._freezing.epochs:
                logger.info("unfreezing the loaded layers after %s", plural(epoch, "epoch"))

    def on_train_end(self, logs=None):
        self._freezing.apply(self._freezing.epochs)
