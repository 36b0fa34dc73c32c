"""Scores of predicted masks: Dice, Hausdorff distances, surface Dice, and the competition's score made of them."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from gitseg_tf.data.scans import ORGANS

DICE_WEIGHT, HAUSDORFF_WEIGHT = 0.4, 0.6
_SCORES = ("dice", "hausdorff_voxels", "hausdorff_score", "score", "hausdorff_mm", "hd95_mm", "surface_dice")
_DISTANCES = ("hausdorff_voxels", "hausdorff_mm", "hd95_mm")
# Name in the summary: column of the rows of `score_scan`.
_MEANS = {
    "score": "score",
    "dice": "dice",
    "hausdorff": "hausdorff_score",
    "hausdorff_mm": "hausdorff_mm",
    "hd95_mm": "hd95_mm",
    "surface_dice": "surface_dice",
}


@dataclass(frozen=True)
class SurfaceDistances:
    """How far the surface voxels of two masks lie from each other's surface.

    Attributes:
        from_truth: float array [N], from every surface voxel of the truth to the nearest one of the prediction. All
            infinite when the prediction is empty, of length 0 when the truth is.
        from_prediction: float array [M], the same from every surface voxel of the prediction.
    """

    from_truth: np.ndarray
    from_prediction: np.ndarray

    def hausdorff(self, percentile: float = 100.0) -> float:
        """Give the symmetric Hausdorff distance, or a percentile of it; see `hausdorff` for what empty masks give."""
        if not self.from_truth.size and not self.from_prediction.size:
            return math.nan
        if not self.from_truth.size or not self.from_prediction.size:
            return math.inf
        return float(max(np.percentile(self.from_truth, percentile), np.percentile(self.from_prediction, percentile)))

    def dice(self, tolerance: float) -> float:
        """Give the surface Dice at a tolerance; see `surface_dice` for what it counts and what empty masks give."""
        surface_voxels = self.from_truth.size + self.from_prediction.size
        if not surface_voxels:
            return 1.0
        # The margin is for rounding: with a spacing of 0.1 mm, three voxels are 0.30000000000000004 mm.
        within = sum(np.count_nonzero(d <= tolerance + 1e-6) for d in (self.from_truth, self.from_prediction))
        return float(within / surface_voxels)


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
    truth, prediction = _as_masks(truth, prediction)
    total = np.count_nonzero(truth) + np.count_nonzero(prediction)
    return float(2 * np.count_nonzero(truth & prediction) / total) if total else 1.0


def surface_distances(truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> SurfaceDistances:
    """Measure every surface voxel's distance to the other mask's surface, between voxel centres.

    The surface is the mask without its binary erosion by the cross of face neighbours (6 in 3-D, 4 in 2-D). What lies
    beyond the array counts as outside, so a mask that touches the border has surface there.

    Args:
        truth: bool array, 2-D or 3-D.
        prediction: bool array of the same shape.
        spacing: the distance between voxels along each axis, in the unit wanted; (1, 1, 1) for voxels.

    Returns:
        The distances in both directions, in the unit of `spacing`.

    Raises:
        ValueError: the shapes differ, or `spacing` has not one positive number an axis.
    """
    truth, prediction = _as_masks(truth, prediction)
    _check_spacing(spacing, truth.ndim)
    return _distances_between(_surface_voxels(truth), _surface_voxels(prediction), spacing)


def hausdorff(
    truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...], percentile: float = 100.0
) -> float:
    """Symmetric Hausdorff distance of two mask surfaces, or its robust form.

    Args:
        truth: bool array, 2-D or 3-D.
        prediction: bool array of the same shape.
        spacing: the distance between voxels along each axis, in the unit wanted; (1, 1, 1) for voxels.
        percentile: 100 for the Hausdorff distance; 95 for HD95, the larger of the two directions' 95th percentiles (as
            MONAI's `compute_hausdorff_distance` defines it; others pool both directions first).

    Returns:
        The distance in the unit of `spacing`. Identical masks: 0. Both empty: NaN. One empty: infinity.

    Raises:
        ValueError: as `surface_distances`.
    """
    return surface_distances(truth, prediction, spacing).hausdorff(percentile)


def surface_dice(
    truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...], tolerance_mm: float = 3.0
) -> float:
    """Share of the surface voxels of both masks that lie within a tolerance of the other mask's surface.

    Every surface voxel counts the same. Nikolov et al. 2018 (https://arxiv.org/abs/1809.04430), who introduced the
    score, weigh surface elements by their area instead: the numbers are close to theirs, not equal.

    Args:
        truth: bool array, 2-D or 3-D.
        prediction: bool array of the same shape.
        spacing: the distance between voxels along each axis, in mm.
        tolerance_mm: the deviation that is accepted, inclusive, in mm.

    Returns:
        0 to 1. Identical masks: 1.0. Both empty: 1.0. One empty: 0.0.

    Raises:
        ValueError: as `surface_distances`.
    """
    return surface_distances(truth, prediction, spacing).dice(tolerance_mm)


def score_scan(
    scan: str,
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing: tuple[float, float, float],
    tolerance_mm: float = 3.0,
) -> list[dict]:
    """Score a scan's predicted organs.

    `score = 0.4 * dice + 0.6 * hausdorff_score` with `hausdorff_score = 1 - hausdorff_voxels / diagonal`, the diagonal
    being the length of (depth, height, width) of the whole scan: the form of the public MONAI-based solutions of the
    competition (https://www.kaggle.com/competitions/uw-madison-gi-tract-image-segmentation).

    Args:
        scan: the scan's name; of "case123_day20" the case is "case123".
        truth: bool array [3, depth, height, width], the organs in the order of `ORGANS`.
        prediction: bool array of the same shape.
        spacing: (z, y, x) in mm.
        tolerance_mm: of the surface Dice.

    Returns:
        One row an organ, of plain values: scan, case, organ; dice, hausdorff_voxels, hausdorff_score, score,
        hausdorff_mm, hd95_mm, surface_dice; truth_ml, prediction_ml, false_positive_ml; dice_2d_sum (the sum of the
        2-D Dice over the slices where the truth has the organ) and dice_2d_slices (their number).
        An organ absent from the truth: NaN in all scores, and what was predicted of it is false_positive_ml, which is
        NaN for the other organs. An organ of the truth predicted nowhere: 0 in all scores, NaN in all distances.

    Raises:
        ValueError: the shapes differ or are not [3, depth, height, width], or `spacing` is not three positive numbers.
    """
    truth, prediction = _as_masks(truth, prediction)
    if truth.ndim != 4 or len(truth) != len(ORGANS):
        raise ValueError(f"masks of {scan} have shape {truth.shape}: give [{len(ORGANS)}, depth, height, width]")
    _check_spacing(spacing, 3)
    labels = [{"scan": scan, "case": scan.rsplit("_day", 1)[0], "organ": organ} for organ in ORGANS]
    organs = zip(labels, truth, prediction, strict=True)
    return [label | _score_organ(t, p, spacing, tolerance_mm) for label, t, p in organs]


def summarise(rows: pd.DataFrame) -> dict:
    """Average the rows of `score_scan` over all pairs of organ and scan, and over parts of them.

    Args:
        rows: the rows of any number of scans, with the columns that `score_scan` gives; also as read back from CSV.

    Returns:
        What `evaluation.json` holds, fit for `json.dumps(..., allow_nan=False)`: score, dice, hausdorff (the mean
        hausdorff_score), hausdorff_mm, hd95_mm, surface_dice, dice_2d (over all annotated slices), missed (organs of
        the truth that were predicted nowhere), false_positive_ml (the total predicted of organs absent from the
        truth); scans and cases (their numbers); organs, {organ: the same means}; per_scan, {scan: the same means, its
        case, and organs with the means again}.
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


def _means(rows: pd.DataFrame) -> dict:
    present = rows[rows["truth_ml"] > 0]
    slices = present["dice_2d_slices"].sum()
    means = {name: present[column].mean() for name, column in _MEANS.items()}
    means["dice_2d"] = present["dice_2d_sum"].sum() / slices if slices else math.nan
    return {name: float(mean) if math.isfinite(mean) else None for name, mean in means.items()} | {
        "missed": int((present["prediction_ml"] == 0).sum()),
        "false_positive_ml": float(rows["false_positive_ml"].sum()),
    }


def _score_organ(truth, prediction, spacing, tolerance_mm) -> dict:
    diagonal = float(np.linalg.norm(truth.shape))
    box = _bounding_box(truth | prediction)
    truth, prediction = truth[box], prediction[box]
    in_truth, in_prediction, in_both = (
        np.count_nonzero(mask, axis=(1, 2)) for mask in (truth, prediction, truth & prediction)
    )
    annotated = in_truth > 0
    dice_2d = 2 * in_both[annotated] / (in_truth[annotated] + in_prediction[annotated])
    ml = math.prod(spacing) / 1000
    volumes = {
        "truth_ml": float(in_truth.sum() * ml),
        "prediction_ml": float(in_prediction.sum() * ml),
        "false_positive_ml": math.nan if annotated.any() else float(in_prediction.sum() * ml),
        "dice_2d_sum": float(dice_2d.sum()),
        "dice_2d_slices": int(annotated.sum()),
    }
    if not annotated.any():
        return dict.fromkeys(_SCORES, math.nan) | volumes
    if not in_prediction.any():
        return {name: math.nan if name in _DISTANCES else 0.0 for name in _SCORES} | volumes
    overlap = float(2 * in_both.sum() / (in_truth.sum() + in_prediction.sum()))
    return _score_surfaces(truth, prediction, spacing, tolerance_mm, diagonal, overlap) | volumes


def _check_spacing(spacing: tuple[float, ...], axes: int) -> None:
    if len(spacing) != axes or not all(0 < s < math.inf for s in spacing):
        raise ValueError(f"spacing {tuple(spacing)} of {axes}-D masks: give one positive number an axis")


def _as_masks(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth, prediction = np.asarray(truth, bool), np.asarray(prediction, bool)
    if truth.shape != prediction.shape:
        raise ValueError(f"truth has shape {truth.shape}, prediction {prediction.shape}: bring both to one grid first")
    return truth, prediction


def _score_surfaces(truth, prediction, spacing, tolerance_mm, diagonal, overlap) -> dict:
    surfaces = _surface_voxels(truth), _surface_voxels(prediction)
    hausdorff_voxels = _distances_between(*surfaces, (1.0, 1.0, 1.0)).hausdorff()
    in_mm = _distances_between(*surfaces, spacing)
    hausdorff_score = 1 - hausdorff_voxels / diagonal
    return {
        "dice": overlap,
        "hausdorff_voxels": hausdorff_voxels,
        "hausdorff_score": hausdorff_score,
        "score": DICE_WEIGHT * overlap + HAUSDORFF_WEIGHT * hausdorff_score,
        "hausdorff_mm": in_mm.hausdorff(),
        "hd95_mm": in_mm.hausdorff(95),
        "surface_dice": in_mm.dice(tolerance_mm),
    }


def _distances_between(truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> SurfaceDistances:
    truth, prediction = truth * np.asarray(spacing, float), prediction * np.asarray(spacing, float)
    return SurfaceDistances(_nearest(truth, prediction), _nearest(prediction, truth))


def _nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    if not len(points) or not len(others):
        return np.full(len(points), math.inf)
    return cKDTree(others).query(points, workers=-1)[0]


def _surface_voxels(mask: np.ndarray) -> np.ndarray:
    box = _bounding_box(mask)
    inside = np.pad(mask[box], 1)
    core = tuple(slice(1, -1) for _ in range(mask.ndim))
    eroded = inside[core].copy()
    for axis in range(mask.ndim):
        for neighbour in (slice(None, -2), slice(2, None)):
            eroded &= inside[(*core[:axis], neighbour, *core[axis + 1 :])]
    return np.argwhere(inside[core] & ~eroded) + [s.start for s in box]


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        occupied = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1) if occupied.size else slice(0, 0))
    return tuple(box)
