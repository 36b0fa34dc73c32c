"""Mid-epoch checkpoints: save periodically, resume at the exact step."""

import json
import time

import numpy as np
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.core.trees import parse_json
from gitseg_tf.errors import RunError, first_line
from gitseg_tf.training.distribute.consistency import any_worker


class RunningEpoch(tf.train.experimental.PythonState):
    """The progress of the current epoch, stored in the checkpoint; `steps` is 0 in checkpoints between epochs.

    Attributes:
        steps: number of completed training steps of the epoch.
        measures: values of all metric variables, accumulated over these steps.
    """

    def __init__(self):
        super().__init__()
        self.measures: list = []
        self.clear()

    def clear(self) -> None:
        """Reset the progress at the end of an epoch."""
        self.steps, self.measures = 0, []

    def serialize(self) -> str:
        """Convert to text for the checkpoint."""
        return json.dumps({"steps": self.steps, "measures": self.measures})

    def deserialize(self, text) -> None:
        """Restore from the text in the checkpoint."""
        try:
            read = parse_json(text)
            self.steps, self.measures = int(read["steps"]), list(read["measures"])
        except (ValueError, KeyError, TypeError, OverflowError):
            raise RunError("the progress in the mid-epoch checkpoint is damaged; resume from the one before") from None


def save_state(manager: tf.train.CheckpointManager) -> None:
    """Write a checkpoint; if that fails, the previous one is kept.

    Raises:
        RunError: the checkpoint cannot be written, for example because the disk is full.
    """
    try:
        manager.save()
    except (tf.errors.OpError, OSError) as error:
        fix = "the previous state is kept: make the folder writable or free some space, then resume the run"
        raise RunError(f"{manager.directory}: the state cannot be saved ({first_line(error)}); {fix}") from None


class WithinEpoch(keras.callbacks.Callback):
    """Saves mid-epoch checkpoints, and resumes a run at the step after the saved one.

    Args:
        manager: manager of the checkpoint, whose attribute `running` is a RunningEpoch.
        minutes: minimum time between two checkpoints; 0 saves none within an epoch.
    """

    def __init__(self, manager: tf.train.CheckpointManager, minutes: float):
        super().__init__()
        self.manager, self.minutes = manager, minutes
        self.running = manager.checkpoint.running
        self.saved = time.monotonic()

    def on_train_begin(self, logs=None):
        # As in keras.callbacks.BackupAndRestore: `fit` uses this attribute to find the epoch and step to start at.
        self.model._training_state = self

    def maybe_load_initial_counters_from_ckpt(self, steps_per_epoch, initial_epoch, mode):
        """Return the epoch and the step to start at; called by keras.Model.fit."""
        return initial_epoch, self.running.steps

    def on_epoch_begin(self, epoch, logs=None):
        if self.running.steps:
            _set_measures(self.model, self.running.measures)
            self.running.clear()
        self.saved = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        if not self.minutes or batch + 1 == self.params["steps"]:
            return
        if not any_worker(self.model.distribute_strategy, time.monotonic() - self.saved >= 60 * self.minutes):
            return
        if not _finite(self.model.trainable_variables):
            return  # The gradient overflowed: the next step stops the run, which must keep the previous state.
        self.running.steps, self.running.measures = batch + 1, _measures(self.model)
        save_state(self.manager)
        self.running.clear()
        self.saved = time.monotonic()

    def on_train_end(self, logs=None):
        self.model._training_state = None


def _finite(variables: list) -> bool:
    return all(bool(tf.reduce_all(tf.math.is_finite(tf.convert_to_tensor(variable)))) for variable in variables)


def _variables(model: keras.Model) -> list:
    return [variable for metric in model.metrics for variable in metric.variables]


def _measures(model: keras.Model) -> list:
    return [variable.numpy().tolist() for variable in _variables(model)]


def _set_measures(model: keras.Model, measures: list) -> None:
    variables = _variables(model)
    if [tuple(variable.shape) for variable in variables] != [_shape(values) for values in measures]:
        raise RunError(
            "the mid-epoch checkpoint has different metrics; resume with the version of gitseg-tf that wrote it"
        )
    for variable, values in zip(variables, measures, strict=True):
        variable.assign(np.asarray(values, variable.dtype.as_numpy_dtype))


def _shape(values) -> tuple[int, ...] | None:
    try:
        return np.asarray(values, np.float64).shape
    except (ValueError, TypeError):
        return None
