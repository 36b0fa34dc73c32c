import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.cli import main
from gitseg_tf.config.loss import LossConfig
from gitseg_tf.labels import UWMGI
from gitseg_tf.training.losses import build_loss
from gitseg_tf.training.metrics import StreamingDice
from gitseg_tf.training.search.overfit import Verdict, overfit_batches

INITIAL = 1.1


class DiffersInInference(keras.layers.Layer):
    """Returns its input in training and something else in inference."""

    def call(self, inputs, training=False):
        return inputs if training else inputs * 0.0 - 3.0


@pytest.fixture(scope="module")
def bright():
    """A batch whose labels are where the image is bright."""
    image = np.random.default_rng(0).choice([-3.0, -1.0, 1.0, 3.0], (4, 16, 16, 1)).astype(np.float32)
    return image, (image > [-2, 0, 2]).astype(np.float32)


def verdict(batch, passes=100, rate=0.3, after=None, trainable=True):
    convolution = keras.layers.Conv2D(3, 1, kernel_initializer="zeros", trainable=trainable)
    model = keras.Sequential([keras.Input([16, 16, 1]), convolution, *([after] if after else [])])
    model.compile(keras.optimizers.Adam(rate), build_loss(LossConfig()), weighted_metrics=[StreamingDice(UWMGI.names)])
    return overfit_batches(model, tf.data.Dataset.from_tensors(batch), batches=1, passes=passes, initial=INITIAL)


def test_a_learnable_batch_passes_and_stops_early(bright):
    found, curve = verdict(bright)
    assert found.passed and found.passes == len(curve) < 100
    assert found.loss == curve[-1]["loss"] < 0.1 * INITIAL and found.dice == curve[-1]["dice"] > 0.95
    assert found.lines().startswith("overfit    yes") and "loss below 10%" in found.lines()


def test_frozen_weights_fail_the_overfit_test(bright):
    found, _ = verdict(bright, passes=3, trainable=False)
    assert not found.passed and "whether the weights are trained" in found.lines()


def test_mismatched_masks_fail_the_overfit_test(bright):
    image, mask = bright
    found, _ = verdict((image, np.random.default_rng(1).permutation(mask.reshape(-1, 3)).reshape(mask.shape)))
    assert not found.passed and "whether the masks belong to the images" in found.lines()


def test_a_network_that_differs_in_inference_fails_the_overfit_test(bright):
    found, _ = verdict(bright, after=DiffersInInference())
    assert found.learned and not found.passed and found.passes == 100
    assert "in inference" in found.lines() and "batch normalization" in found.lines()


def test_a_non_finite_loss_stops_the_overfit_test(bright):
    found, curve = verdict((bright[0] * np.nan, bright[1]))
    assert len(curve) == 1 and not found.passed and "training.learning_rate" in found.lines()


@pytest.mark.parametrize(
    ("loss", "dice", "used_dice", "passed"),
    [(0.1, 0.96, 0.96, True), (0.12, 0.96, 0.96, False), (0.1, 0.94, 0.96, False), (0.1, 0.96, 0.94, False)],
)
def test_passing_requires_the_loss_and_both_dice_scores(loss, dice, used_dice, passed):
    assert Verdict(5, loss, dice, 0.1, used_dice, INITIAL).passed is passed


TINY = [
    "--fold",
    "1",
    "--batch-size",
    "4",
    "--set",
    "data.input_size=[32, 32]",
    "--set",
    "model.filters=4",
    "--set",
    "model.levels=2",
]


@pytest.fixture
def overfitted(tiny_dataset, tmp_path, monkeypatch):
    """overfitted(...) runs the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *more: main(["train", "--data", str(tiny_dataset.root), *TINY, "--overfit-batches", *more])


@pytest.mark.slow
def test_overfit_batches_passes_for_a_network_that_learns(overfitted, tmp_path, capsys):
    assert overfitted("1", "--set", "training.learning_rate=0.05", "--precision", "float32") == 0
    assert "overfit    yes" in capsys.readouterr().out
    out = tmp_path / "runs" / "default-overfit"
    assert {path.name for path in out.iterdir()} == {"overfit.yaml", "overfit.csv", "overfit.png"}
    table = pd.read_csv(out / "overfit.csv")
    assert table["loss"].iloc[-1] < 0.1 * table["loss"].iloc[0] and table["dice"].iloc[-1] > 0.95
    assert main(["evaluate", str(out)]) == 1 and "is not a run" in capsys.readouterr().err


def test_too_few_passes_are_a_one_line_error(overfitted, tmp_path, capsys):
    assert overfitted("2", "--epochs", "1") == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("gitseg: did not overfit: loss 1.")
    assert len(pd.read_csv(tmp_path / "runs/default-overfit/overfit.csv")) == 1


def test_zero_batches_and_resume_are_refused(overfitted, tmp_path, capsys):
    assert overfitted("0") == 1 and "batches must be >= 1, got 0" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_info:
        overfitted("1", "--resume")
    assert exit_info.value.code == 2 and not any(tmp_path.iterdir())
