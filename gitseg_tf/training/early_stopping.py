"""The end of a training that makes no progress any more."""

import math

import tensorflow as tf
import tf_keras as keras


class EarlyStopping(keras.callbacks.Callback):
    """Ends the training once val_dice has not risen for some epochs, and counts them as `epochs_without_gain`.

    Create it in the strategy's scope, and let it come before what writes the history and the checkpoint.

    Args:
        patience: epochs; 0 never ends the training and counts nothing.

    Attributes:
        progress: variable of the highest val_dice and its epoch, counted from 1; part of the checkpoint.
    """

    def __init__(self, patience: int):
        super().__init__()
        self.patience = patience
        self.progress = tf.Variable([-math.inf, 0.0], dtype=tf.float64, trainable=False)

    def on_epoch_end(self, epoch, logs=None):
        if not self.patience:
            return
        best, _ = self.progress.numpy()
        if logs["val_dice"] > best:
            self.progress.assign([logs["val_dice"], epoch + 1])
        logs["epochs_without_gain"] = self._without_gain(epoch + 1)
        self.model.stop_training |= self.ends(epoch + 1)

    def ends(self, finished: int) -> bool:
        """Whether no epoch is to follow the finished ones."""
        return 0 < self.patience <= self._without_gain(finished)

    def reason(self, finished: int) -> str:
        """Why no epoch follows, a line for the user."""
        best, at = self.progress.numpy()
        rise = f"val_dice has not risen above the {best:.4f} of epoch {at:.0f}"
        return f"stopped    after epoch {finished}: {rise} for {self.patience} epochs (training.early_stopping)"

    def _without_gain(self, finished: int) -> int:
        return finished - int(self.progress.numpy()[1])
