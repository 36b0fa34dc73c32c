import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.cli import main
from gitseg_tf.training.search.lr_find import RangeTest, draw_range_test, range_test, rising, smooth, suggest

CURVATURES = np.array([1.0, 4.0, 20.0, 100.0], np.float32)
STABLE = 2 / CURVATURES.max()


def quadratic(wrapped=lambda optimizer: optimizer, steps=200):
    """A range test on 0.5 sum(h w^2), on which gradient descent converges only at rates below 2 / max(h)."""
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(4, use_bias=False, kernel_initializer="ones")])
    schedule = rising(1e-5, 10.0, steps)
    model.compile(
        wrapped(keras.optimizers.SGD(schedule)),
        lambda _, w: 0.5 * tf.reduce_sum(CURVATURES * tf.cast(w, tf.float32) ** 2, -1),
    )
    ones = tf.data.Dataset.from_tensors((tf.ones([1, 1]), tf.ones([1, 1]))).repeat()
    return range_test(model, ones, schedule, steps)


@pytest.fixture(scope="module")
def range_result():
    return quadratic()


def test_the_rates_rise_exponentially_from_the_lowest(range_result):
    steps = len(range_result.rates)
    assert range_result.rates == pytest.approx(1e-5 * 1e6 ** (np.arange(steps) / 199), rel=1e-6)
    assert len(range_result.losses) == steps


def test_the_losses_match_gradient_descent_at_these_rates(range_result):
    w, expected = np.ones(4), []
    for rate in range_result.rates:
        expected.append(0.5 * (CURVATURES * w**2).sum())
        w = w - rate * CURVATURES * w
    assert range_result.losses == pytest.approx(expected, rel=1e-3)


def test_the_range_test_stops_soon_after_the_stable_rate(range_result):
    assert range_result.diverged and STABLE < range_result.rates[-1] < 8 * STABLE < 1


def test_the_suggestion_is_slightly_below_the_stable_rate(range_result):
    found = suggest(range_result)
    # Beyond the stable rate it takes some steps until the tiny loss has grown.
    assert STABLE < found.minimum < 5 * STABLE
    assert STABLE / 10 < found.rate < STABLE and found.rate == found.minimum / 10 and found.steepest < STABLE


def test_loss_scaling_does_not_change_the_range_test(range_result):
    scaled = quadratic(keras.mixed_precision.LossScaleOptimizer)
    assert scaled.losses == pytest.approx(range_result.losses, rel=1e-3)


def curve(losses):
    return RangeTest(np.geomspace(1e-6, 1, len(losses)), np.asarray(losses, float), False)


def test_the_steepest_descent_is_measured_on_a_log_scale():
    exponents = np.linspace(-6, 0, 200)
    falling = 1 / (1 + np.exp(4 * (exponents + 3))) + np.where(exponents > -1, 2 * (exponents + 1), 0)
    found = suggest(curve(falling))
    assert np.log10(found.steepest) == pytest.approx(-3, abs=0.1)
    assert np.log10(found.minimum) == pytest.approx(-1.1, abs=0.3)


@pytest.mark.parametrize("losses", [np.ones(50), np.linspace(1, 9, 50), [1.0] * 30 + [np.nan], [np.nan] * 20])
def test_a_loss_that_never_decreases_gives_no_suggestion(losses, refusal):
    assert "the loss did not decrease at any rate" in refusal(suggest, curve(losses))


def test_smoothing_is_symmetric_and_skips_nan():
    losses = np.r_[np.zeros(40), 1, np.zeros(40), np.nan]
    smoothed = smooth(losses)
    assert np.allclose(smoothed[:81], smoothed[:81][::-1]) and np.nanargmax(smoothed) == 40
    assert smoothed[:81].sum() == pytest.approx(1) and np.isnan(smoothed[81])


def test_a_range_test_with_a_non_finite_last_loss_can_be_plotted(tmp_path):
    test = curve([*np.linspace(2, 1, 60), np.inf])
    draw_range_test(tmp_path / "lr_find.png", test, suggest(test))
    assert (tmp_path / "lr_find.png").read_bytes().startswith(b"\x89PNG")


ARGUMENTS = [
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


@pytest.mark.slow
def test_lr_find_suggests_a_rate_with_a_strategy_and_float16(tiny_dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    more = ["--strategy", "mirrored", "--precision", "mixed_float16", "--steps", "30", "--lowest", "1e-4"]
    assert main(["lr-find", "--data", str(tiny_dataset.root), *ARGUMENTS, *more]) == 0
    out = tmp_path / "runs" / "default-lr-find"
    assert {path.name for path in out.iterdir()} == {"lr_find.csv", "lr_find.png", "lr_find.yaml"}
    table = pd.read_csv(out / "lr_find.csv")
    assert table["learning_rate"].iloc[0] == pytest.approx(1e-4) and table["loss"].iloc[0] > table["loss"].min()
    printed = capsys.readouterr().out
    rate = table["learning_rate"][table["smoothed"].idxmin()] / 10
    assert f"--set training.learning_rate={rate:.2g}" in printed.splitlines()[-1]
    assert "--strategy mirrored --precision mixed_float16 --fold 1" in printed.splitlines()[-1]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--lowest", "1", "--highest", "0.1"], "0 < lowest < highest, got lowest 1 and highest 0.1"),
        (["--steps", "3"], "steps must be >= 10, got 3"),
    ],
)
def test_an_invalid_range_is_refused(tiny_dataset, more, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["lr-find", "--data", str(tiny_dataset.root), *more]) == 1
    assert expected in capsys.readouterr().err and not any(tmp_path.iterdir())
