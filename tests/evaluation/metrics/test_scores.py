import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from gitseg_tf.data.volume import Annotation
from gitseg_tf.evaluation.metrics.distances import voxel_distances
from gitseg_tf.evaluation.metrics.scores import (
    dice,
    hausdorff,
    iou,
    mean_surface_distance,
    score_scan,
    summarize,
    surface_dice,
)
from gitseg_tf.labels import UWMGI, LabelSet

VOXELS = (1.0, 1.0, 1.0)
SPACING = (3.0, 1.5, 1.25)


def score_rows(truth, prediction, scan="case7_day12", case="case7", **more):
    return score_scan(scan, case, truth, prediction, labels=UWMGI, spacing=SPACING, **more)


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


def test_dice_of_two_half_overlapping_boxes():
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


def test_iou_of_two_half_overlapping_boxes():
    a, b = box((4, 8, 8), (1, 3), (2, 6), (2, 6)), box((4, 8, 8), (1, 3), (2, 6), (4, 8))
    assert iou(a, b) == pytest.approx(1 / 3)


def test_masks_on_different_grids_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\).*\(2, 3, 5\)"):
        dice(np.zeros((2, 3, 4), bool), np.zeros((2, 3, 5), bool))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("voxels", [1, 3])
def test_the_hausdorff_distance_of_a_shifted_cube_is_the_shift(axis, voxels):
    truth = box((14, 14, 14), (4, 8), (4, 8), (4, 8))
    prediction = np.roll(truth, voxels, axis)
    assert hausdorff(truth, prediction, SPACING) == pytest.approx(voxels * SPACING[axis])
    assert hausdorff(truth, prediction, VOXELS) == voxels


def test_the_hausdorff_distance_of_two_voxels_is_that_of_their_centers():
    truth, prediction = box((9, 9, 9), (1, 2), (1, 2), (1, 2)), box((9, 9, 9), (3, 4), (4, 5), (8, 9))
    expected = math.sqrt((2 * 3.0) ** 2 + (3 * 1.5) ** 2 + (7 * 1.25) ** 2)
    assert hausdorff(truth, prediction, SPACING) == pytest.approx(expected)


def test_the_hausdorff_distance_is_the_larger_of_both_directions():
    truth = box((3, 3, 20), (1, 2), (1, 2), (2, 3))
    prediction = truth | box((3, 3, 20), (1, 2), (1, 2), (12, 13))
    assert hausdorff(truth, prediction, VOXELS) == hausdorff(prediction, truth, VOXELS) == 10


def test_a_mask_that_touches_the_border_has_a_surface_there():
    whole, center = np.ones((5, 5, 5), bool), box((5, 5, 5), (2, 3), (2, 3), (2, 3))
    assert hausdorff(whole, center, VOXELS) == pytest.approx(math.sqrt(12))
    assert len(voxel_distances(whole, center, VOXELS).from_truth) == 5**3 - 3**3


def test_a_hole_has_a_surface():
    solid = box((9, 9, 9), (0, 9), (0, 9), (0, 9))
    hollow = solid & ~box((9, 9, 9), (4, 5), (4, 5), (4, 5))
    assert hausdorff(solid, hollow, VOXELS) == 3


def test_identical_masks_have_distance_zero_and_surface_dice_one():
    truth, _ = blobs(0)
    assert hausdorff(truth, truth, SPACING) == 0
    assert surface_dice(truth, truth, SPACING, 0.0) == 1


def test_scores_of_empty_masks():
    empty, full = np.zeros((3, 4, 5), bool), np.ones((3, 4, 5), bool)
    assert math.isnan(hausdorff(empty, empty, SPACING))
    assert hausdorff(empty, full, SPACING) == hausdorff(full, empty, SPACING) == math.inf
    assert hausdorff(full, empty, SPACING, percentile=95) == math.inf
    assert surface_dice(empty, empty, SPACING) == 1
    assert surface_dice(empty, full, SPACING) == surface_dice(full, empty, SPACING) == 0
    assert math.isnan(mean_surface_distance(empty, empty, SPACING))
    assert mean_surface_distance(empty, full, SPACING) == mean_surface_distance(full, empty, SPACING) == math.inf


def test_distances_of_2d_masks_use_the_2d_spacing():
    truth = box((10, 10), (2, 5), (2, 5))
    assert hausdorff(truth, np.roll(truth, 2, 1), (1.5, 0.5)) == 1.0


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (3.0, 1.5, 0.0), (3.0, 1.5, math.nan), (3.0, -1.5, 1.5)])
def test_an_invalid_spacing_is_refused(spacing):
    with pytest.raises(ValueError, match="spacing"):
        hausdorff(np.ones((2, 2, 2), bool), np.ones((2, 2, 2), bool), spacing)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_distances_match_the_euclidean_distance_transform(seed):
    truth, prediction = blobs(seed)
    from_truth, from_prediction = distances_by_distance_transform(truth, prediction, SPACING)
    assert hausdorff(truth, prediction, SPACING) == pytest.approx(max(from_truth.max(), from_prediction.max()))
    hd95 = max(np.percentile(from_truth, 95), np.percentile(from_prediction, 95))
    assert hausdorff(truth, prediction, SPACING, percentile=95) == pytest.approx(hd95)
    mean = np.concatenate([from_truth, from_prediction]).mean()
    assert mean_surface_distance(truth, prediction, SPACING) == pytest.approx(mean)


@pytest.mark.parametrize(
    ("tolerance", "corners", "millimeters"),
    [(0.9, 1, 1), (1.0, 1, 2), (2.0, 1, 3), (3.0, 1, 4), (3.9, 1, 4), (4.0, 2, 4)],
)
def test_surface_dice_is_the_fraction_of_the_contour_within_the_tolerance(tolerance, corners, millimeters):
    """A row of 5 pixels of 1.5 x 1 mm, and the same row shifted by 4 mm.

    The contour of a row has 4 segments of 1 mm along each side, and at each end segments that cut the corners. The
    segments of one row are 4 (at one end), 3, 2, 1, 0 and 0 (at the other end) mm from the other contour.
    """
    truth, prediction = (box((1, 40), (0, 1), (start, start + 5)) for start in (10, 14))
    corner = math.hypot(1.5, 1) / 2
    expected = (corners * corner + millimeters) / (2 * corner + 4)
    assert surface_dice(truth, prediction, (1.5, 1.0), tolerance) == pytest.approx(expected)


def test_a_distance_equal_to_the_tolerance_is_within_it_despite_rounding():
    truth = box((1, 1, 9), (0, 1), (0, 1), (2, 3))
    assert 3 * 0.1 > 0.3
    assert surface_dice(truth, np.roll(truth, 3, 2), (0.1, 0.1, 0.1), 0.3) == 1


def one_label_moved():
    """Large bowel moved by 2 voxels in x, small bowel missed, stomach absent and predicted in 8 voxels."""
    shape = (6, 12, 16)
    truth, prediction = np.zeros((3, *shape), bool), np.zeros((3, *shape), bool)
    truth[0] = box(shape, (1, 4), (3, 7), (4, 8))
    prediction[0] = box(shape, (1, 4), (3, 7), (6, 10))
    truth[1] = box(shape, (2, 3), (8, 10), (1, 3))
    prediction[2] = box(shape, (4, 6), (0, 2), (0, 2))
    return truth, prediction


@pytest.fixture
def labels():
    return {row["label"]: row for row in score_rows(*one_label_moved())}


def test_score_scan_returns_one_row_per_label_with_scan_and_case(labels):
    assert tuple(labels) == UWMGI.names
    assert {(row["scan"], row["case"]) for row in labels.values()} == {("case7_day12", "case7")}


def test_both_forms_of_the_score_follow_their_formulas(labels):
    row = labels["large_bowel"]
    diagonal = math.sqrt(6**2 + 12**2 + 16**2)
    assert row["dice"] == 0.5
    assert row["iou"] == pytest.approx(1 / 3)
    assert row["hausdorff_voxels"] == 2
    assert row["hausdorff_score_volume"] == pytest.approx(1 - 2 / diagonal)
    assert row["score_volume"] == pytest.approx(0.4 * 0.5 + 0.6 * (1 - 2 / diagonal))
    in_cube = 2 / 16 / math.sqrt(3)
    assert row["hausdorff_score"] == pytest.approx(1 - in_cube)
    assert row["score"] == pytest.approx(0.4 * 0.5 + 0.6 * (1 - in_cube))


def test_distances_in_mm_and_volumes_use_the_spacing(labels):
    row = labels["large_bowel"]
    assert row["hausdorff_mm"] == row["hd95_mm"] == 2.5
    assert row["surface_dice"] == 1
    assert row["truth_ml"] == row["prediction_ml"] == pytest.approx(48 * 3 * 1.5 * 1.25 / 1000)


def test_the_mean_surface_distance_averages_over_surface_voxels(labels):
    """Of 44 voxels 12 are 2.5 mm away and 10 are 1.25 mm, as are 2 whose counterparts are inside the other box."""
    assert labels["large_bowel"]["mean_surface_mm"] == pytest.approx((12 * 2.5 + 12 * 1.25) / 44)


def test_volume_errors_are_positive_for_overestimated_volumes(labels):
    truth, prediction = np.zeros((3, 4, 5, 5), bool), np.zeros((3, 4, 5, 5), bool)
    truth[0, :2], prediction[0, :3] = True, True
    truth[1, :2], prediction[1, :1] = True, True
    more, less, _ = score_scan("scan", "case", truth, prediction, labels=UWMGI, spacing=(10.0, 10.0, 10.0))
    assert (more["volume_error_ml"], more["volume_error_relative"]) == (25, 0.5)
    assert (less["volume_error_ml"], less["volume_error_relative"]) == (-25, -0.5)
    assert labels["small_bowel"]["volume_error_relative"] == -1  # missed


def test_the_surface_dice_tolerance_can_be_set():
    strict = score_rows(*one_label_moved(), tolerance_mm=1.0)
    assert strict[0]["surface_dice"] < 1


def test_a_missed_label_scores_zero_and_has_no_distance(labels):
    row = labels["small_bowel"]
    assert [row[name] for name in ("score", "dice", "iou", "hausdorff_score", "surface_dice")] == [0] * 5
    assert all(math.isnan(row[name]) for name in ("hausdorff_voxels", "hausdorff_mm", "hd95_mm", "mean_surface_mm"))


def test_a_predicted_absent_label_has_only_the_competition_score_and_a_false_positive_volume(labels):
    row = labels["stomach"]
    filled = {
        "scan",
        "case",
        "label",
        "truth_ml",
        "prediction_ml",
        "false_positive_ml",
        "dice_2d_sum",
        "dice_2d_slices",
        "score",
        "hausdorff_score",
    }
    assert row["score"] == row["hausdorff_score"] == row["dice_2d_sum"] == 0 and row["dice_2d_slices"] == 2
    assert len(row) == len(filled) + 14 and all(math.isnan(row[name]) for name in set(row) - filled)
    assert row["false_positive_ml"] == pytest.approx(8 * 3 * 1.5 * 1.25 / 1000)
    assert math.isnan(labels["large_bowel"]["false_positive_ml"])


def test_2d_dice_is_summed_over_slices_where_either_mask_has_the_label():
    truth, prediction = np.zeros((3, 4, 5, 5), bool), np.zeros((3, 4, 5, 5), bool)
    truth[0, :3, :2, :2] = True
    prediction[0, 0, :2, :2] = True
    prediction[0, 1, :2, :1] = True
    prediction[0, 3] = True
    row = score_rows(truth, prediction, "scan", "case")[0]
    assert row["dice_2d_sum"] == pytest.approx(1 + 2 * 2 / (4 + 2) + 0)
    assert row["dice_2d_slices"] == 4


def test_masks_without_a_label_axis_are_refused():
    with pytest.raises(ValueError, match=r"case1_day2.*\(4, 5, 6\)"):
        score_scan(
            "case1_day2", "case1", np.ones((4, 5, 6), bool), np.ones((4, 5, 6), bool), labels=UWMGI, spacing=SPACING
        )


@pytest.fixture
def rows():
    truth, prediction = one_label_moved()
    perfect = score_rows(truth, truth, "case7_day20", "case7")
    return pd.DataFrame(score_rows(truth, prediction) + perfect)


def test_means_are_over_the_label_and_scan_pairs_present_in_the_reference(rows):
    summary = summarize(rows)
    h = 1 - 2 / math.sqrt(6**2 + 12**2 + 16**2)
    assert summary["dice"] == pytest.approx((0.5 + 0 + 1 + 1) / 4)
    assert summary["hausdorff_volume"] == pytest.approx((h + 0 + 1 + 1) / 4)
    assert summary["score_volume"] == pytest.approx(0.4 * summary["dice"] + 0.6 * summary["hausdorff_volume"])
    # The competition also counts the stomach, which is only predicted.
    assert summary["hausdorff"] == pytest.approx((1 - 2 / 16 / math.sqrt(3) + 0 + 0 + 1 + 1) / 5)
    assert summary["score"] == pytest.approx(0.4 * summary["dice_2d"] + 0.6 * summary["hausdorff"])
    assert (summary["scans"], summary["cases"]) == (2, 1)


def test_missed_labels_are_counted_and_excluded_from_distances(rows):
    summary = summarize(rows)
    assert summary["missed"] == summary["labels"]["small_bowel"]["missed"] == 1
    assert summary["hausdorff_mm"] == pytest.approx((2.5 + 0 + 0) / 3)


def test_volume_errors_are_averaged_with_and_without_sign(rows):
    summary = summarize(rows)
    missed_ml = 4 * 3 * 1.5 * 1.25 / 1000
    assert summary["volume_error_relative"] == pytest.approx((0 + 1 + 0 + 0) / 4)
    assert summary["volume_error_ml"] == pytest.approx(missed_ml / 4)
    assert summary["volume_bias_ml"] == pytest.approx(-missed_ml / 4)


def test_a_label_absent_from_all_scans_is_null_and_its_false_positives_are_summed(rows):
    stomach = summarize(rows)["labels"]["stomach"]
    assert stomach["score_volume"] is stomach["dice"] is stomach["added_path_mm"] is stomach["hd95_mm"] is None
    assert stomach["score"] == stomach["dice_2d"] == stomach["hausdorff"] == 0
    assert stomach["false_positive_ml"] == summarize(rows)["false_positive_ml"] == pytest.approx(0.045)


def test_the_summary_lists_means_and_labels_per_scan(rows):
    scans = summarize(rows)["per_scan"]
    assert list(scans) == ["case7_day12", "case7_day20"]
    assert scans["case7_day12"]["dice"] == 0.25
    assert scans["case7_day12"]["labels"]["large_bowel"]["dice"] == 0.5
    assert scans["case7_day20"]["labels"]["small_bowel"]["score"] == 1


def test_2d_dice_is_pooled_over_slices(rows):
    assert summarize(rows)["dice_2d"] == pytest.approx((3 * 0.5 + 0 + 0 + 3 + 1) / (3 + 1 + 2 + 3 + 1))


def test_the_summary_is_strict_json_and_survives_a_csv_round_trip(rows, tmp_path):
    rows.to_csv(tmp_path / "evaluation.csv", index=False)
    read_back = summarize(pd.read_csv(tmp_path / "evaluation.csv"))
    assert json.loads(json.dumps(read_back, allow_nan=False)) == summarize(rows)


def test_scan_ids_that_look_like_numbers_stay_strings(tmp_path):
    truth, prediction = one_label_moved()
    pd.DataFrame(score_rows(truth, prediction, "17", "17")).to_csv(tmp_path / "evaluation.csv")
    summary = json.loads(json.dumps(summarize(pd.read_csv(tmp_path / "evaluation.csv")), allow_nan=False))
    assert summary["per_scan"]["17"]["case"] == "17"


def test_an_unannotated_label_is_excluded_from_all_means():
    truth, prediction = one_label_moved()
    annotation = Annotation(truth, np.array([True, False, True]))
    rows = pd.DataFrame(score_rows(annotation, prediction) + score_rows(truth, truth, "case7_day20"))
    unannotated = rows.iloc[1]
    assert unannotated["label"] == "small_bowel" and unannotated["dice_2d_slices"] == 0
    assert unannotated.drop(["scan", "case", "label", "dice_2d_sum", "dice_2d_slices"]).isna().all()
    summary, without = summarize(rows), summarize(rows.drop(index=1))
    assert summary["unannotated"] == {"small_bowel": 1} and without["unannotated"] == {}
    assert {key: summary[key] for key in ("dice", "score", "missed", "false_positive_ml", "dice_2d")} == {
        key: without[key] for key in ("dice", "score", "missed", "false_positive_ml", "dice_2d")
    }
    assert summary["per_scan"]["case7_day12"]["labels"]["small_bowel"]["dice"] is None
    assert summary["labels"]["small_bowel"] == without["labels"]["small_bowel"]


def test_predictions_of_an_unannotated_label_are_not_false_positives():
    truth, prediction = one_label_moved()
    rows = pd.DataFrame(score_rows(Annotation(truth, np.array([True, True, False])), prediction))
    assert summarize(rows)["false_positive_ml"] == 0


def test_ignored_voxels_are_removed_from_reference_and_prediction():
    """The columns in which the boxes differ are ignored, and so is the false positive."""
    truth, prediction = one_label_moved()
    ignore = (truth[0] != prediction[0]) | prediction[2]
    large, _, stomach = score_rows(Annotation(truth, np.ones(3, bool), ignore), prediction)
    assert large["dice"] == 1 and large["hausdorff_mm"] == 0
    assert large["truth_ml"] == pytest.approx(24 * 3 * 1.5 * 1.25 / 1000)
    assert stomach["false_positive_ml"] == 0


def test_rows_are_named_after_any_number_of_labels():
    labels = LabelSet.of(*(f"label {k}" for k in range(40)))
    masks = np.zeros((40, 3, 8, 8), bool)
    masks[np.arange(40), 1, 2, np.arange(40) % 8] = True
    rows = pd.DataFrame(score_scan("ct", "p1", masks, masks, labels=labels, spacing=SPACING))
    assert tuple(rows["label"]) == labels.names and (rows["dice"] == 1).all()
    assert list(summarize(rows)["labels"]) == list(labels.names)
    with pytest.raises(ValueError, match="must be \\[3, depth"):
        score_rows(masks, masks)
