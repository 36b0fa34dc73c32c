"""The learning-rate range test (Smith 2017, Cyclical Learning Rates, arXiv:1506.01186)."""

import logging
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import tensorflow as tf
import tf_keras as keras
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter1d

from gitseg_tf.config import Config, save_config
from gitseg_tf.core.paths import AnyPath, as_path, write_atomically, written_locally
from gitseg_tf.core.progress import progress
from gitseg_tf.core.text import plural
from gitseg_tf.data.pipeline.batches import training_windows
from gitseg_tf.data.pipeline.epochs import steps_per_epoch
from gitseg_tf.data.pipeline.service import using_service
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.data.tfrecords.verify import naming_damaged_shards
from gitseg_tf.errors import ConfigError, RunError
from gitseg_tf.training.initial_weights import read_initial_weights
from gitseg_tf.training.setup import compiled_model, set_up

logger = logging.getLogger(__name__)

_MEMORY = 0.9
_BLOW_UP = 4.0
_FEWEST = 10


@dataclass(frozen=True)
class RangeTest:
    """Loss over learning rate.

    Attributes:
        rates: float [S], increasing exponentially.
        losses: float [S], the loss of each step's batch; the last one may not be finite.
        diverged: the loss blew up before the highest rate was reached.
    """

    rates: np.ndarray
    losses: np.ndarray
    diverged: bool


@dataclass(frozen=True)
class Suggestion:
    """The learning rate suggested by a range test.

    Attributes:
        rate: the suggestion, a tenth of the rate at the minimum of the smoothed loss.
        steepest: the rate where the smoothed loss falls fastest over the logarithm of the rate, for comparison.
        minimum: the rate at the minimum.
        smoothed: float [S], the loss smoothed symmetrically over the steps.
    """

    rate: float
    steepest: float
    minimum: float
    smoothed: np.ndarray


def lr_find(
    config: Config,
    dataset: Dataset,
    out: str | AnyPath,
    *,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
) -> Suggestion:
    """Train with an increasing learning rate until the loss blows up, and suggest a learning rate.

    Everything but the rate is the same as in training: network, loss, optimizer, batches, augmentation.

    Args:
        config: the experiment.
        dataset: its training folds are used.
        out: a new folder for lr_find.yaml (the config), lr_find.csv and lr_find.png.
        lowest, highest: learning rates of the first and the last step.
        steps: maximum number of steps; the test ends when a loss exceeds 4 times the best smoothed one.

    Returns:
        The suggestion.

    Raises:
        ConfigError: invalid rates or steps, or the config does not fit the data or the devices.
        RunError: the loss did not decrease at any rate.
    """
    if not 0 < lowest < highest:
        raise ConfigError(f"the rates must satisfy 0 < lowest < highest, got lowest {lowest:g} and highest {highest:g}")
    if steps < _FEWEST:
        raise ConfigError(f"steps must be >= {_FEWEST}, got {steps}")
    out = as_path(out)
    config = config.for_dataset(dataset.labels, dataset.channels, dataset.intensities)
    config = _long_enough(config, dataset, steps)
    strategy, precision = set_up(config, dataset)
    weights = read_initial_weights(config, dataset).weights
    schedule = rising(lowest, highest, steps)
    model = compiled_model(config, strategy, precision, steps=steps, weights=weights, schedule=schedule)
    logger.info("testing    %s, rates from %g to %g in %s", model.name, lowest, highest, plural(steps, "step"))
    with naming_damaged_shards(dataset), using_service(config.data.service):
        test = range_test(model, training_windows(dataset, config), schedule, steps)
    chief = strategy.extended.should_checkpoint
    if chief:
        out.mkdir(parents=True, exist_ok=True)
        save_config(config, out / "lr_find.yaml")
        table = pd.DataFrame({"learning_rate": test.rates, "loss": test.losses, "smoothed": smooth(test.losses)})
        write_atomically(out / "lr_find.csv", table.to_csv(index=False).encode())
    suggestion = suggest(test)
    if chief:
        draw_range_test(out / "lr_find.png", test, suggestion)
    return suggestion


def rising(lowest: float, highest: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Create a schedule that increases the rate exponentially from the lowest to the highest."""
    return keras.optimizers.schedules.ExponentialDecay(lowest, steps - 1, highest / lowest)


def range_test(model: keras.Model, windows: tf.data.Dataset, schedule, steps: int) -> RangeTest:
    """Train a compiled model with an increasing rate until the loss blows up.

    Args:
        model: compiled with the schedule; its weights are useless afterwards.
        windows: at least `steps` batches.
        schedule: from `rising`.
        steps: maximum number of steps.

    Returns:
        The rates and losses of the steps.
    """
    watch = _Watch(schedule, steps)
    model.fit(windows, steps_per_epoch=steps, verbose=0, callbacks=[watch])
    return RangeTest(np.array(watch.rates), np.array(watch.losses), watch.diverged)


def suggest(test: RangeTest) -> Suggestion:
    """Choose a learning rate.

    Args:
        test: from `range_test`.

    Returns:
        A tenth of the rate at the minimum of the smoothed loss, because at the minimum the loss is about to blow up.
        The rate of steepest descent is reported too, but depends on the noise of single batches.

    Raises:
        RunError: the loss did not decrease at any rate.
    """
    smoothed = smooth(test.losses)
    known = np.isfinite(smoothed)
    lowest = int(np.where(known, smoothed, np.inf).argmin())
    start = smoothed[: max(len(smoothed) // 10, 1)].mean()
    if not lowest or not start - smoothed[lowest] > 0.05 * abs(start):
        tried = f"{test.rates[0]:.2g} to {test.rates[-1]:.2g}"
        fix = "check the loss of the untrained network, try to overfit a few batches, or choose another range"
        raise RunError(f"the loss did not decrease at any rate from {tried}; {fix}")
    # The gradient per step is a gradient over the logarithm of the rate.
    falling = np.gradient(smoothed[: lowest + 1])
    minimum = float(test.rates[lowest])
    return Suggestion(minimum / 10, float(test.rates[falling.argmin()]), minimum, smoothed)


def smooth(losses: np.ndarray) -> np.ndarray:
    """Smooth losses symmetrically with a Gaussian whose sigma is 1/50 of the steps, but at least one step.

    Args:
        losses: float [S]; values from the first non-finite one on are not changed.

    Returns:
        float [S].
    """
    finite = np.isfinite(losses)
    count = len(losses) if finite.all() else int(finite.argmin())
    smoothed = np.array(losses, float)
    if count:
        smoothed[:count] = gaussian_filter1d(smoothed[:count], max(len(losses) / 50, 1), mode="nearest")
    return smoothed


def draw_range_test(path: AnyPath, test: RangeTest, suggestion: Suggestion) -> None:
    """Plot loss over learning rate, with the suggestion.

    Args:
        path: the PNG; an existing file is replaced.
        test: the rates and losses.
        suggestion: from `suggest`.
    """
    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.semilogx(test.rates, test.losses, color="#8c8c96", alpha=0.5, linewidth=1, label="loss of each step")
    axes.semilogx(test.rates, suggestion.smoothed, color="#2a78d6", linewidth=2, label="smoothed")
    axes.axvline(suggestion.rate, color="#d55e00", label=f"suggested: {suggestion.rate:.2g}, a tenth of the minimum")
    axes.axvline(
        suggestion.steepest, color="#d55e00", linestyle=":", label=f"steepest descent: {suggestion.steepest:.2g}"
    )
    low, high = np.nanmin(test.losses), suggestion.smoothed[: max(len(test.rates) // 10, 1)].mean()
    axes.set_ylim(low - 0.1 * (high - low), high + 0.5 * (high - low))
    axes.set(xlabel="learning rate", ylabel="loss")
    axes.grid(alpha=0.2)
    axes.legend(loc="lower left")
    with written_locally(path) as file:
        figure.savefig(file)


class _Watch(keras.callbacks.Callback):
    """Records the loss of each step and its learning rate."""

    def __init__(self, schedule, steps: int):
        super().__init__()
        self.schedule = schedule
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.diverged = False
        self.best, self.average = math.inf, 0.0
        self.bar = progress(range(steps), "lr-find", total=steps, unit="step")

    def on_train_batch_begin(self, batch, logs=None):
        # Keras reports the mean since the last reset, but each step's own loss is needed.
        self.model.reset_metrics()
        # Do not use the number of the batch: float16 skips steps whose gradient overflows.
        self.rates.append(float(self.schedule(self.model.optimizer.iterations)))

    def on_train_batch_end(self, batch, logs=None):
        loss = logs["loss"]
        self.losses.append(loss)
        self.bar.update(batch + 1 - self.bar.n)
        self.bar.set_postfix_str(f"rate {self.rates[-1]:.1e}, loss {loss:.3g}", refresh=False)
        if not loss <= self.best + (_BLOW_UP - 1) * abs(self.best):
            self.diverged = self.model.stop_training = True
            return
        self.average = _MEMORY * self.average + (1 - _MEMORY) * loss
        self.best = min(self.best, self.average / (1 - _MEMORY ** (batch + 1)))

    def on_train_end(self, logs=None):
        self.bar.close()


def _long_enough(config: Config, dataset: Dataset, steps: int) -> Config:
    epochs = math.ceil(steps / steps_per_epoch(dataset, config))
    return config.model_copy(update={"training": config.training.model_copy(update={"epochs": epochs})})
