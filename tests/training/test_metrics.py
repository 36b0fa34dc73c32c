import numpy as np
import pytest
from scipy.special import expit

from gitseg_tf.training.metrics import StreamingDice

LABELS = ("large_bowel", "small_bowel", "stomach")


def expected(masks, logits, threshold=0.5):
    """The Dice of each label over all pixels."""
    truth, inside = np.asarray(masks) > 0, expit(np.asarray(logits, float)) >= threshold
    return [
        2 * (truth & inside)[..., k].sum() / (truth[..., k].sum() + inside[..., k].sum()) for k in range(len(LABELS))
    ]


def dice_of(metric):
    result = {name: float(value) for name, value in metric.result().items()}
    assert set(result) == {"dice", *(f"dice_{label}" for label in LABELS)}
    assert result["dice"] == pytest.approx(np.mean([result[f"dice_{label}"] for label in LABELS]), abs=1e-6)
    return [result[f"dice_{label}"] for label in LABELS]


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(4)
    masks = (rng.random((3, 4, 8, 7, 3)) < [0.6, 0.3, 0.1]).astype(np.float32)
    return masks, rng.normal(size=masks.shape).astype(np.float32)


@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.9])
def test_streaming_dice_pools_all_pixels_of_all_batches(batches, threshold):
    metric = StreamingDice(LABELS, threshold)
    for mask, logits in zip(*batches, strict=True):
        metric.update_state(mask, logits)
    assert dice_of(metric) == pytest.approx(expected(*batches, threshold), abs=1e-6)


def test_a_pixel_at_the_threshold_is_foreground():
    metric = StreamingDice(LABELS, 0.5)
    metric.update_state(np.ones((1, 2, 2, 3), np.float32), np.zeros((1, 2, 2, 3), np.float32))
    assert dice_of(metric) == [1, 1, 1]


def test_samples_with_zero_weight_are_excluded(batches):
    metric, weights = StreamingDice(LABELS), np.array([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]], np.float32)
    for mask, logits, weight in zip(*batches, weights, strict=True):
        metric.update_state(mask, logits, sample_weight=weight)
    kept = [part[weights > 0] for part in batches]
    assert dice_of(metric) == pytest.approx(expected(*kept), abs=1e-6)


def test_a_common_weight_factor_changes_nothing(batches):
    metric = StreamingDice(LABELS)
    for mask, logits in zip(*batches, strict=True):
        metric.update_state(mask, logits, sample_weight=np.full(4, 1.37, np.float32))
    assert dice_of(metric) == pytest.approx(expected(*batches), abs=1e-6)


def test_a_label_neither_present_nor_predicted_has_dice_1_and_a_missed_one_has_0():
    mask = np.zeros((1, 4, 4, 3), np.float32)
    mask[..., 1] = 1
    metric = StreamingDice(LABELS)
    metric.update_state(mask, np.full(mask.shape, -5, np.float32))
    assert dice_of(metric) == [1, 0, 1]


def test_reset_state_clears_the_counts(batches):
    metric = StreamingDice(LABELS)
    metric.update_state(1 - batches[0][0], batches[1][0])
    metric.reset_state()
    metric.update_state(batches[0][1], batches[1][1])
    assert dice_of(metric) == pytest.approx(expected(batches[0][1], batches[1][1]), abs=1e-6)


def test_integer_masks_and_half_precision_logits_are_accepted(batches):
    metric = StreamingDice(LABELS)
    metric.update_state(batches[0][0].astype(np.uint8), batches[1][0].astype(np.float16))
    assert dice_of(metric) == pytest.approx(expected(batches[0][0], batches[1][0].astype(np.float16)), abs=1e-6)


def test_a_label_that_was_never_annotated_is_excluded_from_the_mean(batches):
    metric = StreamingDice(LABELS)
    mask = batches[0][0].copy()
    mask[..., 1] = -1
    metric.update_state(mask, batches[1][0])
    result = {name: float(value) for name, value in metric.result().items()}
    of_others = [expected(batches[0][0], batches[1][0])[k] for k in (0, 2)]
    assert [result["dice_large_bowel"], result["dice_stomach"]] == pytest.approx(of_others, abs=1e-6)
    assert np.isnan(result["dice_small_bowel"]) and result["dice"] == pytest.approx(np.mean(of_others), abs=1e-6)
    # With weight 0, like the padding of the last batch, it still has not been annotated.
    metric.update_state(batches[0][0], batches[1][0], sample_weight=np.zeros(4, np.float32))
    assert np.isnan(metric.result()["dice_small_bowel"])
    metric.update_state(batches[0][1], batches[1][1])
    assert float(metric.result()["dice_small_bowel"]) == pytest.approx(
        expected(batches[0][1], batches[1][1])[1], abs=1e-6
    )


def test_without_any_annotated_label_there_is_no_dice():
    metric = StreamingDice(["liver"])
    metric.update_state(np.full((1, 4, 4, 1), -1, np.float32), np.zeros((1, 4, 4, 1), np.float32))
    assert all(np.isnan(value) for value in metric.result().values())


def test_ignored_voxels_are_excluded_from_reference_and_prediction(batches):
    mask, logits = batches[0][0].copy(), batches[1][0]
    mask[:, 5:] = -1
    metric = StreamingDice(LABELS)
    metric.update_state(mask, logits)
    assert dice_of(metric) == pytest.approx(expected(mask[:, :5], logits[:, :5]), abs=1e-6)
