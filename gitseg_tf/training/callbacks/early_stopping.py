"""Early stopping."""

import math

import tensorflow as tf
import tf_keras as keras

from gitseg_tf.core.text import plural


class EarlyStopping(keras.callbacks.Callback):
    """Stops training once a metric has not increased for some epochs, and logs the count as `epochs_without_gain`.

    Create it in the strategy's scope, and place it before the callbacks that write the history and the checkpoint.

    Args:
        patience: number of epochs; 0 disables the callback.
        monitor: name of the metric in the logs; higher is better.

    Attributes:
        progress: variable with the highest value and its epoch, counted from 1; stored in the checkpoint.
    """

    def __init__(self, patience: int, monitor: str = "val_dice"):
        super().__init__()
        self.patience, self.monitor = patience, monitor
        self.progress = tf.Variable([-math.inf, 0.0], dtype=tf.float64, trainable=False)

    def on_epoch_end(self, epoch, logs=None):
        if not self.patience:
            return
        best, _ = self.progress.numpy()
        if logs[self.monitor] > best:
            self.progress.assign([logs[self.monitor], epoch + 1])
        logs["epochs_without_gain"] = self._without_gain(epoch + 1)
        self.model.stop_training |= self.ends(epoch + 1)

    def ends(self, finished: int) -> bool:
        """Check whether training stops after this number of epochs."""
        return 0 < self.patience <= self._without_gain(finished)

    def reason(self, finished: int) -> str:
        """Explain in one line why training stopped."""
        best, at = self.progress.numpy()
        rise = f"{self.monitor} has not exceeded the {best:.4f} of epoch {at:.0f}"
        patience = f"{plural(self.patience, 'epoch')} (training.early_stopping_patience)"
        return f"stopped    after epoch {finished}: {rise} for {patience}"

    def _without_gain(self, finished: int) -> int:
        return finished - int(self.progress.numpy()[1])
