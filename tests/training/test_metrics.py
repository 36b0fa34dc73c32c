import numpy as np
import pytest
from scipy.special import expit

from gitseg_tf.training.metrics import StreamingDice

ORGANS = ("large_bowel", "small_bowel", "stomach")


def expected(masks, logits, threshold=0.5):
    """The Dice of each organ over all pixels."""
    truth, inside = np.asarray(masks) > 0, expit(np.asarray(logits, float)) >= threshold
    return [
        2 * (truth & inside)[..., k].sum() / (truth[..., k].sum() + inside[..., k].sum()) for k in range(len(ORGANS))
    ]


def of(metric):
    result = {name: float(value) for name, value in metric.result().items()}
    assert set(result) == {"dice", *(f"dice_{organ}" for organ in ORGANS)}
    assert result["dice"] == pytest.approx(np.mean([result[f"dice_{organ}"] for organ in ORGANS]), abs=1e-6)
    return [result[f"dice_{organ}"] for organ in ORGANS]


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(4)
    masks = (rng.random((3, 4, 8, 7, 3)) < [0.6, 0.3, 0.1]).astype(np.float32)
    return masks, rng.normal(size=masks.shape).astype(np.float32)


@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.9])
def test_it_is_the_dice_of_all_pixels_of_all_batches(batches, threshold):
    metric = StreamingDice(threshold)
    for mask, logits in zip(*batches, strict=True):
        metric.update_state(mask, logits)
    assert of(metric) == pytest.approx(expected(*batches, threshold), abs=1e-6)


def test_a_pixel_at_the_threshold_is_inside():
    metric = StreamingDice(0.5)
    metric.update_state(np.ones((1, 2, 2, 3), np.float32), np.zeros((1, 2, 2, 3), np.float32))
    assert of(metric) == [1, 1, 1]


def test_samples_of_weight_0_are_left_out(batches):
    metric, weights = StreamingDice(), np.array([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]], np.float32)
    for mask, logits, weight in zip(*batches, weights, strict=True):
        metric.update_state(mask, logits, sample_weight=weight)
    kept = [part[weights > 0] for part in batches]
    assert of(metric) == pytest.approx(expected(*kept), abs=1e-6)


def test_a_factor_on_all_weights_changes_nothing(batches):
    metric = StreamingDice()
    for mask, logits in zip(*batches, strict=True):
        metric.update_state(mask, logits, sample_weight=np.full(4, 1.37, np.float32))
    assert of(metric) == pytest.approx(expected(*batches), abs=1e-6)


def test_an_organ_neither_there_nor_predicted_has_dice_1_and_one_missed_has_0():
    mask = np.zeros((1, 4, 4, 3), np.float32)
    mask[..., 1] = 1
    metric = StreamingDice()
    metric.update_state(mask, np.full(mask.shape, -5, np.float32))
    assert of(metric) == [1, 0, 1]


def test_it_forgets_when_it_is_reset(batches):
    metric = StreamingDice()
    metric.update_state(1 - batches[0][0], batches[1][0])
    metric.reset_state()
    metric.update_state(batches[0][1], batches[1][1])
    assert of(metric) == pytest.approx(expected(batches[0][1], batches[1][1]), abs=1e-6)


def test_masks_of_integers_and_half_precision_logits_count_the_same(batches):
    metric = StreamingDice()
    metric.update_state(batches[0][0].astype(np.uint8), batches[1][0].astype(np.float16))
    assert of(metric) == pytest.approx(expected(batches[0][0], batches[1][0].astype(np.float16)), abs=1e-6)
