"""Callbacks at the end of epochs: validation of averaged weights, checkpoints, history, progress."""

import io
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.core.paths import AnyPath, write_atomically, written_locally
from gitseg_tf.core.progress import progress
from gitseg_tf.runs.folder import best_weights_path
from gitseg_tf.training.callbacks.checkpoints import save_state
from gitseg_tf.training.optim.averages import recompute_statistics

_NARROW = 110  # columns of a terminal in which the numbers of a bar leave no room for the bar itself
_HDF5_OBJECT = 4096  # bytes, more than HDF5 adds to the values of a variable


class AveragedValidation(keras.callbacks.Callback):
    """Validates with the averaged weights.

    Args:
        windows_of: function from an epoch, counted from 0, to the batches (tf.data.Dataset) from which the statistics
            of batch normalization are recomputed; None keeps the statistics of the unaveraged weights.
        first_epoch: the first epoch in which they are recomputed.
        steps: number of batches in an epoch.
    """

    def __init__(
        self, windows_of: Callable[[int], tf.data.Dataset] | None = None, first_epoch: int = 0, steps: int = 0
    ):
        super().__init__()
        self.windows_of, self.first_epoch, self.steps, self.epoch = windows_of, first_epoch, steps, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_test_begin(self, logs=None):
        windows_of = self.windows_of if self.epoch >= self.first_epoch else None
        if windows_of is not None:
            self.model.average.begin_statistics()
        self.model.average.swap()
        if windows_of is not None:
            recompute_statistics(self.model, windows_of(self.epoch), self.steps)

    def on_test_end(self, logs=None):
        self.model.average.swap()


class RunRecorder(keras.callbacks.Callback):
    """Writes the best weights, history.csv and finally the checkpoint after each epoch.

    Args:
        run: the run's folder.
        manager: manager of the checkpoint that contains model, optimizer and the number of finished epochs.
        finished: variable with the number of finished epochs, stored in that checkpoint.
        rows: history of the finished epochs, from `read_history`. All workers need the same rows, because they must
            agree on when to save the best weights: reading the statistics of batch normalization is a collective
            operation.
        monitor: the column of the history by which the best weights are chosen; higher is better.
    """

    def __init__(
        self,
        run: AnyPath,
        manager: tf.train.CheckpointManager,
        finished: tf.Variable,
        rows: list[dict],
        monitor: str = "val_dice",
    ):
        super().__init__()
        self.run, self.manager, self.finished, self.monitor = run, manager, finished, monitor
        self.rows = list(rows)
        scores = [row.get(monitor, math.nan) for row in self.rows]
        self.best = max((score for score in scores if not math.isnan(score)), default=-math.inf)
        self.started = 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        rate = float(self.model.schedule(self.model.optimizer.iterations - 1))
        seconds = round(time.monotonic() - self.started, 2)
        row = {"epoch": epoch + 1, **{k: float(v) for k, v in logs.items()}, "learning_rate": rate, "seconds": seconds}
        self.rows.append(row)
        score = row.get(self.monitor, math.nan)
        # Without a held-out fold, or without an annotated label in it, the last epoch is the best.
        if math.isnan(score) or score > self.best:
            self.best = self.best if math.isnan(score) else score
            self._save_best()
        write_history(self.run, self.rows)
        self.finished.assign(epoch + 1)
        save_state(self.manager)

    def _save_best(self):
        # Save an uncompiled model, so that the optimizer's variables, twice the size of the weights, are left out.
        network = keras.Model(self.model.inputs, self.model.outputs)
        self.model.average.swap()
        try:
            sizes = [v.shape.num_elements() * v.dtype.size + _HDF5_OBJECT for v in network.variables]
            with written_locally(best_weights_path(self.run), room=sum(sizes)) as path:
                network.save_weights(path)
        finally:
            self.model.average.swap()


class EpochBars(keras.callbacks.Callback):
    """A progress bar per epoch with loss and Dice, followed by the result of the validation.

    Args:
        steps: number of training steps in an epoch.
        validation_steps: number of batches of a validation.
        epochs: total number of epochs.
        monitor: name of the metric that chooses the best weights.
    """

    def __init__(self, steps: int, validation_steps: int | None, epochs: int, monitor: str = "val_dice"):
        super().__init__()
        self.steps, self.validation_steps, self.epochs, self.monitor = steps, validation_steps, epochs, monitor
        self.bar: Any = None

    def on_epoch_begin(self, epoch, logs=None):
        self.bar = progress(range(self.steps), f"epoch {epoch + 1}/{self.epochs}", total=self.steps, unit="step")
        if self._is_narrow:
            self.bar.bar_format = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

    def on_train_batch_end(self, batch, logs=None):
        self.bar.update(batch + 1 - self.bar.n)
        self.bar.set_postfix_str(f"loss {logs['loss']:.3f}, Dice {logs['dice']:.3f}", refresh=False)

    def on_test_batch_end(self, batch, logs=None):
        self.bar.set_postfix_str(
            f"validating, batch {batch + 1} of {self.validation_steps}", refresh=sys.stderr.isatty()
        )

    @property
    def _is_narrow(self) -> bool:
        return bool(self.bar.ncols) and self.bar.ncols < _NARROW

    def on_epoch_end(self, epoch, logs=None):
        if self._is_narrow:
            self.bar.bar_format = "{desc}: {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
        held_out = f"; held out: {logs['val_loss']:.3f}, {logs['val_dice']:.3f}" if "val_dice" in logs else ""
        if self.monitor != "val_dice" and self.monitor in logs:
            held_out += f", {self.monitor.removeprefix('val_')} {logs[self.monitor]:.3f}"
        self.bar.set_postfix_str(f"loss {logs['loss']:.3f}, Dice {logs['dice']:.3f}{held_out}", refresh=False)
        self.close()

    def close(self) -> None:
        """Close the bar and start a new line, because an error message may follow."""
        if self.bar is not None:
            self.bar.close()


def write_history(run: AnyPath, rows: list[dict]) -> None:
    """Write the complete history.csv atomically."""
    text = io.StringIO()
    pd.DataFrame(rows).to_csv(text, index=False)
    write_atomically(run / "history.csv", text.getvalue().encode())
