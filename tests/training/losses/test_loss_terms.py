import numpy as np
import pytest
import tensorflow as tf
from helpers import loss_formulas as formulas

from gitseg_tf.config.loss import LOSSES, LossConfig
from gitseg_tf.training.losses import build_loss
from gitseg_tf.training.losses.distance import distance_to_outline

TERMS = sorted(LOSSES)
CASES = [(name, {}) for name in TERMS] + [
    ("dice", {"reduce_over": "sample"}),
    ("tversky", {"reduce_over": "sample", "alpha": 0.9, "beta": 0.2}),
    ("focal_tversky", {"reduce_over": "sample", "gamma": 2.0}),
    ("focal", {"alpha": 0.6, "gamma": 0.5}),
    ("top_k", {"fraction": 0.37}),
    ("boundary", {"reach": 2}),
]


def only(name, empty_labels="count", **keys):
    """The loss of a single term."""
    off = {"bce": {"weight": 0}, "dice": {"weight": 0}}
    return build_loss(LossConfig.model_validate(off | {name: {"weight": 1, **keys}, "empty_labels": empty_labels}))


def oracle(name, **keys):
    return lambda mask, logits: getattr(formulas, name)(np.asarray(mask, float), np.asarray(logits, float), **keys)


@pytest.fixture(scope="module")
def batch():
    """Masks of about a half, a fifth and a twentieth of the pixels; one sample lacks one label."""
    rng = np.random.default_rng(3)
    mask = (rng.random((3, 6, 5, 3)) < [0.5, 0.2, 0.05]).astype(np.float32)
    mask[0, ..., 1] = 0
    return mask, rng.normal(scale=3, size=mask.shape).astype(np.float32)


@pytest.mark.parametrize(("name", "keys"), CASES)
def test_a_loss_matches_its_formula(batch, name, keys):
    assert only(name, **keys)(*batch).numpy() == pytest.approx(oracle(name, **keys)(*batch), rel=2e-5)


@pytest.mark.parametrize(("name", "keys"), CASES)
def test_a_gradient_matches_finite_differences_of_the_formula(batch, name, keys):
    mask, logits = (part[:2, :4, :4] for part in batch)
    variable, formula = tf.Variable(logits), oracle(name, **keys)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(only(name, **keys)(mask, variable))
    numeric, step = np.zeros(logits.shape), 1e-5
    for index in np.ndindex(*logits.shape):
        change = np.zeros(logits.shape)
        change[index] = step
        up, down = (formula(mask, logits + sign * change).mean() for sign in (1, -1))
        numeric[index] = (up - down) / (2 * step)
    assert np.allclose(tape.gradient(loss, variable), numeric, atol=2e-6) and np.abs(numeric).max() > 1e-3


# Losses of these logits and masks by segmentation-models-pytorch 0.5 and MONAI 1.6 in float64; MONAI averages samples.
WAVE = (4 * np.sin(np.arange(36.0))).reshape(2, 2, 3, 3)
MASKS = (np.cos(1.7 * np.arange(36.0)) > 0.3).astype(float).reshape(2, 2, 3, 3)


@pytest.mark.parametrize(
    ("name", "keys", "published"),
    [
        ("bce", {}, 1.4018952),  # smp SoftBCEWithLogitsLoss
        ("dice", {}, 0.4788309),  # MONAI DiceLoss(batch=True, smooth_nr=1, smooth_dr=1)
        ("dice", {"reduce_over": "sample"}, (0.4366087 + 0.4557045) / 2),  # the same, batch=False
        ("tversky", {}, 0.4558556),  # MONAI TverskyLoss(alpha=.3, beta=.7, smooth .5), smp TverskyLoss
        ("tversky", {"reduce_over": "sample"}, (0.4085227 + 0.4387688) / 2),
        ("focal_tversky", {"gamma": 4 / 3}, 0.5543652),  # smp TverskyLoss(gamma=.75), label by label
        ("focal", {}, (0.6426822 + 0.6715984) / 2),  # MONAI and smp FocalLoss(alpha=.25, gamma=2)
        ("lovasz", {}, (2.5851901 + 2.5444136) / 2),  # smp LovaszLoss(per_image=True), label by label
        ("boundary", {}, 0.2971332),  # MONAI BoundaryLoss; in planes of 2 x 3 the constant is 0
    ],
)
def test_a_loss_matches_other_libraries(name, keys, published):
    assert only(name, **keys)(MASKS, WAVE).numpy().mean() == pytest.approx(published, abs=1e-5)


@pytest.mark.parametrize("name", TERMS)
def test_a_confident_correct_prediction_costs_nothing_and_a_wrong_one_the_most(batch, name):
    mask, logits = batch
    right, wrong = (only(name)(mask, scale * (200 * mask - 100)).numpy() for scale in (1, -1))
    assert right == pytest.approx(0, abs=1e-6) and (wrong > only(name)(mask, logits).numpy()).all()


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32])
@pytest.mark.parametrize("name", TERMS)
def test_extreme_logits_stay_finite_and_match_the_formula(batch, name, dtype):
    mask, _ = batch
    for sign in (1, -1):
        certain = tf.Variable(tf.cast(sign * 60000 * (2 * mask - 1), dtype))
        with tf.GradientTape() as tape:
            loss = only(name)(mask, certain)
        gradient = tf.cast(tape.gradient(loss, certain), tf.float32).numpy()
        assert loss.dtype == tf.float32 and np.isfinite(gradient).all()
        if name != "focal" or sign > 0:  # the formula of focal takes the logarithm of 0
            with np.errstate(divide="ignore", invalid="ignore"):
                expected = oracle(name)(mask, tf.cast(certain, tf.float32)) if name != "focal" else 0
            assert loss.numpy() == pytest.approx(expected, rel=1e-5, abs=1e-6)
        else:  # each foreground pixel costs 0.25 times its logit, each background pixel 0.75 times
            cost = np.abs(tf.cast(certain, tf.float32)) * np.where(mask == 1, 0.25, 0.75)
            assert loss.numpy() == pytest.approx(cost.mean((1, 2, 3)), rel=1e-5)


def test_label_smoothing_softens_the_targets(batch):
    mask, logits = batch
    smoothed = np.where(mask == 1, 0.95, 0.05)
    assert only("bce", smoothing=0.1)(*batch).numpy() == pytest.approx(formulas.bce(smoothed, logits), rel=1e-5)


def test_tversky_with_equal_weights_is_dice(batch):
    equal = only("tversky", alpha=0.5, beta=0.5)(*batch).numpy()
    assert equal == pytest.approx(only("dice")(*batch).numpy(), rel=1e-6)


def test_focal_with_gamma_zero_is_half_the_cross_entropy(batch):
    assert only("focal", alpha=0.5, gamma=0.0)(*batch).numpy() == pytest.approx(formulas.bce(*batch) / 2, rel=1e-5)


def test_top_k_ranges_from_the_cross_entropy_to_the_worst_pixel(batch):
    assert only("top_k", fraction=1.0)(*batch).numpy() == pytest.approx(formulas.bce(*batch), rel=1e-5)
    mask, logits = batch
    worst = np.logaddexp(0, np.where(mask == 1, -logits, logits)).max((1, 2, 3))
    assert only("top_k", fraction=1e-6)(*batch).numpy() == pytest.approx(worst, rel=1e-5)


def test_batch_dice_does_not_let_a_slice_without_the_label_dominate():
    mask = np.zeros((2, 8, 8, 3), np.float32)
    mask[0] = 1
    logits = np.where(mask > 0, 100.0, -100.0).astype(np.float32)
    logits[1, 0, 0] = 100  # one false positive pixel: 2 * 64 / (64 + 65) in the batch, but 0 / 1 in the sample
    assert only("dice")(mask, logits).numpy() == pytest.approx([1 - 129 / 130] * 2, rel=1e-4)
    assert only("dice", reduce_over="sample")(mask, logits).numpy() == pytest.approx([0, 1 - 1 / 2], abs=1e-6)


@pytest.mark.parametrize("name", ["boundary", "dice", "focal_tversky", "lovasz", "tversky"])
def test_labels_absent_from_the_sample_can_be_skipped(batch, name):
    mask, logits = batch
    mask = mask * [1.0, 1.0, 0.0]
    keys = {"reduce_over": "sample"} if name in ("dice", "tversky", "focal_tversky") else {}
    skipped, formula = only(name, "skip", **keys)(mask, logits).numpy(), oracle(name, **keys)
    # The mean over the present labels equals that over each of them repeated three times.
    for n in range(3):
        present = [k for k in range(3) if mask[n, ..., k].any()]
        alone = [formula(*(part[n : n + 1, ..., [k] * 3] for part in (mask, logits)))[0] for k in present]
        assert skipped[n] == pytest.approx(np.mean(alone), rel=1e-5)
    assert only(name, "skip", **keys)(0 * mask, logits).numpy() == pytest.approx(0)
    assert (only(name, **keys)(0 * mask, logits).numpy() > 0).all()


def test_a_batch_term_skips_a_label_only_if_the_whole_batch_lacks_it(batch):
    mask, logits = batch
    assert only("dice", "skip")(mask, logits).numpy() == pytest.approx(formulas.dice(mask, logits), rel=1e-5)
    doubled = [0, 1, 0, 1]  # the mean over labels 0 and 1
    expected = np.mean([formulas.dice(*(part[..., [k] * 3] for part in batch)) for k in doubled])
    assert only("dice", "skip")(mask * [1.0, 1.0, 0.0], logits).numpy() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("reach", [1, 5, 40])
@pytest.mark.parametrize("shape", [(2, 23, 18, 3), (2, 5, 12, 9, 3)])
def test_the_distance_map_matches_scipy_up_to_its_reach(shape, reach):
    mask = (np.random.default_rng(1).random(shape) < 0.03).astype(np.float32)
    mask[:, ..., :6, :7, 0] = 1
    mask[1, ..., 1:] = [0, 1]
    assert np.allclose(
        distance_to_outline(tf.constant(mask), reach, np.ones_like(mask)),
        formulas.outline_distance(mask, reach),
        atol=1e-5,
    )


def test_the_boundary_loss_has_the_gradient_of_the_signed_distance_map(batch):
    mask, logits = batch
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(only("boundary", reach=3)(mask, variable))
    signed = np.where(mask == 1, -1, 1) * formulas.outline_distance(mask, 3)
    slope = formulas.expit(logits) * formulas.expit(-logits)
    assert np.allclose(tape.gradient(loss, variable), signed * slope / mask[0].size, atol=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_a_volume_costs_the_same_as_its_voxels_in_a_plane(batch, name):
    mask, logits = batch
    if name == "boundary":  # neighbors matter, so the slice is repeated in all slices
        mask, logits = (np.repeat(part[:, None], 4, axis=1) for part in batch)
        assert only(name)(mask, logits).numpy() == pytest.approx(only(name)(*batch).numpy(), rel=1e-5)
    else:
        volume = [part.reshape(3, 2, 3, 5, 3) for part in batch]
        assert only(name)(*volume).numpy() == pytest.approx(only(name)(*batch).numpy(), rel=1e-5)
