import os

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from helpers import loss_formulas as formulas

from gitseg_tf.config.loss import LOSSES, LossConfig
from gitseg_tf.training.losses import build_loss, training_loss

# Read when XLA first compiles: less optimization compiles faster and does not affect what can be compiled.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
TERMS = sorted(LOSSES)


def configured(empty_labels="count", presence=0.0, deep=0.5, **weights):
    """A loss config with these weights and a weight of 0 for all other terms."""
    terms = {name: {"weight": weights.get(name, 0)} for name in [*TERMS]} | {"presence": {"weight": presence}}
    return LossConfig.model_validate(terms | {"deep": {"decay": deep}, "empty_labels": empty_labels})


def random_batch(shape, seed=3):
    rng = np.random.default_rng(seed)
    mask = (rng.random(shape) < [0.5, 0.2, 0.05]).astype(np.float32)
    return mask, rng.normal(scale=3, size=shape).astype(np.float32)


def test_the_loss_is_the_weighted_sum_of_its_terms():
    mask, logits = random_batch((2, 6, 5, 3))
    parts = {name: getattr(formulas, name)(mask, logits.astype(float)) for name in TERMS}
    weights = {name: 0.3 + k for k, name in enumerate(TERMS)}
    expected = sum(weights[name] * parts[name] for name in TERMS)
    assert build_loss(configured(**weights))(mask, logits).numpy() == pytest.approx(expected, rel=1e-5)


def test_the_default_loss_is_cross_entropy_plus_batch_dice():
    mask, logits = random_batch((3, 6, 5, 3))
    expected = formulas.bce(mask, logits) + formulas.dice(mask, logits)
    assert build_loss(LossConfig())(mask, logits).numpy() == pytest.approx(expected, rel=1e-5)


def test_zero_logits_cost_log_2_plus_the_dice_of_one_half():
    mask = np.zeros((2, 4, 4, 3), np.float32)
    mask[..., 0] = 1
    # 32 pixels: the first label fills them, (2 * 16 + 1) / (16 + 32 + 1); the others are absent, 1 / (16 + 1).
    dice = np.mean([1 - 33 / 49, 1 - 1 / 17, 1 - 1 / 17])
    assert build_loss(LossConfig())(mask, 0 * mask).numpy() == pytest.approx([np.log(2) + dice] * 2, rel=1e-6)


def test_all_terms_compile_with_xla_to_the_same_loss_and_gradient():
    mask, logits = map(tf.constant, random_batch((2, 9, 8, 3)))
    loss = build_loss(configured("skip", **dict.fromkeys(TERMS, 1.0)))

    def step(mask, logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(mask, logits)
        return value, tape.gradient(value, logits)

    plain, compiled = step(mask, logits), tf.function(step, jit_compile=True, autograph=False)(mask, logits)
    assert all(np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(plain, compiled, strict=True))
    assert np.abs(plain[1]).max() > 1e-2


@pytest.mark.parametrize("name", TERMS)
def test_training_with_each_term_lowers_it_and_segments_the_labels(name):
    # Each label is a rectangle, bright in its own channel.
    mask = np.zeros((4, 12, 12, 3), np.float32)
    mask[:, 2:9, 1:8, 0], mask[1:, 5:11, 4:10, 1], mask[2:, 1:6, 6:11, 2] = 1, 1, 1
    image = mask + np.random.default_rng(0).normal(scale=0.2, size=mask.shape).astype(np.float32)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((12, 12, 3)), keras.layers.Conv2D(3, 1)])
    loss, optimizer = build_loss(configured(**{name: 1.0})), keras.optimizers.Adam(1.0)
    costs = []
    for _ in range(25):
        with tf.GradientTape() as tape:
            costs.append(tf.reduce_mean(loss(mask, model(image))))
        optimizer.apply_gradients(
            zip(tape.gradient(costs[-1], model.trainable_variables), model.trainable_variables, strict=True)
        )
    found = model(image).numpy() > 0
    assert costs[-1] < 0.5 * costs[0]
    # With the boundary loss alone the outermost pixels of a label have no cost either way.
    enough = 0.6 if name == "boundary" else 0.8
    assert 2 * (found & (mask > 0)).sum() / (found.sum() + mask.sum()) > enough


def test_each_lower_resolution_output_has_half_the_weight():
    mask, logits = random_batch((2, 8, 8, 3))
    half, quarter = (np.random.default_rng(k).normal(size=(2, 8 // s, 8 // s, 3)) for k, s in ((1, 2), (2, 4)))
    # From each block of the mask, the pixel nearest to its center, below and to the right.
    levels = [(mask, logits), (mask[:, 1::2, 1::2], half), (mask[:, 2::4, 2::4], quarter)]
    expected = np.dot([4 / 7, 2 / 7, 1 / 7], [formulas.bce(*level) for level in levels])
    outputs = {"logits": logits, "deep2": tf.constant(quarter, tf.float32), "deep1": tf.constant(half, tf.float32)}
    assert training_loss(configured(bce=1.0))(mask, outputs).numpy() == pytest.approx(expected, rel=1e-5)
    alone = training_loss(configured(bce=1.0, deep=0.0))(mask, outputs).numpy()
    assert alone == pytest.approx(formulas.bce(mask, logits), rel=1e-5)


def test_lower_resolution_outputs_of_a_volume_can_keep_all_slices():
    mask, logits = random_batch((1, 4, 8, 8, 3))
    deep = tf.constant(np.random.default_rng(1).normal(size=(1, 4, 4, 4, 3)), tf.float32)
    full = formulas.bce(mask.reshape(1, 32, 8, 3), logits.reshape(1, 32, 8, 3))
    low = formulas.bce(mask[:, :, 1::2, 1::2].reshape(1, 16, 4, 3), deep.numpy().reshape(1, 16, 4, 3))
    cost = training_loss(configured(bce=1.0))(mask, {"logits": logits, "deep1": deep}).numpy()
    assert cost == pytest.approx(2 / 3 * full + 1 / 3 * low, rel=1e-5)


def test_an_output_size_that_does_not_divide_the_mask_is_refused():
    mask, logits = random_batch((1, 8, 8, 3))
    with pytest.raises(ValueError, match="does not divide"):
        training_loss(configured(bce=1.0))(mask, {"logits": logits, "deep1": tf.zeros((1, 3, 4, 3))})


def test_the_presence_head_learns_which_labels_occur_in_the_window():
    mask, logits = random_batch((2, 6, 6, 3))
    mask[0, ..., 1:], mask[1, ..., 0] = 0, 0
    mask[:, 2, 3, 2] = 1
    seen = np.array([[2.0, 1.0, -1.0], [0.5, 3.0, -60000.0]], np.float32)
    present = np.array([[1, 0, 1], [0, 1, 1]])
    presence = np.logaddexp(0, np.where(present, -seen, seen).astype(float)).mean(1)
    outputs = {"logits": logits, "presence": tf.constant(seen, tf.float32)}
    cost = training_loss(configured(bce=1.0, presence=0.2))(mask, outputs).numpy()
    assert cost == pytest.approx(formulas.bce(mask, logits) + 0.2 * presence, rel=1e-5)
    ignored = training_loss(configured(bce=1.0))(mask, outputs).numpy()
    assert ignored == pytest.approx(formulas.bce(mask, logits), rel=1e-5)


def test_a_network_can_output_logits_only():
    mask, logits = random_batch((2, 6, 5, 3))
    one, other = (loss(LossConfig())(mask, logits).numpy() for loss in (build_loss, training_loss))
    assert np.array_equal(one, other)


FRACTIONS = np.array([0.05, 0.2, 0.0])
RARE = 1 / (1 + np.exp(3))  # the probability of logit -3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bce", -np.mean(FRACTIONS * np.log(RARE) + (1 - FRACTIONS) * np.log(1 - RARE))),
        ("dice", np.mean(1 - 2 * FRACTIONS * RARE / (FRACTIONS + RARE))),
        (
            "focal",
            -np.mean(
                0.25 * FRACTIONS * (1 - RARE) ** 2 * np.log(RARE) + 0.75 * (1 - FRACTIONS) * RARE**2 * np.log(1 - RARE)
            ),
        ),
        # All foreground pixels have the error 1 + 3 and are missed, the others have none.
        ("lovasz", (4 + 4 + 0) / 3),
        # The tenth of all pixels with the highest cost: the foreground, 0.25 / 3, and then background.
        ("top_k", -(0.25 / 3 * np.log(RARE) + (0.1 - 0.25 / 3) * np.log(1 - RARE)) / 0.1),
    ],
)
def test_the_initial_loss_follows_from_the_bias_and_the_label_fractions(name, expected):
    rank = np.arange(128 * 128).reshape(1, 128, 128, 1)
    mask = rank < np.round(FRACTIONS * 128 * 128)
    found = build_loss(configured(**{name: 1.0}))(mask, np.full(mask.shape, -3.0, np.float32))
    assert float(found[0]) == pytest.approx(expected, rel=2e-3)
