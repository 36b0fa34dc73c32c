"""Whether a network can learn a few batches by heart: if not, something is broken, and no longer training helps."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import tensorflow as tf
import tf_keras as keras
from matplotlib.figure import Figure

from gitseg_tf.config import Config, save_config
from gitseg_tf.data.dataset import Dataset
from gitseg_tf.data.pipeline import training_windows
from gitseg_tf.data.service import using_service
from gitseg_tf.data.verify import naming_damaged_shards
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, as_path, write_atomically, written_locally
from gitseg_tf.models.weights import read_backbone_weights
from gitseg_tf.progress import progress
from gitseg_tf.sections.augment import AugmentConfig
from gitseg_tf.training.initial_loss import expected_initial_loss
from gitseg_tf.training.setup import compiled_model, set_up

STEPS = 500
DICE = 0.95
LOSS_SHARE = 0.1
CRITERION = f"a loss below {LOSS_SHARE:.0%} of the untrained network's and a Dice above {DICE}"


@dataclass(frozen=True)
class Verdict:
    """How far a network learned its few batches by heart.

    Attributes:
        passes: over the batches.
        loss, dice: of the last pass, as the training step sees them.
        used_loss, used_dice: of the same batches as the network is used: with the moving statistics of batch
            normalisation, without dropout.
        initial: the loss that an untrained network is expected to have.
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
        return _by_heart(self.loss, self.dice, self.initial)

    @property
    def passed(self) -> bool:
        """Whether the network met it as it is used, too."""
        return self.learned and _by_heart(self.used_loss, self.used_dice, self.initial)

    def lines(self) -> str:
        """What to tell the user: where the loss went, and what to look at if that is not near zero."""
        got = f"loss {self.initial:.3f} to {self.loss:.3g}, Dice {self.dice:.3f} after {self.passes} passes"
        if self.passed:
            return f"overfit    yes: {got}; wanted was {CRITERION}"
        if not math.isfinite(self.loss):
            cure = "a lower training.learning_rate, or --precision float32"
        elif self.learned:
            got = f"{got}, but loss {self.used_loss:.3g} and Dice {self.used_dice:.3f} when it is used"
            cure = "batch normalisation, whose moving statistics differ from the batches', and dropout"
        elif self.loss > 0.9 * self.initial:
            cure = (
                "the learning rate (gitseg lr-find), whether the weights are trained at all, and whether the masks "
                "belong to the images"
            )
        else:
            cure = (
                "whether the masks belong to the images (gitseg augment draws them), the size of the network, "
                "and --epochs, the passes over the batches"
            )
        return f"did not overfit: {got}, wanted was {CRITERION}; look at {cure}"


def overfit(
    config: Config,
    dataset: Dataset,
    out: str | AnyPath,
    batches: int,
    passes: int | None = None,
    say: Callable[[str], None] = print,
) -> Verdict:
    """Train on a few fixed batches over and over, as plainly as can be: the loss has to go to near zero.

    There is no random change, no weight decay, no average of the weights, and the learning rate stays at its peak. It
    ends as soon as the criterion is met, by the training step's own loss and Dice, and by the network as it is used
    afterwards. (Karpathy, "A Recipe for Training Neural Networks", 2019: "overfit one batch".)

    Args:
        config: the experiment.
        dataset: the first batches of its training folds are used.
        out: a new folder; gets overfit.yaml (the config), overfit.csv and overfit.png (the curves), and nothing else:
            it is no run.
        batches: how many, at least 1.
        passes: over the batches at most; None is as many as 500 steps need.
        say: takes lines for the user.

    Returns:
        The verdict.

    Raises:
        InputError: `batches` is below 1, the batches show no organ, or the config fits neither data nor devices.
    """
    if batches < 1:
        raise InputError(f"--overfit-batches {batches}: must be 1 or more")
    out, passes = as_path(out), passes or math.ceil(STEPS / batches)
    config = without_regularisation(config, passes)
    strategy, precision = set_up(config, dataset, say)
    model = compiled_model(config, strategy, precision, batches, read_backbone_weights(config))
    chief = strategy.extended.should_checkpoint
    if chief:
        out.mkdir(parents=True, exist_ok=True)
        save_config(config, out / "overfit.yaml")
    say(f"overfitting {model.name} to {batches} batches of {config.data.batch_size} windows, at most {passes} passes")
    with naming_damaged_shards(dataset), using_service(config.data.service):
        # training_windows gives as many batches as its epochs have.
        enough = config.model_copy(update={"training": config.training.model_copy(update={"epochs": batches})})
        windows = training_windows(dataset, enough).take(batches).cache()
        masks = [mask for _, mask in windows.as_numpy_iterator()]
        if not any(mask.any() for mask in masks):
            raise InputError(f"--overfit-batches {batches}: these batches show no organ; take more, or another seed")
        initial = float(np.mean([expected_initial_loss(model.loss_of, mask, model.output) for mask in masks]))
        verdict, curve = learn_by_heart(model, windows, batches, passes, initial)
    if chief:
        table = pd.DataFrame(curve)
        write_atomically(out / "overfit.csv", table.to_csv(index=False).encode())
        _draw(out / "overfit.png", table, verdict)
        say(f"curve      {out / 'overfit.png'}")
    return verdict


def without_regularisation(config: Config, passes: int) -> Config:
    """The experiment with nothing that keeps a network from learning by heart, for `passes` epochs."""
    off = AugmentConfig(**{n: {"p": 0.0} for n in AugmentConfig.model_fields if n not in ("on", "accelerator_warp")})
    loss = config.training.loss
    sharp = loss.model_copy(update={"bce": loss.bce.model_copy(update={"smoothing": 0.0})})
    plain = {"weight_decay": 0.0, "ema": 0.0, "swa": 0, "schedule": "constant", "warmup": 0.0, "epochs": passes}
    return config.model_copy(
        update={
            "augment": off,
            "model": config.model.model_copy(update={"dropout": 0.0}),
            "training": config.training.model_copy(update=plain | {"loss": sharp}),
            "evaluation": config.evaluation.model_copy(update={"threshold": 0.5}),
        }
    )


def learn_by_heart(
    model: keras.Model, windows: tf.data.Dataset, batches: int, passes: int, initial: float
) -> tuple[Verdict, list[dict]]:
    """Train a compiled model on the same batches until it knows them or the passes are over.

    Args:
        model: compiled, with a metric "dice".
        windows: the batches (image, mask).
        batches: their number.
        passes: over them at most.
        initial: loss of the untrained network.

    Returns:
        The verdict, and for each pass {"pass", "loss", "dice"}.
    """
    watch = _Watch(windows, batches, passes, initial)
    model.fit(windows.repeat(), epochs=passes, steps_per_epoch=batches, verbose=0, callbacks=[watch])
    last = watch.curve[-1]
    used = watch.used if watch.used and watch.at == last["pass"] else _use(model, windows, batches)
    return Verdict(last["pass"], last["loss"], last["dice"], used["loss"], used["dice"], initial), watch.curve


class _Watch(keras.callbacks.Callback):
    """Ends the training once the criterion is met, or the loss is no number."""

    def __init__(self, windows: tf.data.Dataset, batches: int, passes: int, initial: float):
        super().__init__()
        self.windows, self.batches, self.initial = windows, batches, initial
        self.curve, self.used, self.at = [], None, 0
        self.bar = progress(range(passes), "overfit", passes, "pass")

    def on_epoch_end(self, epoch, logs=None):
        self.curve.append({"pass": epoch + 1, "loss": logs["loss"], "dice": logs["dice"]})
        self.bar.update(epoch + 1 - self.bar.n)
        self.bar.set_postfix_str(f"loss {logs['loss']:.3g}, Dice {logs['dice']:.3f}", refresh=False)
        if not math.isfinite(logs["loss"]):
            self.model.stop_training = True
        elif _by_heart(logs["loss"], logs["dice"], self.initial):
            self.used, self.at = _use(self.model, self.windows, self.batches), epoch + 1
            self.model.stop_training = _by_heart(self.used["loss"], self.used["dice"], self.initial)

    def on_train_end(self, logs=None):
        self.bar.close()


def _use(model: keras.Model, windows: tf.data.Dataset, batches: int) -> dict[str, float]:
    return model.evaluate(windows, steps=batches, verbose=0, return_dict=True)


def _by_heart(loss: float, dice: float, initial: float) -> bool:
    return loss < LOSS_SHARE * initial and dice > DICE


def _draw(path: AnyPath, table: pd.DataFrame, verdict: Verdict) -> None:
    figure = Figure(figsize=(8, 3.2), dpi=110, layout="constrained")
    for axes, name, goal in zip(
        figure.subplots(1, 2), ("loss", "dice"), (LOSS_SHARE * verdict.initial, DICE), strict=True
    ):
        axes.plot(table["pass"], table[name], color="#2a78d6", marker="." if len(table) < 3 else None)
        axes.axhline(goal, color="#8c8c96", linestyle="--", label="wanted")
        axes.set(xlabel="pass over the batches", title={"loss": "Loss", "dice": "Dice"}[name])
        axes.grid(alpha=0.2)
        axes.legend(frameon=False)
    if (table["loss"] > 0).all():
        figure.axes[0].set_yscale("log")
    with written_locally(path) as file:
        figure.savefig(file)
