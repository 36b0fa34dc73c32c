"""Scores of predicted masks: overlap, surface distances, volumes, and the competition's score.

The work is divided among four files: this one computes scores of two masks and averages them; distances.py crops a pair
of masks and measures distances between their surfaces; surfels.py finds the surface elements and their areas;
nearest.py quickly finds the nearest point of a surface. docs/how-to/evaluate.md has the formulas, the conventions for
empty masks, and the differences from the definitions of other packages.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from gitseg_tf.data.volume import Annotation
from gitseg_tf.evaluation.metrics.distances import MaskPair, as_masks, check_spacing, voxel_distances
from gitseg_tf.labels import LabelSet

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
_VOLUMES = ("truth_ml", "prediction_ml", "volume_error_ml", "volume_error_relative", "false_positive_ml")
_UNANNOTATED = dict.fromkeys((*_SCORES, *_VOLUMES), math.nan) | {"dice_2d_sum": 0.0, "dice_2d_slices": 0}
_MOST_THREADS = 8


def dice(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Compute the Dice similarity coefficient of two masks, `2 |A and B| / (|A| + |B|)`.

    Args:
        truth: bool array of any shape.
        prediction: bool array of the same shape.

    Returns:
        0 (disjoint) to 1 (identical). Both masks empty: 1.0. One of them empty: 0.0.

    Raises:
        ValueError: the shapes differ.
    """
    truth, prediction = as_masks(truth, prediction)
    total = np.count_nonzero(truth) + np.count_nonzero(prediction)
    return float(2 * np.count_nonzero(truth & prediction) / total) if total else 1.0


def iou(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Compute the intersection over union (Jaccard index) of two masks, `|A and B| / |A or B|`.

    Args:
        truth: bool array of any shape.
        prediction: bool array of the same shape.

    Returns:
        0 (disjoint) to 1 (identical). Both masks empty: 1.0. One of them empty: 0.0.

    Raises:
        ValueError: the shapes differ.
    """
    truth, prediction = as_masks(truth, prediction)
    union = np.count_nonzero(truth | prediction)
    return float(np.count_nonzero(truth & prediction) / union) if union else 1.0


def hausdorff(
    truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...], percentile: float = 100.0
) -> float:
    """Compute the symmetric Hausdorff distance between the surface voxels of two masks, or a percentile, like MONAI.

    Args:
        truth: bool array, 2-D or 3-D.
        prediction: bool array of the same shape.
        spacing: the distance between voxels along each axis, in any unit; (1, 1, 1) for voxels.
        percentile: 100 for the Hausdorff distance; 95 for HD95, the larger of the two directions' 95th percentiles.

    Returns:
        The distance in the unit of `spacing`. Identical masks: 0. Both empty: NaN. One empty: infinity.

    Raises:
        ValueError: see `distances.voxel_distances`.
    """
    return voxel_distances(truth, prediction, spacing).hausdorff(percentile)


def mean_surface_distance(truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> float:
    """Compute the average symmetric distance between the surface voxels of two masks, like MONAI with symmetric=True.

    Args:
        truth: bool array, 2-D or 3-D.
        prediction: bool array of the same shape.
        spacing: the distance between voxels along each axis, in any unit.

    Returns:
        The distance in the unit of `spacing`. Identical masks: 0. Both empty: NaN. One empty: infinity.

    Raises:
        ValueError: see `distances.voxel_distances`.
    """
    return voxel_distances(truth, prediction, spacing).mean()


def surface_dice(
    truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...], tolerance_mm: float = 3.0
) -> float:
    """Compute the fraction of the surface area of both masks within a tolerance of the other mask's surface.

    Args:
        truth: bool array, 2-D or 3-D.
        prediction: bool array of the same shape.
        spacing: the distance between voxels along each axis, in mm.
        tolerance_mm: the accepted deviation, inclusive, in mm.

    Returns:
        0 to 1. Identical masks: 1.0. Both empty: 1.0. One empty: 0.0.

    Raises:
        ValueError: see `distances.voxel_distances`.

    Source: Nikolov et al. 2018 (https://arxiv.org/abs/1809.04430), as computed by DeepMind's surface-distance.
    """
    return MaskPair.of(truth, prediction, spacing).surface_dice(tolerance_mm)


def score_scan(
    scan: str,
    case: str,
    truth: Annotation | np.ndarray,
    prediction: np.ndarray,
    *,
    labels: LabelSet,
    spacing: tuple[float, float, float],
    tolerance_mm: float = 3.0,
) -> list[dict]:
    """Score a scan's predicted labels, several labels at a time in threads.

    `score = 0.4 * dice + 0.6 * hausdorff_score` with `hausdorff_score = 1 - hausdorff_voxels / diagonal`, where the
    diagonal is the length of (depth, height, width) of the whole scan, as in the public MONAI-based solutions of the
    competition (https://www.kaggle.com/competitions/uw-madison-gi-tract-image-segmentation).

    Args:
        scan: the scan's id.
        case: its patient, who may have other scans.
        truth: the reference. An array, bool [L, depth, height, width], is an annotation of all labels.
        prediction: bool array [L, depth, height, width].
        labels: the labels of the masks, in order.
        spacing: (z, y, x) in mm.
        tolerance_mm: tolerance of the surface Dice, in mm.

    Returns:
        One row per label, of plain values: scan, case, label; dice, iou, hausdorff_score, score, surface_dice;
        hausdorff_voxels, hausdorff_mm, hd95_mm, mean_surface_mm; truth_ml, prediction_ml, volume_error_ml (predicted
        minus reference), volume_error_relative (the same divided by the reference volume), false_positive_ml;
        dice_2d_sum (the sum of the 2-D Dice over the slices where the reference has the label) and dice_2d_slices
        (their number).
        A label absent from the reference has NaN in all scores and volume errors; its predicted volume is
        false_positive_ml, which is NaN for the other labels. A label that is missed completely has 0 in all scores and
        NaN in all distances. An unannotated label has NaN in every column, including truth_ml, and 0 in dice_2d_sum and
        dice_2d_slices; `summarize`, the intervals, charts and comparisons leave it out.
        Voxels of `truth.ignore` are removed from reference and prediction first.

    Raises:
        ValueError: the shapes differ or are not [L, depth, height, width], or `spacing` is not three positive numbers.

    Example:
        >>> truth = np.zeros((2, 3, 4, 5), bool)
        >>> truth[0, 1, 1:3, 1:4] = True
        >>> rows = score_scan("ct", "p1", truth, truth, labels=LabelSet.of("liver", "spleen"), spacing=(3.0, 1.0, 1.0))
        >>> [(row["label"], row["dice"]) for row in rows]
        [('liver', 1.0), ('spleen', nan)]
    """
    annotation = truth if isinstance(truth, Annotation) else None
    masks, prediction = as_masks(truth.masks if isinstance(truth, Annotation) else truth, prediction)
    if masks.ndim != 4 or len(masks) != len(labels):
        raise ValueError(f"masks of {scan} must be [{len(labels)}, depth, height, width], got shape {masks.shape}")
    check_spacing(spacing, 3)
    counted = None if annotation is None or annotation.ignore is None else ~annotation.ignore
    annotated = [True] * len(labels) if annotation is None else annotation.annotated.tolist()

    def score(k: int) -> dict:
        if not annotated[k]:
            return dict(_UNANNOTATED)
        pair = (masks[k], prediction[k]) if counted is None else (masks[k] & counted, prediction[k] & counted)
        return _score_label(*pair, spacing, tolerance_mm)

    with ThreadPoolExecutor(min(len(labels), _MOST_THREADS)) as threads:
        scores = threads.map(score, range(len(labels)))
        return [
            {"scan": scan, "case": case, "label": name} | row for name, row in zip(labels.names, scores, strict=True)
        ]


def summarize(rows: pd.DataFrame) -> dict:
    """Average the rows of `score_scan` over all pairs of label and scan, and over subsets of them.

    Args:
        rows: the rows of any number of scans, with the columns of `score_scan`; they may be read from a CSV file.

    Returns:
        The content of `evaluation.json`, valid for `json.dumps(..., allow_nan=False)`: score, dice, iou, hausdorff (the
        mean hausdorff_score), hausdorff_mm, hd95_mm, mean_surface_mm, surface_dice, volume_bias_ml (the mean signed
        error), volume_error_ml and volume_error_relative (the mean absolute errors), dice_2d (over all slices where the
        reference has the label), missed (labels of the reference that are not predicted at all), false_positive_ml (the
        total predicted volume of labels absent from the reference); scans and cases (their numbers); labels, {label:
        the same means}; unannotated, {label: the number of scans in which it is unannotated}, if there are any;
        per_scan, {scan: the same means, its case, and labels with the means again}.
        An empty mean is None. Absent and unannotated labels do not enter any mean, missed labels do not enter means of
        distances.
    """
    rows = rows.reset_index(drop=True)
    unannotated = rows.loc[rows["truth_ml"].isna(), "label"].value_counts()
    of_pair = _means_of_pairs(rows)
    per_scan = {
        str(scan): _means(group)
        | {"case": str(group["case"].iloc[0])}
        | {"labels": {name: of_pair[index] for index, name in zip(group.index.tolist(), group["label"], strict=True)}}
        for scan, group in rows.groupby("scan", sort=False)
    }
    return _means(rows) | {
        "scans": int(rows["scan"].nunique()),
        "cases": int(rows["case"].nunique()),
        "labels": {str(name): _means(group) for name, group in rows.groupby("label", sort=False)},
        "unannotated": {name: int(unannotated[name]) for name in label_names(rows) if name in unannotated},
        "per_scan": per_scan,
    }


def label_names(rows: pd.DataFrame) -> list[str]:
    """List the labels of the rows of `score_scan`, in the order of their LabelSet."""
    return [str(name) for name in rows["label"].unique()]


def mean_terms(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compute the numerators and denominators whose sums over pairs of label and scan give the means of `summarize`.

    Args:
        rows: rows of `score_scan`.

    Returns:
        Numerators and denominators, each with the rows of `rows` and one column per mean, named as in the summary. Both
        are 0 if a pair does not enter a mean: the label is absent or unannotated, or missed and has no distance.
    """
    present = rows["truth_ml"] > 0
    values = {name: rows[column] for name, column in _MEANS.items()}
    values |= {name: rows[name].abs() for name in _MEANS_OF_SIZES}
    table = pd.DataFrame(values, index=rows.index).where(present)
    counts = table.notna().astype(float).assign(dice_2d=rows["dice_2d_slices"].where(present, 0.0))
    return table.fillna(0.0).assign(dice_2d=rows["dice_2d_sum"].where(present, 0.0)), counts


def _means(rows: pd.DataFrame) -> dict:
    sums, counts = (terms.sum() for terms in mean_terms(rows))
    return {name: float(sums[name] / counts[name]) if counts[name] else None for name in sums.index} | {
        "missed": int(((rows["truth_ml"] > 0) & (rows["prediction_ml"] == 0)).sum()),
        "false_positive_ml": float(rows["false_positive_ml"].sum()),
    }


def _means_of_pairs(rows: pd.DataFrame) -> list[dict]:
    """Compute `_means` for each row separately, vectorized because there may be 255 rows per scan."""
    sums, counts = mean_terms(rows)
    means = (sums / counts.where(counts > 0)).astype(object)
    missed = (rows["truth_ml"] > 0) & (rows["prediction_ml"] == 0)
    counted = pd.DataFrame({"missed": missed.astype(int), "false_positive_ml": rows["false_positive_ml"].fillna(0.0)})
    return [
        row | row_counts
        for row, row_counts in zip(
            means.where(means.notna(), None).to_dict("records"), counted.to_dict("records"), strict=True
        )
    ]


def _score_label(
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
    """Compute volumes and 2-D Dice from the number of voxels in each slice."""
    annotated = in_truth > 0
    truth_ml, prediction_ml = float(in_truth.sum() * ml), float(in_prediction.sum() * ml)
    present = annotated.any()
    dice_2d = 2 * in_both[annotated] / (in_truth[annotated] + in_prediction[annotated])
    return {
        "truth_ml": truth_ml,
        "prediction_ml": prediction_ml,
        "volume_error_ml": prediction_ml - truth_ml if present else math.nan,
        "volume_error_relative": (prediction_ml - truth_ml) / truth_ml if present else math.nan,
        "false_positive_ml": math.nan if present else prediction_ml,
        "dice_2d_sum": float(dice_2d.sum()),
        "dice_2d_slices": int(annotated.sum()),
    }
