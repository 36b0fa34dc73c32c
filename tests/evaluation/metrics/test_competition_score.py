"""The competition's score against a plain implementation of the organizers' text by scipy's cdist."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist

from gitseg_tf.data.volume import Annotation
from gitseg_tf.evaluation.metrics.competition import hausdorff_score, score_parts
from gitseg_tf.evaluation.metrics.distances import MaskPair
from gitseg_tf.evaluation.metrics.scores import scan_score, score_scan, summarize
from gitseg_tf.labels import UWMGI, LabelSet


def set_distance(a, b, units):
    """The Hausdorff distance between all voxels of two masks."""
    between = cdist(np.argwhere(a) * units, np.argwhere(b) * units)
    return max(between.min(1).max(), between.min(0).max())


def by_the_text(pairs):
    """Score scans by the text: (mean 2-D Dice, mean 1 - distance), of masks [L, D, H, W]."""
    images, distances = [], []
    for truth, prediction in pairs:
        for a, b in zip(truth, prediction, strict=True):
            images += [2 * (s & t).sum() / (s.sum() + t.sum()) for s, t in zip(a, b, strict=True) if s.any() or t.any()]
            if a.any() and b.any():
                distances.append(1 - set_distance(a, b, 1 / np.array(a.shape)) / math.sqrt(3))
            elif a.any() or b.any():
                distances.append(0.0)
    return np.mean(images), np.mean(distances)


def random_masks(seed, shape, labels=3):
    """Masks of any density, some empty: from single voxels to solid blocks with holes."""
    rng = np.random.default_rng(seed)
    masks = rng.random((2, labels, *shape)) < rng.choice([0.0, 0.01, 0.1, 0.6], (2, labels, 1, 1, 1))
    for mask in masks.reshape(-1, *shape):
        if rng.random() < 0.5:
            start = rng.integers(0, shape)
            mask[tuple(slice(s, s + n) for s, n in zip(start, rng.integers(1, np.array(shape) + 1), strict=True))] = (
                True
            )
    return masks


SHAPES = [(5, 9, 12), (12, 7, 4), (2, 17, 3), (1, 6, 6), (9, 3, 21)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spacing", [(3.0, 1.5, 1.5), (10.0, 0.1, 0.4), (1.0, 5.0, 1.0)])
def test_scores_of_random_masks_follow_the_text_whatever_the_spacing(shape, spacing):
    pairs = [random_masks(seed, shape) for seed in range(6)]
    rows = [
        row
        for k, (truth, prediction) in enumerate(pairs)
        for row in score_scan(f"s{k}", f"p{k}", truth, prediction, labels=UWMGI, spacing=spacing)
    ]
    summary, (dice_2d, distance) = summarize(pd.DataFrame(rows)), by_the_text(pairs)
    assert summary["dice_2d"] == pytest.approx(dice_2d, abs=1e-12)
    assert summary["hausdorff"] == pytest.approx(distance, abs=1e-12)
    assert summary["score"] == pytest.approx(0.4 * dice_2d + 0.6 * distance, abs=1e-12)
    for k, pair in enumerate(pairs):
        dice_2d, distance = by_the_text([pair])
        assert summary["per_scan"][f"s{k}"]["score"] == pytest.approx(0.4 * dice_2d + 0.6 * distance, abs=1e-12)
        assert scan_score(rows[3 * k : 3 * k + 3]) == pytest.approx(summary["per_scan"][f"s{k}"]["score"])


@pytest.mark.parametrize("seed", range(40))
def test_the_distance_between_sets_of_voxels_matches_brute_force(seed):
    shape = SHAPES[seed % len(SHAPES)]
    a, b = random_masks(seed, shape, 1)[:, 0]
    a[0, 0, 0] = b[-1, -1, -1] = True
    units = (0.7, 1.3, 0.9)
    assert MaskPair.of(a, b, (3.0, 1.5, 1.5)).set_distance(units) == pytest.approx(set_distance(a, b, units), abs=1e-12)


def test_voxels_inside_the_other_mask_have_distance_zero():
    """The surface of the small cube is 3 voxels from that of the large one, but all of it is inside."""
    large, small = np.zeros((2, 11, 11, 11), bool)
    large[1:10, 1:10, 1:10], small[4:7, 4:7, 4:7] = True, True
    pair = MaskPair.of(large, small, (1.0, 1.0, 1.0))
    assert pair.set_distance((1.0, 1.0, 1.0)) == pytest.approx(math.sqrt(27))
    assert hausdorff_score(pair, large.shape) == pytest.approx(1 - 3 / 11)


def test_a_hollow_prediction_is_as_far_as_the_center_of_the_reference():
    solid = np.zeros((11, 11, 11), bool)
    solid[1:10, 1:10, 1:10] = True
    hollow = solid.copy()
    hollow[2:9, 2:9, 2:9] = False
    assert MaskPair.of(solid, hollow, (1.0, 1.0, 1.0)).set_distance((1.0, 1.0, 1.0)) == 4


def test_a_worked_example():
    """Two slices of 4 x 4 pixels: 4 of the reference's 8 pixels are predicted, and a false one in the other slice."""
    truth, prediction = np.zeros((2, 2, 4, 4), bool)
    truth[0, :2] = prediction[0, 1] = prediction[1, 3, 3] = True
    dice_sum, images, distance = score_parts(truth, prediction, (2, 4, 4))
    assert (dice_sum, images) == (pytest.approx(2 * 4 / (8 + 4) + 0), 2)
    # The false pixel is half a volume along the slices and half along the rows from the reference.
    assert distance == pytest.approx(1 - math.hypot(1 / 2, 2 / 4) / math.sqrt(3))
    (row,) = score_scan("s", "p", truth[None], prediction[None], labels=LabelSet.of("stomach"), spacing=(3.0, 1.5, 1.5))
    # The figures of docs/explanation/competition_score.md.
    assert (round(row["score"], 3), round(row["score_volume"], 3)) == (0.488, 0.623)


def test_a_label_in_only_one_of_the_masks_scores_zero_and_one_in_neither_is_left_out():
    truth, prediction = np.zeros((2, 3, 4, 5, 6), bool)
    truth[0, 1:3, 1, 1] = prediction[1, 2, 1:4, 2] = True
    rows = score_scan("s", "p", truth, prediction, labels=UWMGI, spacing=(3.0, 1.5, 1.5))
    assert [row["score"] for row in rows[:2]] == [0, 0] and math.isnan(rows[2]["score"])
    assert [row["dice_2d_slices"] for row in rows] == [2, 1, 0]
    summary = summarize(pd.DataFrame(rows))
    assert (summary["score"], summary["score_volume"]) == (0, 0)
    assert summary["labels"]["small_bowel"]["score"] == 0 and summary["labels"]["small_bowel"]["score_volume"] is None


def test_an_unannotated_label_does_not_count_even_if_it_is_predicted():
    truth, prediction = np.zeros((2, 3, 4, 5, 6), bool)
    truth[0, 1:3, 1, 1] = prediction[0, 1:3, 1, 1] = prediction[1, 2, 1:4, 2] = True
    annotation = Annotation(truth, np.array([True, False, True]))
    rows = score_scan("s", "p", annotation, prediction, labels=UWMGI, spacing=(3.0, 1.5, 1.5))
    assert summarize(pd.DataFrame(rows))["score"] == 1


def test_the_form_of_public_notebooks_is_reported_beside():
    truth, prediction = np.zeros((2, 3, 6, 12, 16), bool)
    truth[0, 1:4, 3:7, 4:8] = prediction[0, 1:4, 3:7, 6:10] = True
    row = score_scan("s", "p", truth, prediction, labels=UWMGI, spacing=(3.0, 1.5, 1.5))[0]
    assert row["score_volume"] == pytest.approx(0.4 * 0.5 + 0.6 * (1 - 2 / math.sqrt(6**2 + 12**2 + 16**2)))
    assert row["score"] == pytest.approx(0.4 * 0.5 + 0.6 * (1 - 2 / 16 / math.sqrt(3)))


def test_missing_slices_do_not_change_the_score():
    """Coordinates are divided by the number of slices that are there."""
    truth, prediction = random_masks(3, (6, 9, 8))
    given = {"labels": UWMGI, "spacing": (3.0, 1.5, 1.5)}
    plain, gaps = (
        score_scan("s", "p", truth, prediction, **given, numbers=numbers) for numbers in (None, (1, 2, 9, 10, 30, 31))
    )
    for name in ("score", "hausdorff_score", "score_volume", "hausdorff_voxels"):
        assert [row[name] for row in gaps] == pytest.approx([row[name] for row in plain], nan_ok=True)
