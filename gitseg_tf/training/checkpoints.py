"""The state within an epoch: saved every so many minutes, and gone on with at the very step."""

import json
import time

import numpy as np
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.errors import InputError, first_line
from gitseg_tf.training.agreement import any_worker


class RunningEpoch(tf.train.experimental.PythonState):
    """How far the running epoch is; a part of the checkpoint. `steps` is 0 in what is saved between epochs.

    Attributes:
        steps: training steps of the epoch that are done.
        measures: what the metrics have accumulated over them: the values of all their variables.
    """

    def __init__(self):
        super().__init__()
        self.clear()

    def clear(self) -> None:
        """Between epochs."""
        self.steps, self.measures = 0, []

    def serialize(self) -> str:
        """As text, for the checkpoint."""
        return json.dumps({"steps": self.steps, "measures": self.measures})

    def deserialize(self, text) -> None:
        """From the checkpoint."""
        read = json.loads(text)
        self.steps, self.measures = read["steps"], read["measures"]


def save_state(manager: tf.train.CheckpointManager) -> None:
    """Write a checkpoint; what was there before stays if that fails.

    Raises:
        InputError: it cannot be written, for example because the disk is full.
    """
    try:
        manager.save()
    except (tf.errors.OpError, OSError) as error:
        cure = "the state saved before it is still there: make it writable or make space, and go on with --resume"
        raise InputError(f"{manager.directory}: the state cannot be saved ({first_line(error)}); {cure}") from None


class WithinEpoch(keras.callbacks.Callback):
    """Saves the state within epochs too, and lets a resumed run begin at the step after the saved one.

    Args:
        manager: of the checkpoint, whose part `running` is a RunningEpoch.
        minutes: least time between two savings; 0 saves nothing within an epoch.
    """

    def __init__(self, manager: tf.train.CheckpointManager, minutes: float):
        super().__init__()
        self.manager, self.minutes = manager, minutes
        self.running = manager.checkpoint.running
        self.saved = time.monotonic()

    def on_train_begin(self, logs=None):
        # What keras.callbacks.BackupAndRestore does too: fit asks this attribute for the epoch and step to begin at.
        self.model._training_state = self

    def maybe_load_initial_counters_from_ckpt(self, steps_per_epoch, initial_epoch, mode):
        """The epoch and the step to begin at, asked for by keras.Model.fit."""
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
            return  # The gradient overflowed: the next step stops the run, which must keep what was saved before.
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
    if [tuple(variable.shape) for variable in variables] != [np.shape(values) for values in measures]:
        raise InputError("the checkpoint within the epoch is of other metrics; resume with the version that wrote it")
    for variable, values in zip(variables, measures, strict=True):
        variable.assign(np.asarray(values, variable.dtype.as_numpy_dtype))
