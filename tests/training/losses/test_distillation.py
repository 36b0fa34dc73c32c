"""The loss against a teacher's probabilities, compared with numpy."""

import numpy as np
import pytest
import tensorflow as tf

from gitseg_tf.config.loss import LossConfig
from gitseg_tf.training.losses import build_loss, training_loss
from gitseg_tf.training.losses.distillation import soft_target_loss


def batch(seed=0, shape=(3, 6, 5, 2)):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 5, shape) / 4, rng.normal(0, 2, shape).astype(np.float32)


def expected_loss(targets, logits):
    """Mean cross-entropy of each sample, plus the mean over the labels of 1 - Dice of the batch, of counted voxels."""
    counted, p = targets >= 0, 1 / (1 + np.exp(-logits.astype(float)))
    costs = -(targets * np.log(p) + (1 - targets) * np.log(1 - p))
    entropy = [costs[n][counted[n]].mean() if counted[n].any() else 0.0 for n in range(len(costs))]
    dice = []
    for k in range(targets.shape[-1]):
        t, q = (x[..., k][counted[..., k]] for x in (targets, p))
        if t.size:
            dice.append(1 - (q.sum() + t.sum() - np.abs(q - t).sum() + 1) / (q.sum() + t.sum() + 1))
    return np.array(entropy) + np.mean(dice)


def test_soft_targets_match_numpy():
    targets, logits = batch()
    assert soft_target_loss(targets, logits).numpy() == pytest.approx(expected_loss(targets, logits), rel=1e-5)
    targets[0, :3] = targets[1] = targets[..., 1] = -1  # ignored voxels, a sample, and a label
    assert soft_target_loss(targets, logits).numpy() == pytest.approx(expected_loss(targets, logits), rel=1e-5)


def test_the_loss_is_smallest_at_the_probabilities_of_the_teacher():
    """Soft Dice would be smaller for probabilities nearer to 0 and 1."""
    targets = np.full((1, 4, 4, 1), 0.75, np.float32)
    costs = [float(soft_target_loss(targets, tf.fill([1, 4, 4, 1], np.log(p / (1 - p))))[0]) for p in (0.6, 0.75, 0.9)]
    assert costs[1] < costs[0] - 0.05 and costs[1] < costs[2] - 0.05


def test_excluded_voxels_have_no_gradient():
    targets, logits = batch()
    targets[0, 2] = -1
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        cost = tf.reduce_sum(soft_target_loss(targets, variable))
    gradient = tape.gradient(cost, variable).numpy()
    assert not gradient[0, 2].any() and gradient[0, 3].all()


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_annotation_and_teacher_are_weighted(weight):
    targets, logits = batch()
    annotation = np.random.default_rng(1).integers(-1, 2, logits.shape).astype(np.float32)
    config = LossConfig.model_validate({"distillation": {"weight": weight}})
    mask = np.concatenate([annotation, targets], -1).astype(np.float32)
    alone = build_loss(config)(tf.constant(annotation), tf.constant(logits)).numpy()
    expected = (1 - weight) * alone + weight * expected_loss(targets, logits)
    assert training_loss(config)(tf.constant(mask), tf.constant(logits)).numpy() == pytest.approx(expected, rel=1e-5)
    # A mask without a teacher, as in validation, is not affected.
    assert training_loss(config)(tf.constant(annotation), tf.constant(logits)).numpy() == pytest.approx(alone, rel=1e-6)


def test_a_scan_without_annotation_has_the_loss_of_the_teacher_alone():
    targets, logits = batch()
    mask = np.concatenate([np.full_like(targets, -1), targets], -1).astype(np.float32)
    outputs = {"logits": tf.constant(logits), "presence": tf.zeros((3, 2))}
    cost = training_loss(LossConfig())(tf.constant(mask), outputs).numpy()
    assert cost == pytest.approx(0.5 * expected_loss(targets, logits), rel=1e-5)


def test_lower_resolutions_learn_from_the_teacher_too():
    targets, logits = batch(shape=(2, 4, 4, 2))
    annotation = np.full_like(targets, -1)
    deep = np.random.default_rng(2).normal(size=(2, 2, 2, 2)).astype(np.float32)
    mask = tf.constant(np.concatenate([annotation, targets], -1), tf.float32)
    cost = training_loss(LossConfig())(mask, {"logits": tf.constant(logits), "deep1": tf.constant(deep)}).numpy()
    fine, coarse = expected_loss(targets, logits), expected_loss(targets[:, 1::2, 1::2], deep)
    assert cost == pytest.approx(0.5 * (2 / 3 * fine + 1 / 3 * coarse), rel=1e-5)
