"""Stop training when a function that is called after each epoch says so."""

from collections.abc import Callable

import tf_keras as keras


class AfterEpoch(keras.callbacks.Callback):
    """Stops training once a function of the epoch and its metric returns True.

    Place it last, so that the epoch is in the history and in the checkpoint when the function is called.

    Args:
        stops: called with the number of finished epochs and the metric of the last one.
        monitor: name of the metric in the logs.
    """

    def __init__(self, stops: Callable[[int, float], bool], monitor: str):
        super().__init__()
        self._stops, self._monitor = stops, monitor

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training |= self._stops(epoch + 1, float(logs[self._monitor]))
