"""All scores of one label of a scan, as a row of the evaluation's table."""

import math
from collections.abc import Sequence

import numpy as np

from gitseg_tf.evaluation.metrics.added_path import added_path_length
from gitseg_tf.evaluation.metrics.competition import (
    combined,
    dice_of_images,
    hausdorff_score,
    hausdorff_score_volume,
    plane_counts,
)
from gitseg_tf.evaluation.metrics.distances import MaskPair

# Tolerances in mm of the columns surface_dice_2mm and surface_dice_3mm.
_TOLERANCES = {"surface_dice_2mm": 2.0, "surface_dice_3mm": 3.0}
_DISTANCES = ("hausdorff_voxels", "hausdorff_mm", "hd95_mm", "mean_surface_mm")
# Scores that count false positives of labels that are absent from the reference, as the competition does.
OF_TEXT = ("score", "hausdorff_score")
_SCORES = (
    *OF_TEXT, "score_volume", "hausdorff_score_volume", "dice", "iou", "surface_dice", *_TOLERANCES, *_DISTANCES
)  # fmt: skip
_VOLUMES = ("truth_ml", "prediction_ml", "volume_error_ml", "volume_error_relative", "false_positive_ml")
UNANNOTATED = dict.fromkeys((*_SCORES, "added_path_mm", *_VOLUMES), math.nan) | {
    "dice_2d_sum": 0.0,
    "dice_2d_slices": 0,
}


def score_label(
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing: tuple[float, float, float],
    numbers: Sequence[int] | None,
    tolerance_mm: float,
) -> dict:
    """Compute the scores of a label, as described in `scores.score_scan`.

    Args:
        truth, prediction: bool [D, H, W].
        spacing: (z, y, x) in mm.
        numbers: the slice numbers if slices are missing, or None.
        tolerance_mm: tolerance of surface_dice, in mm.

    Returns:
        The columns of the table but scan, case and label.
    """
    pair = MaskPair.of(truth, prediction, spacing)
    in_truth, in_prediction, in_both = plane_counts(pair, truth, prediction)
    sums = _volumes(in_truth, in_prediction, in_both, math.prod(spacing) / 1000)
    if not in_truth.any():
        of_text = 0.0 if in_prediction.any() else math.nan
        scores = {name: of_text if name in OF_TEXT else math.nan for name in _SCORES}
        return scores | {"added_path_mm": math.nan} | sums
    added = {"added_path_mm": added_path_length(truth[pair.box], prediction[pair.box], spacing)}
    if not in_prediction.any():
        return {name: math.nan if name in _DISTANCES else 0.0 for name in _SCORES} | added | sums
    voxels, both = int(in_truth.sum() + in_prediction.sum()), int(in_both.sum())
    in_mm, hausdorff_voxels = pair.voxel_distances_and_steps()
    with_gaps = pair if numbers is None else MaskPair.of(truth, prediction, spacing, numbers)
    in_mm = in_mm if numbers is None else with_gaps.voxel_distances()
    tolerances = {"surface_dice": tolerance_mm} | _TOLERANCES
    of_text, of_volume = hausdorff_score(pair, truth.shape), hausdorff_score_volume(hausdorff_voxels, truth.shape)
    return {
        "score": combined(sums["dice_2d_sum"] / sums["dice_2d_slices"], of_text),
        "hausdorff_score": of_text,
        "score_volume": combined(2 * both / voxels, of_volume),
        "hausdorff_score_volume": of_volume,
        "dice": 2 * both / voxels,
        "iou": both / (voxels - both),
        **dict(zip(tolerances, with_gaps.surface_dices(tuple(tolerances.values())), strict=True)),
        "hausdorff_voxels": hausdorff_voxels,
        "hausdorff_mm": in_mm.hausdorff(),
        "hd95_mm": in_mm.hausdorff(95),
        "mean_surface_mm": in_mm.mean(),
    } | added | sums  # fmt: skip


def _volumes(in_truth: np.ndarray, in_prediction: np.ndarray, in_both: np.ndarray, ml: float) -> dict:
    """Compute volumes and 2-D Dice from the number of voxels in each slice."""
    dice_2d_sum, slices = dice_of_images(in_truth, in_prediction, in_both)
    truth_ml, prediction_ml = float(in_truth.sum() * ml), float(in_prediction.sum() * ml)
    present = in_truth.any()
    return {
        "truth_ml": truth_ml,
        "prediction_ml": prediction_ml,
        "volume_error_ml": prediction_ml - truth_ml if present else math.nan,
        "volume_error_relative": (prediction_ml - truth_ml) / truth_ml if present else math.nan,
        "false_positive_ml": math.nan if present else prediction_ml,
        "dice_2d_sum": dice_2d_sum,
        "dice_2d_slices": slices,
    }
