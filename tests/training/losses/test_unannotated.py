"""Voxels and labels with mask -1: the loss equals its formula over the counted voxels only."""

import os

import numpy as np
import pytest
import tensorflow as tf
from helpers import loss_formulas as formulas
from scipy.special import expit

from gitseg_tf.config.loss import LOSSES, LossConfig
from gitseg_tf.training.losses import build_loss, training_loss

# Read when XLA first compiles: less optimization compiles faster and does not affect what can be compiled.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
OF_SAMPLES = {
    "dice": {"reduce_over": "sample"},
    "tversky": {"reduce_over": "sample"},
    "focal_tversky": {"reduce_over": "sample"},
    "lovasz": {},
    "boundary": {"reach": 3},
}
OF_BATCHES = ("dice", "tversky", "focal_tversky")


def only(name, **keys):
    off = {"bce": {"weight": 0}, "dice": {"weight": 0}}
    return build_loss(LossConfig.model_validate(off | {name: {"weight": 1, **keys}}))


@pytest.fixture(scope="module")
def batch():
    """Four samples of four labels with ignored voxels and unannotated labels.

    Label 3 is annotated in no sample, label 2 only in the first, where it is absent. Sample 3 has no annotation.
    """
    rng = np.random.default_rng(5)
    mask = (rng.random((4, 7, 6, 4)) < [0.5, 0.2, 0.0, 0.3]).astype(np.float32)
    mask[rng.random((4, 7, 6)) < 0.2] = -1
    mask[..., 3] = -1
    mask[1:, ..., 2] = -1
    mask[1, ..., 0] = -1
    mask[3] = -1
    return mask, rng.normal(scale=3, size=mask.shape).astype(np.float32)


def counted_voxels(mask, logits):
    """The counted values, as a batch of one sample with one row and one label."""
    kept = mask >= 0
    return tuple(part[kept].astype(float).reshape(1, 1, -1, 1) for part in (mask, logits))


def nearest(point, others):
    return min((np.hypot(*(point - other)) for other in others), default=np.inf)


def boundary(mask, logits, reach):
    """The mean over the counted voxels of a plane, with distances by brute force."""
    inside, outside = np.argwhere(mask == 1), np.argwhere(mask == 0)
    costs = []
    for point in np.argwhere(mask >= 0):
        value = mask[tuple(point)]
        distance = nearest(point, outside) - 1 if value else nearest(point, inside)
        costs.append(min(distance, reach) * abs(expit(float(logits[tuple(point)])) - value))
    return np.mean(costs)


def label_cost(name, mask, logits, **keys):
    """The cost of one label, for a plane or a batch of planes; None if no voxel counts."""
    if not (mask >= 0).any():
        return None
    if name == "boundary":
        return boundary(mask, logits, **keys)
    keys = {key: value for key, value in keys.items() if key != "reduce_over"}
    return getattr(formulas, name)(*counted_voxels(mask, logits), **keys)[0]


def mean_over_labels(name, mask, logits, **keys):
    costs = [label_cost(name, mask[..., k], logits[..., k], **keys) for k in range(mask.shape[-1])]
    known = [cost for cost in costs if cost is not None]
    return np.mean(known) if known else 0.0


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("bce", {}),
        ("bce", {"smoothing": 0.2}),
        ("focal", {}),
        ("focal", {"alpha": 0.6}),
        ("top_k", {}),
        ("top_k", {"fraction": 0.37}),
    ],
)
def test_voxelwise_terms_average_over_counted_voxels(batch, name, keys):
    expected = []
    for sample in zip(*batch, strict=True):
        mask, logits = counted_voxels(*sample)
        if "smoothing" in keys:
            mask = mask * 0.8 + 0.1
        formula_keys = {key: value for key, value in keys.items() if key != "smoothing"}
        expected.append(getattr(formulas, name)(mask, logits, **formula_keys)[0] if mask.size else 0.0)
    assert only(name, **keys)(*batch).numpy() == pytest.approx(expected, rel=2e-5)
    assert expected[3] == 0


@pytest.mark.parametrize("name", OF_SAMPLES)
def test_samplewise_terms_average_over_the_labels_annotated_in_each_sample(batch, name):
    keys = OF_SAMPLES[name]
    expected = [mean_over_labels(name, *sample, **keys) for sample in zip(*batch, strict=True)]
    assert only(name, **keys)(*batch).numpy() == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("name", OF_BATCHES)
def test_batchwise_terms_average_over_the_labels_annotated_in_any_sample(batch, name):
    assert only(name)(*batch).numpy() == pytest.approx(mean_over_labels(name, *batch), rel=2e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_voxels_have_zero_gradient(batch, name):
    mask, logits = batch
    certain = np.where(mask < 0, np.inf, logits).astype(np.float32)
    for values in (logits, certain):
        variable = tf.Variable(values)
        with tf.GradientTape() as tape:
            loss = only(name)(mask, variable)
        gradient = tape.gradient(loss, variable).numpy()
        assert (gradient[mask < 0] == 0).all() and np.abs(gradient[mask >= 0]).max() > 1e-4
        assert np.isfinite(loss).all()


@pytest.mark.parametrize("name", LOSSES)
def test_logits_of_ignored_voxels_do_not_change_the_loss(batch, name):
    mask, logits = batch
    other = np.where(mask < 0, 50.0, logits).astype(np.float32)
    assert np.array_equal(only(name)(mask, logits), only(name)(mask, other))


@pytest.mark.parametrize("name", LOSSES)
def test_an_unannotated_label_does_not_change_the_loss(batch, name):
    mask, logits = batch[0][:3], batch[1][:3]
    without = only(name)(mask[..., :3], logits[..., :3]).numpy()
    assert only(name)(mask, logits).numpy() == pytest.approx(without, rel=1e-6)


@pytest.mark.parametrize("name", OF_BATCHES)
def test_a_label_annotated_in_one_sample_has_the_same_share_of_a_batchwise_loss(name):
    # The other labels get the same gradient as with all annotations, and the rare one that of its own sample.
    rng = np.random.default_rng(8)
    full = (rng.random((4, 7, 6, 3)) < 0.4).astype(np.float32)
    logits = rng.normal(size=full.shape).astype(np.float32)
    part = full.copy()
    part[1:, ..., 2] = -1

    def gradient(mask, values):
        variable = tf.Variable(values)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(only(name)(mask, variable))
        return tape.gradient(loss, variable).numpy()

    complete, partial = gradient(full, logits), gradient(part, logits)
    assert partial[..., :2] == pytest.approx(complete[..., :2], rel=1e-5, abs=1e-9)
    alone = gradient(full[:1, ..., 2:], logits[:1, ..., 2:])
    assert partial[:1, ..., 2:] == pytest.approx(alone / 3, rel=1e-4, abs=1e-8)


def test_skipping_empty_labels_also_skips_unannotated_ones(batch):
    loss = build_loss(LossConfig.model_validate({"bce": {"weight": 0}, "empty_labels": "skip"}))
    present = [label_cost("dice", batch[0][..., k], batch[1][..., k]) for k in (0, 1)]
    assert loss(*batch).numpy() == pytest.approx(np.mean(present), rel=2e-5)


def test_all_terms_compile_with_xla_to_the_same_loss_and_gradient(batch):
    loss = build_loss(LossConfig.model_validate({name: {"weight": 1.0} for name in LOSSES}))

    def step(mask, logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(mask, logits)
        return value, tape.gradient(value, logits)

    arguments = [tf.constant(part) for part in batch]
    plain, compiled = step(*arguments), tf.function(step, jit_compile=True, autograph=False)(*arguments)
    assert all(np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(plain, compiled, strict=True))


def test_the_presence_head_learns_only_from_known_labels():
    logits = np.zeros((3, 4, 4, 3), np.float32)
    mask = np.zeros((3, 4, 4, 3), np.float32)
    mask[0, 1, 1, 0] = 1  # the first label is present, the others absent
    mask[1, ..., 0] = -1  # not annotated
    mask[1, 0, 0, 1], mask[1, 0, 0, 2], mask[1, 1, 1, 2] = -1, -1, 1  # partly ignored: unknown, and present
    mask[2] = -1
    presence = np.array([[2.0, 1.0, -1.0], [0.5, 3.0, -2.0], [1.0, 1.0, 1.0]], np.float32)

    def cross_entropy(present, logit):
        return np.logaddexp(0, -logit if present else logit)

    first = [cross_entropy(True, 2.0), cross_entropy(False, 1.0), cross_entropy(False, -1.0)]
    expected = np.array([np.mean(first), cross_entropy(True, -2.0), 0.0])
    variable = tf.Variable(presence)
    with tf.GradientTape() as tape:
        config = LossConfig.model_validate({"dice": {"weight": 0}, "presence": {"weight": 1.0}})
        cost = training_loss(config)(mask, {"logits": logits, "presence": variable})
    without = training_loss(config)(mask, logits).numpy()
    assert cost.numpy() - without == pytest.approx(expected, rel=1e-5)
    gradient = tape.gradient(cost, variable).numpy()
    assert (gradient == 0).tolist() == [[False] * 3, [True, True, False], [True] * 3]


def test_lower_resolutions_skip_ignored_voxels():
    rng = np.random.default_rng(2)
    mask = (rng.random((2, 8, 8, 2)) < 0.4).astype(np.float32)
    mask[0, ..., 1], mask[:, :3] = -1, -1
    logits, half = (rng.normal(size=(2, 8 // k, 8 // k, 2)).astype(np.float32) for k in (1, 2))
    loss = build_loss(LossConfig())
    expected = 2 / 3 * loss(mask, logits).numpy() + 1 / 3 * loss(mask[:, 1::2, 1::2], half).numpy()
    outputs = {"logits": tf.constant(logits), "deep1": tf.constant(half)}
    assert training_loss(LossConfig())(mask, outputs).numpy() == pytest.approx(expected, rel=1e-6)
