import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit, log_expit

from gitseg_tf.training.losses import bce_dice_loss


def expected(mask, logits, bce_weight=1.0, dice_weight=1.0):
    """The loss of each sample by the formulas of the papers, in float64."""
    mask, logits = np.asarray(mask, float), np.asarray(logits, float)
    bce = -(mask * log_expit(logits) + (1 - mask) * log_expit(-logits)).mean((1, 2, 3))
    costs = []
    for k in range(3):
        p, t = expit(logits[..., k]), mask[..., k]
        costs.append(1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
    return bce_weight * bce + dice_weight * np.mean(costs)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(3)
    mask = (rng.random((3, 6, 5, 3)) < [0.5, 0.2, 0.05]).astype(np.float32)
    return mask, rng.normal(scale=3, size=mask.shape).astype(np.float32)


@pytest.mark.parametrize("weights", [(1, 1), (0, 1), (1, 0), (0.3, 2)])
def test_the_loss_is_that_of_the_formula(batch, weights):
    assert bce_dice_loss(*weights)(*batch).numpy() == pytest.approx(expected(*batch, *weights), rel=1e-5)


def test_undecided_everywhere_costs_log_2_and_the_dice_of_one_half():
    mask = np.zeros((2, 4, 4, 3), np.float32)
    mask[..., 0] = 1
    # 32 pixels: the first organ fills them, (2 * 16 + 1) / (16 + 32 + 1); the others are absent, 1 / (16 + 1).
    dice = np.mean([1 - 33 / 49, 1 - 1 / 17, 1 - 1 / 17])
    assert bce_dice_loss()(mask, np.zeros_like(mask)).numpy() == pytest.approx([np.log(2) + dice] * 2, rel=1e-6)


def test_a_right_and_certain_prediction_costs_nothing(batch):
    mask, _ = batch
    assert bce_dice_loss()(mask, 200 * mask - 100).numpy() == pytest.approx(0, abs=1e-6)


def test_an_absent_organ_that_is_not_predicted_costs_nothing(batch):
    mask, _ = batch
    mask = mask * [1.0, 0.0, 1.0]
    assert bce_dice_loss()(mask, 200 * mask - 100).numpy() == pytest.approx(0, abs=1e-6)


def test_a_slice_where_an_organ_is_absent_does_not_outweigh_those_where_it_is():
    mask = np.zeros((2, 8, 8, 3), np.float32)
    mask[0] = 1
    logits = np.where(mask > 0, 100.0, -100.0).astype(np.float32)
    logits[1, 0, 0] = 100  # one false pixel: 2 * 64 of 64 + 65, not nothing of one
    assert bce_dice_loss(0, 1)(mask, logits).numpy() == pytest.approx([1 - 129 / 130] * 2, rel=1e-4)


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16, tf.float16])
def test_extreme_logits_stay_finite(batch, dtype):
    mask, _ = batch
    wrong = tf.Variable(tf.cast(1e4 * (1 - 2 * mask), dtype))
    with tf.GradientTape() as tape:
        loss = bce_dice_loss()(mask, wrong)
    gradient = tf.cast(tape.gradient(loss, wrong), tf.float32).numpy()
    assert loss.dtype == tf.float32 and np.isfinite(gradient).all()
    assert loss.numpy() == pytest.approx(expected(mask, tf.cast(wrong, tf.float32)), rel=1e-5)


def test_the_gradient_is_that_of_finite_differences(batch):
    mask, logits = (part[:2, :3, :4] for part in batch)
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(bce_dice_loss(0.7, 1.3)(mask, variable))
    numeric, step = np.zeros(logits.shape), 1e-5
    for place in np.ndindex(*logits.shape):
        change = np.zeros(logits.shape)
        change[place] = step
        up, down = (expected(mask, logits + sign * change, 0.7, 1.3).mean() for sign in (1, -1))
        numeric[place] = (up - down) / (2 * step)
    assert np.allclose(tape.gradient(loss, variable), numeric, atol=1e-6) and np.abs(numeric).max() > 1e-3
