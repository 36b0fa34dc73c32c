"""Distances in mm between slices with gaps: missing slices are empty planes of both masks."""

import math

import numpy as np
import pytest
from scipy import ndimage

from gitseg_tf import metrics
from gitseg_tf.evaluation.metrics.distances import surfel_distances, voxel_distances
from gitseg_tf.evaluation.metrics.scores import hausdorff, mean_surface_distance, score_scan, surface_dice
from gitseg_tf.labels import LabelSet

SPACING = (3.0, 1.5, 1.25)
ONE = LabelSet.of("liver")


def filled(mask, numbers):
    """The mask with empty planes in place of the missing slices."""
    whole = np.zeros((numbers[-1] - numbers[0] + 1, *mask.shape[1:]), bool)
    whole[np.array(numbers) - numbers[0]] = mask
    return whole


def blobs(seed, shape=(14, 20, 18)):
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.standard_normal(shape), (1, 2, 2)) for _ in range(2)]
    return fields[0] > np.percentile(fields[0], 70), fields[0] + 0.5 * fields[1] > np.percentile(fields[0], 70)


NUMBERS = (
    (2, 3, 4, 5, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22),
    (1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27),
    (1, 2, 3, 40, 41, 42, 43, 200, 201, 202, 203, 204, 205, 206),
)


def test_a_prediction_seven_missing_slices_away_is_eight_slice_distances_away():
    truth, prediction = np.zeros((2, 2, 5, 5), bool)
    truth[0, 2, 2] = prediction[1, 2, 2] = True
    assert hausdorff(truth, prediction, (3.0, 1.5, 1.5), numbers=(2, 10)) == 24
    assert metrics.hausdorff(truth, prediction, (3.0, 1.5, 1.5), numbers=(2, 10)) == 24
    (row,) = score_scan("s", "p", truth[None], prediction[None], labels=ONE, spacing=(3.0, 1.5, 1.5), numbers=(2, 10))
    assert [row[name] for name in ("hausdorff_mm", "hd95_mm", "mean_surface_mm")] == [24, 24, 24]
    assert row["hausdorff_voxels"] == 1 and row["surface_dice"] == 0
    assert hausdorff(truth, prediction, (3.0, 1.5, 1.5)) == 3


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("spacing", [SPACING, (10.0, 0.1, 0.4), (0.5, 4.0, 2.0)])
def test_distances_match_the_distance_transform_of_the_filled_volume(numbers, spacing):
    for seed in range(3):
        truth, prediction = blobs(seed)
        if seed == 2:  # the nearest surface is across a gap
            truth[6:], prediction[:6] = False, False
        whole = [filled(mask, numbers) for mask in (truth, prediction)]
        surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in whole]
        to_truth, to_prediction = (ndimage.distance_transform_edt(~surface, spacing) for surface in surfaces)
        expected = to_prediction[surfaces[0]], to_truth[surfaces[1]]
        found = voxel_distances(truth, prediction, spacing, numbers)
        assert np.sort(found.from_truth) == pytest.approx(np.sort(expected[0]))
        assert np.sort(found.from_prediction) == pytest.approx(np.sort(expected[1]))
        mean = np.concatenate(expected).mean()
        assert mean_surface_distance(truth, prediction, spacing, numbers) == pytest.approx(mean)


@pytest.mark.parametrize("numbers", NUMBERS)
def test_surface_elements_match_those_of_the_filled_volume_by_surface_distance(numbers):
    surface_distance = pytest.importorskip("surface_distance")
    for seed in range(3):
        truth, prediction = blobs(seed)
        whole = [filled(mask, numbers) for mask in (truth, prediction)]
        expected = surface_distance.compute_surface_distances(*whole, SPACING)
        found = surfel_distances(truth, prediction, SPACING, numbers)
        assert found.hausdorff() == pytest.approx(surface_distance.compute_robust_hausdorff(expected, 100))
        for tolerance in (1.0, 2.0, 3.0, 5.0):
            dice = surface_distance.compute_surface_dice_at_tolerance(expected, tolerance)
            assert surface_dice(truth, prediction, SPACING, tolerance, numbers) == pytest.approx(dice)
        (row,) = score_scan("s", "p", truth[None], prediction[None], labels=ONE, spacing=SPACING, numbers=numbers)
        for tolerance in (2, 3):
            dice = surface_distance.compute_surface_dice_at_tolerance(expected, tolerance)
            assert row[f"surface_dice_{tolerance}mm"] == pytest.approx(dice)


@pytest.mark.parametrize("numbers", NUMBERS)
def test_surface_elements_match_our_own_of_the_filled_volume(numbers):
    """Which are compared with surface-distance in benchmarks/scores.py."""
    truth, prediction = blobs(4)
    whole = surfel_distances(*(filled(mask, numbers) for mask in (truth, prediction)), SPACING)
    found = surfel_distances(truth, prediction, SPACING, numbers)
    assert np.sort(found.from_truth) == pytest.approx(np.sort(whole.from_truth))
    assert found.truth_areas.sum() == pytest.approx(whole.truth_areas.sum())
    assert found.dice(2.0) == pytest.approx(whole.dice(2.0))


def test_a_surface_at_the_border_of_a_gap_belongs_to_both_masks():
    """Reference and prediction both end at the gap: the same piece of surface, at distance 0."""
    masks = np.ones((2, 4, 4), bool)
    distances = voxel_distances(masks, masks, SPACING, (1, 5))
    assert len(distances.from_truth) == masks.size and distances.hausdorff() == 0


def test_a_gap_of_millions_of_slices_takes_no_memory():
    truth, prediction = np.zeros((2, 2, 50, 50), bool)
    truth[0, 10:40, 10:40] = prediction[1, 10:40, 10:40] = True
    assert hausdorff(truth, prediction, SPACING, numbers=(1, 10**9)) == 3.0 * (10**9 - 1)


@pytest.mark.parametrize("numbers", [(1, 2), (1, 1, 2), (3, 2, 1)])
def test_slice_numbers_must_be_ascending_and_one_per_slice(numbers):
    masks = np.ones((3, 2, 2), bool)
    for function in (hausdorff, mean_surface_distance, surface_dice):
        with pytest.raises(ValueError, match="numbers must be 3 ascending slice numbers"):
            function(masks, masks, SPACING, numbers=numbers)
    with pytest.raises(ValueError, match="numbers must be 3"):
        score_scan("s", "p", masks[None], masks[None], labels=ONE, spacing=SPACING, numbers=numbers)


def test_numbers_without_a_gap_change_nothing():
    truth, prediction = blobs(1)
    given = {"labels": ONE, "spacing": SPACING}
    plain, numbered = (
        score_scan("s", "p", truth[None], prediction[None], **given, numbers=n) for n in (None, range(5, 19))
    )
    assert {k: v for k, v in plain[0].items() if v == v} == {k: v for k, v in numbered[0].items() if v == v}
    assert math.isnan(plain[0]["false_positive_ml"])
