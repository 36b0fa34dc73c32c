import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from gitseg_tf.data.scans import ORGANS
from gitseg_tf.evaluation.distances import voxel_distances
from gitseg_tf.evaluation.scores import dice, hausdorff, iou, mean_surface_distance, score_scan, summarise, surface_dice

VOXELS = (1.0, 1.0, 1.0)
SPACING = (3.0, 1.5, 1.25)


def box(shape, *ranges):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(start, stop) for start, stop in ranges)] = True
    return mask


def distances_by_distance_transform(truth, prediction, spacing):
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (truth, prediction)]
    to_truth, to_prediction = (ndimage.distance_transform_edt(~surface, sampling=spacing) for surface in surfaces)
    return to_prediction[surfaces[0]], to_truth[surfaces[1]]


def blobs(seed, shape=(20, 40, 36)):
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.standard_normal(shape), (1, 3, 3)) for _ in range(2)]
    truth = fields[0] > np.percentile(fields[0], 80)
    prediction = fields[0] + 0.5 * fields[1] > np.percentile(fields[0], 80)
    return truth, prediction


def test_dice_of_two_boxes_that_share_half():
    a, b = box((4, 8, 8), (1, 3), (2, 6), (2, 6)), box((4, 8, 8), (1, 3), (2, 6), (4, 8))
    assert dice(a, b) == 0.5


def test_dice_of_a_2d_mask():
    assert dice(box((6, 6), (0, 3), (0, 2)), box((6, 6), (0, 1), (0, 2))) == 2 * 2 / (6 + 2)


@pytest.mark.parametrize(("truth", "prediction", "expected"), [(0, 0, 1.0), (0, 1, 0.0), (1, 0, 0.0), (1, 1, 1.0)])
def test_dice_of_empty_and_full_masks(truth, prediction, expected):
    assert dice(np.full((2, 3, 4), bool(truth)), np.full((2, 3, 4), bool(prediction))) == expected


@pytest.mark.parametrize(("truth", "prediction", "expected"), [(0, 0, 1.0), (0, 1, 0.0), (1, 0, 0.0), (1, 1, 1.0)])
def test_iou_of_empty_and_full_masks(truth, prediction, expected):
    assert iou(np.full((2, 3, 4), bool(truth)), np.full((2, 3, 4), bool(prediction))) == expected


def test_iou_of_two_boxes_that_share_half():
    a, b = box((4, 8, 8), (1, 3), (2, 6), (2, 6)), box((4, 8, 8), (1, 3), (2, 6), (4, 8))
    assert iou(a, b) == pytest.approx(1 / 3)


def test_masks_on_different_grids_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\).*\(2, 3, 5\)"):
        dice(np.zeros((2, 3, 4), bool), np.zeros((2, 3, 5), bool))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("voxels", [1, 3])
def test_a_cube_moved_along_an_axis_is_as_far_as_it_was_moved(axis, voxels):
    truth = box((14, 14, 14), (4, 8), (4, 8), (4, 8))
    prediction = np.roll(truth, voxels, axis)
    assert hausdorff(truth, prediction, SPACING) == pytest.approx(voxels * SPACING[axis])
    assert hausdorff(truth, prediction, VOXELS) == voxels


def test_two_single_voxels_are_their_centres_apart():
    truth, prediction = box((9, 9, 9), (1, 2), (1, 2), (1, 2)), box((9, 9, 9), (3, 4), (4, 5), (8, 9))
    expected = math.sqrt((2 * 3.0) ** 2 + (3 * 1.5) ** 2 + (7 * 1.25) ** 2)
    assert hausdorff(truth, prediction, SPACING) == pytest.approx(expected)


def test_the_longer_direction_counts():
    truth = box((3, 3, 20), (1, 2), (1, 2), (2, 3))
    prediction = truth | box((3, 3, 20), (1, 2), (1, 2), (12, 13))
    assert hausdorff(truth, prediction, VOXELS) == hausdorff(prediction, truth, VOXELS) == 10


def test_a_mask_that_touches_the_border_has_surface_there():
    whole, centre = np.ones((5, 5, 5), bool), box((5, 5, 5), (2, 3), (2, 3), (2, 3))
    assert hausdorff(whole, centre, VOXELS) == pytest.approx(math.sqrt(12))
    assert len(voxel_distances(whole, centre, VOXELS).from_truth) == 5**3 - 3**3


def test_a_hole_has_surface():
    solid = box((9, 9, 9), (0, 9), (0, 9), (0, 9))
    hollow = solid & ~box((9, 9, 9), (4, 5), (4, 5), (4, 5))
    assert hausdorff(solid, hollow, VOXELS) == 3


def test_identical_masks_are_not_apart():
    truth, _ = blobs(0)
    assert hausdorff(truth, truth, SPACING) == 0
    assert surface_dice(truth, truth, SPACING, 0.0) == 1


def test_empty_masks():
    empty, full = np.zeros((3, 4, 5), bool), np.ones((3, 4, 5), bool)
    assert math.isnan(hausdorff(empty, empty, SPACING))
    assert hausdorff(empty, full, SPACING) == hausdorff(full, empty, SPACING) == math.inf
    assert hausdorff(full, empty, SPACING, percentile=95) == math.inf
    assert surface_dice(empty, empty, SPACING) == 1
    assert surface_dice(empty, full, SPACING) == surface_dice(full, empty, SPACING) == 0
    assert math.isnan(mean_surface_distance(empty, empty, SPACING))
    assert mean_surface_distance(empty, full, SPACING) == mean_surface_distance(full, empty, SPACING) == math.inf


def test_2d_masks_have_2d_distances():
    truth = box((10, 10), (2, 5), (2, 5))
    assert hausdorff(truth, np.roll(truth, 2, 1), (1.5, 0.5)) == 1.0


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (3.0, 1.5, 0.0), (3.0, 1.5, math.nan), (3.0, -1.5, 1.5)])
def test_a_spacing_that_is_none_is_refused(spacing):
    with pytest.raises(ValueError, match="spacing"):
        hausdorff(np.ones((2, 2, 2), bool), np.ones((2, 2, 2), bool), spacing)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_distances_agree_with_the_euclidean_distance_transform(seed):
    truth, prediction = blobs(seed)
    from_truth, from_prediction = distances_by_distance_transform(truth, prediction, SPACING)
    assert hausdorff(truth, prediction, SPACING) == pytest.approx(max(from_truth.max(), from_prediction.max()))
    hd95 = max(np.percentile(from_truth, 95), np.percentile(from_prediction, 95))
    assert hausdorff(truth, prediction, SPACING, percentile=95) == pytest.approx(hd95)
    mean = np.concatenate([from_truth, from_prediction]).mean()
    assert mean_surface_distance(truth, prediction, SPACING) == pytest.approx(mean)


@pytest.mark.parametrize(
    ("tolerance", "corners", "millimetres"),
    [(0.9, 1, 1), (1.0, 1, 2), (2.0, 1, 3), (3.0, 1, 4), (3.9, 1, 4), (4.0, 2, 4)],
)
def test_surface_dice_is_the_share_of_the_line_within_the_tolerance(tolerance, corners, millimetres):
    """A row of 5 pixels of 1.5 x 1 mm, and the same 4 mm further.

    Along either side the line around the row has 4 pieces of 1 mm, and at either end one that cuts the corner. Those of
    one row lie 4 (the end), 3, 2, 1, 0 and 0 (the other end) mm from the other row's.
    """
    truth, prediction = (box((1, 40), (0, 1), (start, start + 5)) for start in (10, 14))
    corner = math.hypot(1.5, 1) / 2
    expected = (corners * corner + millimetres) / (2 * corner + 4)
    assert surface_dice(truth, prediction, (1.5, 1.0), tolerance) == pytest.approx(expected)


def test_a_distance_of_exactly_the_tolerance_is_within_it_whatever_the_rounding():
    truth = box((1, 1, 9), (0, 1), (0, 1), (2, 3))
    assert 3 * 0.1 > 0.3
    assert surface_dice(truth, np.roll(truth, 3, 2), (0.1, 0.1, 0.1), 0.3) == 1


def one_organ_moved():
    """Large bowel moved by 2 voxels in x, small bowel missed, stomach absent and predicted in 8 voxels."""
    shape = (6, 12, 16)
    truth, prediction = np.zeros((3, *shape), bool), np.zeros((3, *shape), bool)
    truth[0] = box(shape, (1, 4), (3, 7), (4, 8))
    prediction[0] = box(shape, (1, 4), (3, 7), (6, 10))
    truth[1] = box(shape, (2, 3), (8, 10), (1, 3))
    prediction[2] = box(shape, (4, 6), (0, 2), (0, 2))
    return truth, prediction


@pytest.fixture
def organs():
    return {row["organ"]: row for row in score_scan("case7_day12", "case7", *one_organ_moved(), SPACING)}


def test_the_rows_are_one_an_organ_and_carry_scan_and_case(organs):
    assert tuple(organs) == ORGANS
    assert {(row["scan"], row["case"]) for row in organs.values()} == {("case7_day12", "case7")}


def test_the_score_is_the_referees_formula(organs):
    row = organs["large_bowel"]
    diagonal = math.sqrt(6**2 + 12**2 + 16**2)
    assert row["dice"] == 0.5
    assert row["iou"] == pytest.approx(1 / 3)
    assert row["hausdorff_voxels"] == 2
    assert row["hausdorff_score"] == pytest.approx(1 - 2 / diagonal)
    assert row["score"] == pytest.approx(0.4 * 0.5 + 0.6 * (1 - 2 / diagonal))


def test_distances_in_mm_and_volumes_use_the_spacing(organs):
    row = organs["large_bowel"]
    assert row["hausdorff_mm"] == row["hd95_mm"] == 2.5
    assert row["surface_dice"] == 1
    assert row["truth_ml"] == row["prediction_ml"] == pytest.approx(48 * 3 * 1.5 * 1.25 / 1000)


def test_the_mean_surface_distance_is_over_the_surface_voxels(organs):
    """Of 44 voxels 12 are 2.5 mm away, 10 are 1.25 mm; so are 2 whose counterparts are inside of the other box."""
    assert organs["large_bowel"]["mean_surface_mm"] == pytest.approx((12 * 2.5 + 12 * 1.25) / 44)


def test_volume_errors_are_what_was_predicted_too_much(organs):
    truth, prediction = np.zeros((3, 4, 5, 5), bool), np.zeros((3, 4, 5, 5), bool)
    truth[0, :2], prediction[0, :3] = True, True
    truth[1, :2], prediction[1, :1] = True, True
    more, less, _ = score_scan("scan", "case", truth, prediction, (10.0, 10.0, 10.0))
    assert (more["volume_error_ml"], more["volume_error_relative"]) == (25, 0.5)
    assert (less["volume_error_ml"], less["volume_error_relative"]) == (-25, -0.5)
    assert organs["small_bowel"]["volume_error_relative"] == -1  # missed


def test_the_tolerance_is_that_asked_for():
    strict = score_scan("case7_day12", "case7", *one_organ_moved(), SPACING, tolerance_mm=1.0)
    assert strict[0]["surface_dice"] < 1


def test_a_missed_organ_scores_zero_and_has_no_distance(organs):
    row = organs["small_bowel"]
    assert [row[name] for name in ("score", "dice", "iou", "hausdorff_score", "surface_dice")] == [0] * 5
    assert all(math.isnan(row[name]) for name in ("hausdorff_voxels", "hausdorff_mm", "hd95_mm", "mean_surface_mm"))


def test_an_absent_organ_has_no_score_and_its_false_positive_volume_is_told(organs):
    row = organs["stomach"]
    told = {"scan", "case", "organ", "truth_ml", "prediction_ml", "false_positive_ml", "dice_2d_sum", "dice_2d_slices"}
    assert len(row) == len(told) + 11 and all(math.isnan(row[name]) for name in set(row) - told)
    assert row["false_positive_ml"] == pytest.approx(8 * 3 * 1.5 * 1.25 / 1000)
    assert math.isnan(organs["large_bowel"]["false_positive_ml"])


def test_2d_dice_is_summed_over_the_slices_where_the_truth_has_the_organ():
    truth, prediction = np.zeros((3, 4, 5, 5), bool), np.zeros((3, 4, 5, 5), bool)
    truth[0, :3, :2, :2] = True
    prediction[0, 0, :2, :2] = True
    prediction[0, 1, :2, :1] = True
    prediction[0, 3] = True
    row = score_scan("scan", "case", truth, prediction, SPACING)[0]
    assert row["dice_2d_sum"] == pytest.approx(1 + 2 * 2 / (4 + 2) + 0)
    assert row["dice_2d_slices"] == 3


def test_masks_without_an_organ_axis_are_refused():
    with pytest.raises(ValueError, match=r"case1_day2.*\(4, 5, 6\)"):
        score_scan("case1_day2", "case1", np.ones((4, 5, 6), bool), np.ones((4, 5, 6), bool), SPACING)


@pytest.fixture
def rows():
    truth, prediction = one_organ_moved()
    perfect = score_scan("case7_day20", "case7", truth, truth, SPACING)
    return pd.DataFrame(score_scan("case7_day12", "case7", truth, prediction, SPACING) + perfect)


def test_means_are_over_pairs_of_organ_and_scan_that_the_truth_has(rows):
    summary = summarise(rows)
    h = 1 - 2 / math.sqrt(6**2 + 12**2 + 16**2)
    assert summary["dice"] == pytest.approx((0.5 + 0 + 1 + 1) / 4)
    assert summary["hausdorff"] == pytest.approx((h + 0 + 1 + 1) / 4)
    assert summary["score"] == pytest.approx(0.4 * summary["dice"] + 0.6 * summary["hausdorff"])
    assert (summary["scans"], summary["cases"]) == (2, 1)


def test_missed_organs_are_counted_and_left_out_of_the_distances(rows):
    summary = summarise(rows)
    assert summary["missed"] == summary["organs"]["small_bowel"]["missed"] == 1
    assert summary["hausdorff_mm"] == pytest.approx((2.5 + 0 + 0) / 3)


def test_volume_errors_are_averaged_with_and_without_their_sign(rows):
    summary = summarise(rows)
    missed_ml = 4 * 3 * 1.5 * 1.25 / 1000
    assert summary["volume_error_relative"] == pytest.approx((0 + 1 + 0 + 0) / 4)
    assert summary["volume_error_ml"] == pytest.approx(missed_ml / 4)
    assert summary["volume_bias_ml"] == pytest.approx(-missed_ml / 4)


def test_an_organ_no_scan_has_is_null_and_its_false_positives_are_added_up(rows):
    stomach = summarise(rows)["organs"]["stomach"]
    assert stomach["score"] is stomach["dice"] is stomach["dice_2d"] is stomach["hd95_mm"] is None
    assert stomach["false_positive_ml"] == summarise(rows)["false_positive_ml"] == pytest.approx(0.045)


def test_each_scan_has_its_means_and_its_organs(rows):
    scans = summarise(rows)["per_scan"]
    assert list(scans) == ["case7_day12", "case7_day20"]
    assert scans["case7_day12"]["dice"] == 0.25
    assert scans["case7_day12"]["organs"]["large_bowel"]["dice"] == 0.5
    assert scans["case7_day20"]["organs"]["small_bowel"]["score"] == 1


def test_2d_dice_is_pooled_over_slices(rows):
    assert summarise(rows)["dice_2d"] == pytest.approx((3 * 0.5 + 0 + 3 + 1) / (3 + 1 + 3 + 1))


def test_the_summary_is_strict_json_also_of_rows_read_back_from_csv(rows, tmp_path):
    rows.to_csv(tmp_path / "evaluation.csv", index=False)
    read_back = summarise(pd.read_csv(tmp_path / "evaluation.csv"))
    assert json.loads(json.dumps(read_back, allow_nan=False)) == summarise(rows)


def test_names_that_look_like_numbers_stay_names(tmp_path):
    truth, prediction = one_organ_moved()
    pd.DataFrame(score_scan("17", "17", truth, prediction, SPACING)).to_csv(tmp_path / "evaluation.csv")
    summary = json.loads(json.dumps(summarise(pd.read_csv(tmp_path / "evaluation.csv")), allow_nan=False))
    assert summary["per_scan"]["17"]["case"] == "17"
