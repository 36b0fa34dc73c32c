"""Scores of predicted masks: overlap, distances of surfaces, volumes, and the competition's score.

docs/evaluation.md has the formulas, what empty masks give, and how the definitions differ from those of others.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from gitseg_tf.data.scans import ORGANS
from gitseg_tf.evaluation.distances import MaskPair, as_masks, check_spacing, voxel_distances

DICE_WEIGHT, HAUSDORFF_WEIGHT = 0.4, 0.6
_DISTANCES = ("hausdorff_voxels", "hausdorff_mm", "hd95_mm", "mean_surface_mm")
_SCORES = ("dice", "iou", "hausdorff_score", "score", "surface_dice", *_DISTANCES)
# Name in the summary: column of the rows of `score_scan`.
_MEANS = {
    "score": "score",
    "dice": "dice",
    "iou": "iou",
    "hausdorff": "hausdorff_score",
    "hausdorff_mm": "hausdorff_mm",
    "hd95_mm": "hd95_mm",
    "mean_surface_mm": "mean_surface_mm",
    "surface_dice": "surface_dice",
    "volume_bias_ml": "volume_error_ml",
}
_MEANS_OF_SIZES = ("volume_error_ml", "volume_error_relative")


def dice(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Dice similarity coefficient of two masks, `2 |A and B| / (|A| + |B|)`.

    Args:
        truth: bool array of any shape.
        prediction: bool array of the same shape.

    Returns:
        0 (apart) to 1 (identical). Both masks empty: 1.0. One of them empty: 0.0.

    Raises:
        ValueError: the shapes differ.
    """
    truth, prediction = as_masks(truth, prediction)
    total = np.count_nonzero(truth) + np.count_nonzero(prediction)
    return float(2 * np.count_nonzero(truth & prediction) / total) if total else 1.0


def iou(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Intersection over union (Jaccard index) of two masks, `|A and B| / |A or B|`.

    Args:
        truth: bool array of any shape.
        prediction: bool array of the same shape.

    Returns:
        0 (apart) to 1 (identical). Both masks empty: 1.0. One of them empty: 0.0.

    Raises:
        ValueError: the shapes differ.
    """
    truth, prediction = as_masks(truth, prediction)
    union = np.count_nonzero(truth | prediction)
    return float(np.count_nonzero(truth & prediction) / union) if union else 1.0


def hausdorff(
    truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...], percentile: float = 100.0
) -> float:
    """Symmetric Hausdorff distance of the surface voxels of two masks, or its robust form, as MONAI's.

    Args:
        truth: bool array, 2-D or 3-D.
        prediction: bool array of the same shape.
        spacing: the distance between voxels along each axis, in the unit wanted; (1, 1, 1) for voxels.
        percentile: 100 for the Hausdorff distance; 95 for HD95, the larger of the two directions' 95th percentiles.

    Returns:
        The distance in the unit of `spacing`. Identical masks: 0. Both empty: NaN. One empty: infinity.

    Raises:
        ValueError: as `distances.voxel_distances`.
    """
    return voxel_distances(truth, prediction, spacing).hausdorff(percentile)


def mean_surface_distance(truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> float:
    """Average symmetric distance of the surface voxels of two masks, as MONAI's with symmetric=True.

    Args:
        truth: bool array, 2-D or 3-D.
        prediction: bool array of the same shape.
        spacing: the distance between voxels along each axis, in the unit wanted.

    Returns:
        The distance in the unit of `spacing`. Identical masks: 0. Both empty: NaN. One empty: infinity.

    Raises:
        ValueError: as `distances.voxel_distances`.
    """
    return voxel_distances(truth, prediction, spacing).mean()


def surface_dice(
    truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...], tolerance_mm: float = 3.0
) -> float:
    """Share of the surface area of both masks that lies within a tolerance of the other mask's surface.

    As Nikolov et al. 2018 (https://arxiv.org/abs/1809.04430) introduced it and DeepMind's surface-distance computes it.

    Args:
        truth: bool array, 2-D or 3-D.
        prediction: bool array of the same shape.
        spacing: the distance between voxels along each axis, in mm.
        tolerance_mm: the deviation that is accepted, inclusive, in mm.

    Returns:
        0 to 1. Identical masks: 1.0. Both empty: 1.0. One empty: 0.0.

    Raises:
        ValueError: as `distances.voxel_distances`.
    """
    return MaskPair.of(truth, prediction, spacing).surface_dice(tolerance_mm)


def score_scan(
    scan: str,
    case: str,
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing: tuple[float, float, float],
    tolerance_mm: float = 3.0,
) -> list[dict]:
    """Score a scan's predicted organs, each in a thread of its own.

    `score = 0.4 * dice + 0.6 * hausdorff_score` with `hausdorff_score = 1 - hausdorff_voxels / diagonal`, the diagonal
    being the length of (depth, height, width) of the whole scan: the form of the public MONAI-based solutions of the
    competition (https://www.kaggle.com/competitions/uw-madison-gi-tract-image-segmentation).

    Args:
        scan: the scan's id.
        case: its patient, of whom there may be other scans.
        truth: bool array [3, depth, height, width], the organs in the order of `ORGANS`.
        prediction: bool array of the same shape.
        spacing: (z, y, x) in mm.
        tolerance_mm: of the surface Dice.

    Returns:
        One row an organ, of plain values: scan, case, organ; dice, iou, hausdorff_score, score, surface_dice;
        hausdorff_voxels, hausdorff_mm, hd95_mm, mean_surface_mm; truth_ml, prediction_ml, volume_error_ml (predicted
        less true), volume_error_relative (the same over the true volume), false_positive_ml; dice_2d_sum (the sum of
        the 2-D Dice over the slices where the truth has the organ) and dice_2d_slices (their number).
        An organ absent from the truth: NaN in all scores and volume errors, and what was predicted of it is
        false_positive_ml, which is NaN for the other organs. An organ of the truth predicted nowhere: 0 in all scores,
        NaN in all distances.

    Raises:
        ValueError: the shapes differ or are not [3, depth, height, width], or `spacing` is not three positive numbers.
    """
    truth, prediction = as_masks(truth, prediction)
    if truth.ndim != 4 or len(truth) != len(ORGANS):
        raise ValueError(f"masks of {scan} have shape {truth.shape}: give [{len(ORGANS)}, depth, height, width]")
    check_spacing(spacing, 3)
    with ThreadPoolExecutor(len(ORGANS)) as threads:
        scores = threads.map(lambda t, p: _score_organ(t, p, spacing, tolerance_mm), truth, prediction)
        labels = {"scan": scan, "case": case}
        return [labels | {"organ": organ} | own for organ, own in zip(ORGANS, scores, strict=True)]


def summarise(rows: pd.DataFrame) -> dict:
    """Average the rows of `score_scan` over all pairs of organ and scan, and over parts of them.

    Args:
        rows: the rows of any number of scans, with the columns that `score_scan` gives; also as read back from CSV.

    Returns:
        What `evaluation.json` holds, fit for `json.dumps(..., allow_nan=False)`: score, dice, iou, hausdorff (the mean
        hausdorff_score), hausdorff_mm, hd95_mm, mean_surface_mm, surface_dice, volume_bias_ml (the mean error with its
        sign), volume_error_ml and volume_error_relative (the means of the errors' sizes), dice_2d (over all annotated
        slices), missed (organs of the truth that were predicted nowhere), false_positive_ml (the total predicted of
        organs absent from the truth); scans and cases (their numbers); organs, {organ: the same means}; per_scan,
        {scan: the same means, its case, and organs with the means again}.
        A mean of nothing is None. Organs absent from the truth are in no mean, missed ones in no mean of distances.
    """
    per_scan = {
        str(scan): _means(own) | {"case": str(own["case"].iloc[0]), "organs": _means_by_organ(own)}
        for scan, own in rows.groupby("scan", sort=False)
    }
    return _means(rows) | {
        "scans": int(rows["scan"].nunique()),
        "cases": int(rows["case"].nunique()),
        "organs": _means_by_organ(rows),
        "per_scan": per_scan,
    }


def _means_by_organ(rows: pd.DataFrame) -> dict:
    return {organ: _means(rows[rows["organ"] == organ]) for organ in ORGANS}


def mean_terms(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What each pair of organ and scan adds to the means of `summarise`, which are sums of one over sums of the other.

    Args:
        rows: of `score_scan`.

    Returns:
        Numerators and denominators, each with the rows of `rows` and a column a mean, by its name in the summary. Both
        are 0 where a pair has no part in a mean: the truth lacks the organ, or a missed organ has no distance.
    """
    present = rows["truth_ml"] > 0
    values = {name: rows[column] for name, column in _MEANS.items()}
    values |= {name: rows[name].abs() for name in _MEANS_OF_SIZES}
    values = pd.DataFrame(values, index=rows.index).where(present)
    counts = values.notna().astype(float).assign(dice_2d=rows["dice_2d_slices"].where(present, 0.0))
    return values.fillna(0.0).assign(dice_2d=rows["dice_2d_sum"].where(present, 0.0)), counts


def _means(rows: pd.DataFrame) -> dict:
    sums, counts = (terms.sum() for terms in mean_terms(rows))
    return {name: float(sums[name] / counts[name]) if counts[name] else None for name in sums.index} | {
        "missed": int(((rows["truth_ml"] > 0) & (rows["prediction_ml"] == 0)).sum()),
        "false_positive_ml": float(rows["false_positive_ml"].sum()),
    }


def _score_organ(
    truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, float, float], tolerance_mm: float
) -> dict:
    pair = MaskPair.of(truth, prediction, spacing)
    cut = truth[pair.box], prediction[pair.box]
    in_truth, in_prediction, in_both = (
        np.array([np.count_nonzero(plane) for plane in mask], int) for mask in (*cut, cut[0] & cut[1])
    )
    volumes = _volumes(in_truth, in_prediction, in_both, math.prod(spacing) / 1000)
    if not in_truth.any():
        return dict.fromkeys(_SCORES, math.nan) | volumes
    if not in_prediction.any():
        return {name: math.nan if name in _DISTANCES else 0.0 for name in _SCORES} | volumes
    voxels, both = int(in_truth.sum() + in_prediction.sum()), int(in_both.sum())
    in_mm, hausdorff_voxels = pair.voxel_distances_and_steps()
    hausdorff_score = 1 - hausdorff_voxels / float(np.linalg.norm(truth.shape))
    return {
        "dice": 2 * both / voxels,
        "iou": both / (voxels - both),
        "hausdorff_score": hausdorff_score,
        "score": DICE_WEIGHT * 2 * both / voxels + HAUSDORFF_WEIGHT * hausdorff_score,
        "surface_dice": pair.surface_dice(tolerance_mm),
        "hausdorff_voxels": hausdorff_voxels,
        "hausdorff_mm": in_mm.hausdorff(),
        "hd95_mm": in_mm.hausdorff(95),
        "mean_surface_mm": in_mm.mean(),
    } | volumes


def _volumes(in_truth: np.ndarray, in_prediction: np.ndarray, in_both: np.ndarray, ml: float) -> dict:
    """What the numbers of voxels in each slice give."""
    annotated = in_truth > 0
    truth_ml, prediction_ml = float(in_truth.sum() * ml), float(in_prediction.sum() * ml)
    there = annotated.any()
    dice_2d = 2 * in_both[annotated] / (in_truth[annotated] + in_prediction[annotated])
    return {
        "truth_ml": truth_ml,
        "prediction_ml": prediction_ml,
        "volume_error_ml": prediction_ml - truth_ml if there else math.nan,
        "volume_error_relative": (prediction_ml - truth_ml) / truth_ml if there else math.nan,
        "false_positive_ml": math.nan if there else prediction_ml,
        "dice_2d_sum": float(dice_2d.sum()),
        "dice_2d_slices": int(annotated.sum()),
    }
