"""The learning-rate range test (Smith 2017, Cyclical Learning Rates, arXiv:1506.01186)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import tensorflow as tf
import tf_keras as keras
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter1d

from gitseg_tf.config import Config, save_config
from gitseg_tf.data.dataset import Dataset
from gitseg_tf.data.pipeline import steps_per_epoch, training_windows
from gitseg_tf.data.service import using_service
from gitseg_tf.data.verify import naming_damaged_shards
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, as_path, write_atomically, written_locally
from gitseg_tf.models.weights import read_backbone_weights
from gitseg_tf.progress import progress
from gitseg_tf.training.setup import compiled_model, set_up

_MEMORY = 0.9
_BLOW_UP = 4.0
_FEWEST = 10


@dataclass(frozen=True)
class RangeTest:
    """Loss against learning rate.

    Attributes:
        rates: float [S], rising exponentially.
        losses: float [S], of the batch of each step; the last may be no number.
        diverged: the loss left its best value far behind before the highest rate was reached.
    """

    rates: np.ndarray
    losses: np.ndarray
    diverged: bool


@dataclass(frozen=True)
class Suggestion:
    """What a range test suggests.

    Attributes:
        rate: a tenth of the rate at the minimum of the smoothed loss: the suggestion.
        steepest: the rate where the smoothed loss falls fastest over the logarithm of the rate, for comparison.
        minimum: the rate at the minimum.
        smoothed: float [S], the loss smoothed over the steps, those around a step alike.
    """

    rate: float
    steepest: float
    minimum: float
    smoothed: np.ndarray


def lr_find(
    config: Config,
    dataset: Dataset,
    out: str | AnyPath,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
    say: Callable[[str], None] = print,
) -> Suggestion:
    """Train with a learning rate that rises until the loss blows up, and suggest the rate to train with.

    Everything but the rate is as in training: network, loss, optimizer, batches, random changes.

    Args:
        config: the experiment.
        dataset: its training folds are used.
        out: a new folder; gets lr_find.yaml (the config), lr_find.csv and lr_find.png.
        lowest, highest: the rates of the first and the last step.
        steps: at most; the test ends when a loss exceeds 4 times the best smoothed one.
        say: takes lines for the user.

    Returns:
        The suggestion.

    Raises:
        InputError: the range is no range, the loss fell at no rate, or the config fits neither data nor devices.
    """
    if not 0 < lowest < highest:
        raise InputError(f"--lowest {lowest:g} and --highest {highest:g}: give two rates, the lower one above zero")
    if steps < _FEWEST:
        raise InputError(f"--steps {steps}: must be {_FEWEST} or more")
    out = as_path(out)
    config = _long_enough(config, dataset, steps)
    strategy, precision = set_up(config, dataset, say)
    weights = read_backbone_weights(config)
    model = compiled_model(config, strategy, precision, steps, weights, rising(lowest, highest, steps))
    say(f"testing    {model.name}, rates from {lowest:g} to {highest:g} in {steps} steps")
    with naming_damaged_shards(dataset), using_service(config.data.service):
        test = range_test(model, training_windows(dataset, config), rising(lowest, highest, steps), steps)
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
    """Rates that rise exponentially from the lowest to the highest; as a schedule, for every optimizer and strategy."""
    return keras.optimizers.schedules.ExponentialDecay(lowest, steps - 1, highest / lowest)


def range_test(model: keras.Model, windows: tf.data.Dataset, schedule, steps: int) -> RangeTest:
    """Train a compiled model with a rate that rises, until the loss blows up.

    Args:
        model: compiled with the schedule; its weights are worth nothing afterwards.
        windows: at least `steps` batches.
        schedule: from `rising`.
        steps: at most.

    Returns:
        What was tried.
    """
    watch = _Watch(schedule, steps)
    model.fit(windows, steps_per_epoch=steps, verbose=0, callbacks=[watch])
    return RangeTest(np.array(watch.rates), np.array(watch.losses), watch.diverged)


def suggest(test: RangeTest) -> Suggestion:
    """Choose a learning rate.

    Args:
        test: from `range_test`.

    Returns:
        A tenth of the rate at the minimum of the smoothed loss. At the minimum itself the loss is about to blow up; the
        steepest descent is given beside, but hangs on the noise of single batches.

    Raises:
        InputError: the loss fell at no rate.
    """
    smoothed = smooth(test.losses)
    known = np.isfinite(smoothed)
    lowest = int(np.where(known, smoothed, np.inf).argmin())
    start = smoothed[: max(len(smoothed) // 10, 1)].mean()
    if not lowest or not start - smoothed[lowest] > 0.05 * abs(start):
        tried = f"{test.rates[0]:.2g} to {test.rates[-1]:.2g}"
        cure = "look at the loss of the untrained network and at --overfit-batches, or give another range"
        raise InputError(f"lr-find: the loss fell at no rate of {tried}; {cure}")
    # Over the steps, which is over the logarithm of the rate.
    falling = np.gradient(smoothed[: lowest + 1])
    minimum = float(test.rates[lowest])
    return Suggestion(minimum / 10, float(test.rates[falling.argmin()]), minimum, smoothed)


def smooth(losses: np.ndarray) -> np.ndarray:
    """Smooth losses over the steps by a Gaussian, of a fiftieth of the steps and at least one step, without delay.

    Args:
        losses: float [S]; what comes after the first that is no number stays as it is.

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
    """Draw the losses over the rates, with the suggestion.

    Args:
        path: the PNG; replaced if it is there.
        test, suggestion: what is drawn.
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
    """Keeps the loss of each step and the rate that it was made with."""

    def __init__(self, schedule, steps: int):
        super().__init__()
        self.schedule = schedule
        self.rates, self.losses, self.diverged = [], [], False
        self.best, self.average = math.inf, 0.0
        self.bar = progress(range(steps), "lr-find", steps, "step")

    def on_train_batch_begin(self, batch, logs=None):
        # Keras reports the mean since the last reset: a step of its own is wanted.
        self.model.reset_metrics()
        # Not the number of the batch: float16 leaves out steps whose gradient overflows.
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
