"""What happens around epochs: averaged weights for validation, checkpoints, history, progress."""

import csv
import io
import math
import sys
import time
from collections.abc import Callable

import pandas as pd
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, write_atomically, written_locally
from gitseg_tf.progress import progress
from gitseg_tf.training.averages import recompute_statistics
from gitseg_tf.training.checkpoints import save_state

_HDF5_OBJECT = 4096  # bytes, more than HDF5 takes around the values of a variable


class AveragedValidation(keras.callbacks.Callback):
    """Validates with the average of the weights.

    Args:
        windows_of: function of an epoch, counted from 0, to the batches (tf.data.Dataset) from which the statistics of
            batch normalisation are recomputed; None where they stay those of the weights.
        first_epoch: from which on they are recomputed.
        steps: batches in an epoch.
    """

    def __init__(
        self, windows_of: Callable[[int], tf.data.Dataset] | None = None, first_epoch: int = 0, steps: int = 0
    ):
        super().__init__()
        self.windows_of, self.first_epoch, self.steps, self.epoch = windows_of, first_epoch, steps, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_test_begin(self, logs=None):
        recomputes = self.windows_of is not None and self.epoch >= self.first_epoch
        if recomputes:
            self.model.average.begin_statistics()
        self.model.average.swap()
        if recomputes:
            recompute_statistics(self.model, self.windows_of(self.epoch), self.steps)

    def on_test_end(self, logs=None):
        self.model.average.swap()


class RunRecorder(keras.callbacks.Callback):
    """Writes the best weights, history.csv and, last, the state to resume from, after each epoch.

    Args:
        run: the run's folder.
        manager: of the checkpoint that holds model, optimizer and the number of finished epochs.
        finished: variable with the number of finished epochs, part of that checkpoint.
        rows: of those epochs, from `read_history`. All workers need the same ones, of the run and not of their own
            folder: they save the best weights together or not at all, for batch normalisation is read from all.
    """

    def __init__(self, run: AnyPath, manager: tf.train.CheckpointManager, finished: tf.Variable, rows: list[dict]):
        super().__init__()
        self.run, self.manager, self.finished = run, manager, finished
        self.rows = list(rows)
        self.best = max((row.get("val_dice", -math.inf) for row in self.rows), default=-math.inf)
        self.started = 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        rate = float(self.model.schedule(self.model.optimizer.iterations - 1))
        seconds = round(time.monotonic() - self.started, 2)
        row = {"epoch": epoch + 1, **{k: float(v) for k, v in logs.items()}, "learning_rate": rate, "seconds": seconds}
        self.rows.append(row)
        # Where no fold is held out, the last epoch is the best.
        if row.get("val_dice", math.inf) > self.best:
            self.best = row.get("val_dice", -math.inf)
            self._save_best()
        write_history(self.run, self.rows)
        self.finished.assign(epoch + 1)
        save_state(self.manager)

    def _save_best(self):
        # A model of its own, not compiled: the optimizer's variables would be saved too, at three times the weights.
        network = keras.Model(self.model.inputs, self.model.outputs)
        self.model.average.swap()
        try:
            sizes = [v.shape.num_elements() * v.dtype.size + _HDF5_OBJECT for v in network.variables]
            with written_locally(best_weights_path(self.run), room=sum(sizes)) as path:
                network.save_weights(path)
        finally:
            self.model.average.swap()


class EpochBars(keras.callbacks.Callback):
    """A progress bar an epoch, with loss and Dice, and the validation's result behind it.

    Args:
        steps: training steps in an epoch.
        validation_steps: batches of a validation.
        epochs: in all.
    """

    def __init__(self, steps: int, validation_steps: int, epochs: int):
        super().__init__()
        self.steps, self.validation_steps, self.epochs, self.bar = steps, validation_steps, epochs, None

    def on_epoch_begin(self, epoch, logs=None):
        self.bar = progress(range(self.steps), f"epoch {epoch + 1}/{self.epochs}", self.steps, "step")

    def on_train_batch_end(self, batch, logs=None):
        self.bar.update(batch + 1 - self.bar.n)
        self.bar.set_postfix_str(f"loss {logs['loss']:.3f}, Dice {logs['dice']:.3f}", refresh=False)

    def on_test_batch_end(self, batch, logs=None):
        self.bar.set_postfix_str(
            f"validating, batch {batch + 1} of {self.validation_steps}", refresh=sys.stderr.isatty()
        )

    def on_epoch_end(self, epoch, logs=None):
        held_out = f"; held out: {logs['val_loss']:.3f}, {logs['val_dice']:.3f}" if "val_dice" in logs else ""
        self.bar.set_postfix_str(f"loss {logs['loss']:.3f}, Dice {logs['dice']:.3f}{held_out}", refresh=False)
        self.close()

    def close(self) -> None:
        """Leave the bar as it stands and go to a new line: what follows may be an error message."""
        if self.bar is not None:
            self.bar.close()


def best_weights_path(run: AnyPath) -> AnyPath:
    """The file with the best epoch's averaged weights."""
    return run / "checkpoints" / "best.weights.h5"


def read_history(run: AnyPath) -> list[dict]:
    """The finished epochs of a run, one dict each; empty when there is no history.csv.

    Raises:
        InputError: the file is damaged.
    """
    path = run / "history.csv"
    if not path.is_file():
        return []
    try:
        table = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        return [{k: int(v) if k == "epoch" else float(v) for k, v in row.items()} for row in table]
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error}); restore it, or train anew with another --out") from None


def write_history(run: AnyPath, rows: list[dict]) -> None:
    """Write history.csv whole."""
    text = io.StringIO()
    pd.DataFrame(rows).to_csv(text, index=False)
    write_atomically(run / "history.csv", text.getvalue().encode())
