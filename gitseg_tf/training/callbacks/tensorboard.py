"""Log curves and images of each epoch to TensorBoard and other loggers."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

import numpy as np
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.config import Config
from gitseg_tf.core.paths import AnyPath
from gitseg_tf.training.callbacks.overlays import Overlays
from gitseg_tf.training.callbacks.recorder import RunRecorder
from gitseg_tf.training.callbacks.wandb_log import WandbLogger


class Logger(Protocol):
    """A destination for the curves and images of each epoch."""

    def write(self, epoch: int, scalars: dict[str, float], pictures: dict[str, np.ndarray]) -> None:
        """Log an epoch.

        Args:
            epoch: counted from 0.
            scalars: loss, dice, dice_LABEL, val_..., learning_rate, windows_per_second.
            pictures: {title: uint8 [H, W, 3] RGB}.
        """


class TensorBoardLogger:
    """Writes event files to logs/train and logs/validation, so that TensorBoard draws both curves in one chart.

    Tags are epoch_loss, epoch_dice, ..., epoch_learning_rate and windows_per_second; images are overlays/TITLE. The
    step is the epoch, from 0. A resumed run adds new files to the existing ones.

    Args:
        folder: the folder logs/ of the run.
    """

    def __init__(self, folder: AnyPath):
        self._writers = {part: tf.summary.create_file_writer(str(folder / part)) for part in ("train", "validation")}

    def write(self, epoch: int, scalars: dict[str, float], pictures: dict[str, np.ndarray]) -> None:
        """Log an epoch, see `Logger`."""
        for name, value in scalars.items():
            of_validation = name.startswith("val_")
            tag = name if name == "windows_per_second" else f"epoch_{name.removeprefix('val_')}"
            with self._writers["validation" if of_validation else "train"].as_default(epoch):
                tf.summary.scalar(tag, value)
        with self._writers["validation"].as_default(epoch):
            for title, picture in pictures.items():
                tf.summary.image(f"overlays/{title}", picture[None])
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Flush and close the files."""
        for writer in self._writers.values():
            writer.close()


@contextmanager
def open_loggers(run: AnyPath, config: Config, strategy: tf.distribute.Strategy) -> Iterator[list[Logger]]:
    """Open the loggers of a run, and close them at the end; workers other than the chief have none.

    Args:
        run: the run's folder.
        config: training.wandb adds Weights & Biases.
        strategy: determines whether this worker is the chief.

    Raises:
        DependencyError: Weights & Biases does not start or is not installed.
    """
    with ExitStack() as stack:
        loggers: list[Logger] = []
        if strategy.extended.should_checkpoint:
            tensorboard = TensorBoardLogger(run / "logs")
            loggers.append(tensorboard)
            stack.callback(tensorboard.close)
            if config.training.wandb is not None:
                wandb = WandbLogger(run, config)
                loggers.append(wandb)
                stack.push(wandb)
        yield loggers


class EpochLog(keras.callbacks.Callback):
    """Passes each epoch's row of the history, the throughput and the overlays to the loggers.

    Args:
        loggers: the loggers; may be empty.
        recorder: its latest row is logged; its `on_epoch_end` must run first.
        overlays: their images are logged; None without a held-out fold.
        batch_size: number of windows in a step.
    """

    def __init__(self, loggers: list[Logger], recorder: RunRecorder, overlays: Overlays | None, batch_size: int):
        super().__init__()
        self._loggers, self._recorder, self._overlays, self._batch_size = loggers, recorder, overlays, batch_size
        self._began = 0.0
        self._ends: list[float] = []

    def on_epoch_begin(self, epoch, logs=None):
        self._began, self._ends = time.perf_counter(), []

    def on_train_batch_end(self, batch, logs=None):
        self._ends.append(time.perf_counter())

    def on_epoch_end(self, epoch, logs=None):
        if not self._loggers:
            return
        row = {name: value for name, value in self._recorder.rows[-1].items() if name not in ("epoch", "seconds")}
        row["windows_per_second"] = self._throughput()
        for logger in self._loggers:
            logger.write(epoch, row, self._overlays.pictures if self._overlays else {})

    def _throughput(self) -> float:
        steps = len(self._ends)
        if steps > 1:
            # Ignore the first step of an epoch, which waits for data and, in the first epoch, compiles.
            return (steps - 1) * self._batch_size / (self._ends[-1] - self._ends[0])
        return self._batch_size / (self._ends[0] - self._began)
