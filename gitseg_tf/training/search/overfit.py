"""Check that a network can overfit a few batches: if it cannot, something is broken that training does not fix."""

import logging
import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import tensorflow as tf
import tf_keras as keras
from matplotlib.figure import Figure

from gitseg_tf.config import Config, save_config
from gitseg_tf.config.augment import AugmentConfig
from gitseg_tf.core.paths import AnyPath, as_path, write_atomically, written_locally
from gitseg_tf.core.progress import progress
from gitseg_tf.data.pipeline.batches import training_windows
from gitseg_tf.data.pipeline.service import using_service
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.data.tfrecords.verify import naming_damaged_shards
from gitseg_tf.errors import ConfigError
from gitseg_tf.training.callbacks.initial_loss import expected_initial_loss
from gitseg_tf.training.initial_weights import read_initial_weights
from gitseg_tf.training.setup import compiled_model, set_up

logger = logging.getLogger(__name__)

STEPS = 500
DICE = 0.95
LOSS_SHARE = 0.1
CRITERION = f"a loss below {LOSS_SHARE:.0%} of the untrained network's and a Dice above {DICE}"


@dataclass(frozen=True)
class Verdict:
    """How well a network overfitted a few batches.

    Attributes:
        passes: number of passes over the batches.
        loss, dice: results of the last pass, in training mode.
        used_loss, used_dice: results of the same batches in inference mode, with the moving statistics of batch
            normalization and without dropout.
        initial: the expected loss of an untrained network.
    """

    passes: int
    loss: float
    dice: float
    used_loss: float
    used_dice: float
    initial: float

    @property
    def learned(self) -> bool:
        """Whether training met the criterion."""
        return _overfitted(self.loss, self.dice, self.initial)

    @property
    def passed(self) -> bool:
        """Whether the network met the criterion in inference, too."""
        return self.learned and _overfitted(self.used_loss, self.used_dice, self.initial)

    def lines(self) -> str:
        """Describe how far the loss decreased, and what to check if it is not near zero."""
        got = f"loss {self.initial:.3f} to {self.loss:.3g}, Dice {self.dice:.3f} after {self.passes} passes"
        if self.passed:
            return f"overfit    yes: {got}; the criterion is {CRITERION}"
        if not math.isfinite(self.loss):
            check = "a lower training.learning_rate, or training.precision float32"
        elif self.learned:
            got = f"{got}, but loss {self.used_loss:.3g} and Dice {self.used_dice:.3f} in inference"
            check = "batch normalization, whose moving statistics differ from the batches', and dropout"
        elif self.loss > 0.9 * self.initial:
            check = (
                "the learning rate (gitseg lr-find), whether the weights are trained at all, and whether the masks "
                "belong to the images"
            )
        else:
            check = (
                "whether the masks belong to the images (gitseg augment draws them), the size of the network, "
                "and the number of passes over the batches"
            )
        return f"did not overfit: {got}, the criterion is {CRITERION}; check {check}"


def overfit(
    config: Config,
    dataset: Dataset,
    out: str | AnyPath,
    *,
    batches: int,
    passes: int | None = None,
) -> Verdict:
    """Train repeatedly on a few fixed batches without regularization: the loss must approach zero.

    There is no augmentation, weight decay or weight average, and the learning rate stays at its peak. Training ends as
    soon as loss and Dice meet the criterion, first in training mode and then in inference mode (Karpathy, "A Recipe for
    Training Neural Networks", 2019: "overfit one batch").

    Args:
        config: the experiment.
        dataset: the first batches of its training folds are used.
        out: a new folder for overfit.yaml (the config), overfit.csv and overfit.png (the curves); it is not a run.
        batches: number of batches, at least 1.
        passes: maximum number of passes over the batches; None is the number that gives 500 steps.

    Returns:
        The verdict.

    Raises:
        ConfigError: `batches` is below 1, the batches show no label, or the config does not fit the data or the
            devices.
    """
    if batches < 1:
        raise ConfigError(f"batches must be >= 1, got {batches}")
    out, passes = as_path(out), passes or math.ceil(STEPS / batches)
    dataset = replace(dataset, teacher=None)  # a network cannot fit both the annotation and a teacher that differs
    config = without_regularization(config, passes)
    config = config.for_dataset(dataset.labels, dataset.channels, dataset.intensities)
    strategy, precision = set_up(config, dataset)
    weights = read_initial_weights(config, dataset).weights
    model = compiled_model(config, strategy, precision, steps=batches, weights=weights)
    chief = strategy.extended.should_checkpoint
    if chief:
        out.mkdir(parents=True, exist_ok=True)
        save_config(config, out / "overfit.yaml")
    size = config.data.batch_size
    logger.info("overfitting %s to %d batches of %d windows, at most %d passes", model.name, batches, size, passes)
    with naming_damaged_shards(dataset), using_service(config.data.service):
        # training_windows ends after the last epoch, so set enough epochs.
        enough = config.model_copy(update={"training": config.training.model_copy(update={"epochs": batches})})
        windows = training_windows(dataset, enough).take(batches).cache()
        masks = [mask for _, mask in windows.as_numpy_iterator()]
        if not any((mask > 0).any() for mask in masks):
            raise ConfigError(f"the first {batches} batches show no label; use more batches or another seed")
        initial = float(np.mean([expected_initial_loss(model.loss_of, mask, model.output) for mask in masks]))
        verdict, curve = overfit_batches(model, windows, batches=batches, passes=passes, initial=initial)
    if chief:
        table = pd.DataFrame(curve)
        write_atomically(out / "overfit.csv", table.to_csv(index=False).encode())
        _draw(out / "overfit.png", table, verdict)
        logger.info("curve      %s", out / "overfit.png")
    return verdict


def without_regularization(config: Config, passes: int) -> Config:
    """Remove everything that keeps a network from overfitting from an experiment, and set `passes` epochs."""
    off = AugmentConfig(
        **{n: {"p": 0.0} for n in AugmentConfig.model_fields if n not in ("backend", "tensorflow_warp")}
    )
    loss = config.training.loss
    sharp = loss.model_copy(update={"bce": loss.bce.model_copy(update={"smoothing": 0.0})})
    plain = {
        "weight_decay": 0.0,
        "ema_decay": 0.0,
        "swa_epochs": 0,
        "schedule": "constant",
        "warmup": 0.0,
        "epochs": passes,
    }
    return config.model_copy(
        update={
            "augment": off,
            "model": config.model.model_copy(update={"dropout": 0.0}),
            "training": config.training.model_copy(update=plain | {"loss": sharp}),
            "evaluation": config.evaluation.model_copy(update={"threshold": 0.5}),
        }
    )


def overfit_batches(
    model: keras.Model, windows: tf.data.Dataset, *, batches: int, passes: int, initial: float
) -> tuple[Verdict, list[dict]]:
    """Train a compiled model on the same batches until it overfits them, or for all passes.

    Args:
        model: a compiled model with a metric "dice".
        windows: the batches (image, mask).
        batches: number of batches.
        passes: maximum number of passes over the batches.
        initial: expected loss of the untrained network.

    Returns:
        The verdict, and for each pass {"pass", "loss", "dice"}.
    """
    watch = _Watch(windows, batches, passes, initial)
    model.fit(windows.repeat(), epochs=passes, steps_per_epoch=batches, verbose=0, callbacks=[watch])
    last = watch.curve[-1]
    used = watch.used if watch.used and watch.at == last["pass"] else _evaluate_batches(model, windows, batches)
    return Verdict(last["pass"], last["loss"], last["dice"], used["loss"], used["dice"], initial), watch.curve


class _Watch(keras.callbacks.Callback):
    """Stops training once the criterion is met or the loss is not finite."""

    def __init__(self, windows: tf.data.Dataset, batches: int, passes: int, initial: float):
        super().__init__()
        self.windows, self.batches, self.initial = windows, batches, initial
        self.curve: list[dict] = []
        self.used: dict[str, float] | None = None
        self.at = 0
        self.bar = progress(range(passes), "overfit", total=passes, unit="pass")

    def on_epoch_end(self, epoch, logs=None):
        self.curve.append({"pass": epoch + 1, "loss": logs["loss"], "dice": logs["dice"]})
        self.bar.update(epoch + 1 - self.bar.n)
        self.bar.set_postfix_str(f"loss {logs['loss']:.3g}, Dice {logs['dice']:.3f}", refresh=False)
        if not math.isfinite(logs["loss"]):
            self.model.stop_training = True
        elif _overfitted(logs["loss"], logs["dice"], self.initial):
            used = _evaluate_batches(self.model, self.windows, self.batches)
            self.used, self.at = used, epoch + 1
            self.model.stop_training = _overfitted(used["loss"], used["dice"], self.initial)

    def on_train_end(self, logs=None):
        self.bar.close()


def _evaluate_batches(model: keras.Model, windows: tf.data.Dataset, batches: int) -> dict[str, float]:
    return model.evaluate(windows, steps=batches, verbose=0, return_dict=True)


def _overfitted(loss: float, dice: float, initial: float) -> bool:
    return loss < LOSS_SHARE * initial and dice > DICE


def _draw(path: AnyPath, table: pd.DataFrame, verdict: Verdict) -> None:
    figure = Figure(figsize=(8, 3.2), dpi=110, layout="constrained")
    for axes, name, goal in zip(
        figure.subplots(1, 2), ("loss", "dice"), (LOSS_SHARE * verdict.initial, DICE), strict=True
    ):
        axes.plot(table["pass"], table[name], color="#2a78d6", marker="." if len(table) < 3 else None)
        axes.axhline(goal, color="#8c8c96", linestyle="--", label="criterion")
        axes.set(xlabel="pass over the batches", title={"loss": "Loss", "dice": "Dice"}[name])
        axes.grid(alpha=0.2)
        axes.legend(frameon=False)
    if (table["loss"] > 0).all():
        figure.axes[0].set_yscale("log")
    with written_locally(path) as file:
        figure.savefig(file)
