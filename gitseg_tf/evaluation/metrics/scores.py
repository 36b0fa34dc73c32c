"""Scores of predicted masks: overlap, surface distances, volumes, and the competition's score.

The work is divided among seven files: this one scores scans and averages the scores; label_scores.py has all scores of
one label, competition.py the competition's score, and added_path.py the added path length; distances.py crops a pair of
masks and measures distances between them; surfels.py finds the surface elements and their areas; nearest.py quickly
finds the nearest point of a surface. docs/how-to/evaluate.md has the formulas, the conventions for empty masks, and the
differences from the definitions of other packages.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from gitseg_tf.data.volume import Annotation
from gitseg_tf.evaluation.metrics.competition import DICE_WEIGHT, HAUSDORFF_WEIGHT, combined
from gitseg_tf.evaluation.metrics.distances import MaskPair, as_masks, check_numbers, check_spacing, voxel_distances
from gitseg_tf.evaluation.metrics.label_scores import OF_TEXT, UNANNOTATED, score_label
from gitseg_tf.labels import LabelSet

# Name in the summary: column of the rows of `score_scan`.
_MEANS = {
    "score_volume": "score_volume",
    "dice": "dice",
    "iou": "iou",
    "hausdorff": "hausdorff_score",
    "hausdorff_volume": "hausdorff_score_volume",
    "hausdorff_mm": "hausdorff_mm",
    "hd95_mm": "hd95_mm",
    "mean_surface_mm": "mean_surface_mm",
    "surface_dice": "surface_dice",
    "surface_dice_2mm": "surface_dice_2mm",
    "surface_dice_3mm": "surface_dice_3mm",
    "added_path_mm": "added_path_mm",
    "volume_bias_ml": "volume_error_ml",
}
# Means that are weighted sums of other means.
COMBINED = {"score": {"dice_2d": DICE_WEIGHT, "hausdorff": HAUSDORFF_WEIGHT}}
_MEANS_OF_SIZES = ("volume_error_ml", "volume_error_relative")
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
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing: tuple[float, ...],
    percentile: float = 100.0,
    numbers: Sequence[int] | None = None,
) -> float:
    """Compute the symmetric Hausdorff distance between the surface voxels of two masks, or a percentile, like MONAI.

    Args:
        truth: bool array, 2-D or 3-D.
        prediction: bool array of the same shape.
        spacing: the distance between voxels along each axis, in any unit; (1, 1, 1) for voxels.
        percentile: 100 for the Hausdorff distance; 95 for HD95, the larger of the two directions' 95th percentiles.
        numbers: the slice numbers of 3-D masks; missing ones are empty slices. None: no slice is missing.

    Returns:
        The distance in the unit of `spacing`. Identical masks: 0. Both empty: NaN. One empty: infinity.

    Raises:
        ValueError: see `distances.MaskPair.of`.
    """
    return voxel_distances(truth, prediction, spacing, numbers).hausdorff(percentile)


def mean_surface_distance(
    truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...], numbers: Sequence[int] | None = None
) -> float:
    """Compute the average symmetric distance between the surface voxels of two masks, like MONAI with symmetric=True.

    Args:
        truth: bool array, 2-D or 3-D.
        prediction: bool array of the same shape.
        spacing: the distance between voxels along each axis, in any unit.
        numbers: as for `hausdorff`.

    Returns:
        The distance in the unit of `spacing`. Identical masks: 0. Both empty: NaN. One empty: infinity.

    Raises:
        ValueError: see `distances.MaskPair.of`.
    """
    return voxel_distances(truth, prediction, spacing, numbers).mean()


def surface_dice(
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing: tuple[float, ...],
    tolerance_mm: float = 3.0,
    numbers: Sequence[int] | None = None,
) -> float:
    """Compute the fraction of the surface area of both masks within a tolerance of the other mask's surface.

    Args:
        truth: bool array, 2-D or 3-D.
        prediction: bool array of the same shape.
        spacing: the distance between voxels along each axis, in mm.
        tolerance_mm: the accepted deviation, inclusive, in mm.
        numbers: as for `hausdorff`.

    Returns:
        0 to 1. Identical masks: 1.0. Both empty: 1.0. One empty: 0.0.

    Raises:
        ValueError: see `distances.MaskPair.of`.

    Source: Nikolov et al. 2018 (https://arxiv.org/abs/1809.04430), as computed by DeepMind's surface-distance.
    """
    return MaskPair.of(truth, prediction, spacing, numbers).surface_dice(tolerance_mm)


def score_scan(
    scan: str,
    case: str,
    truth: Annotation | np.ndarray,
    prediction: np.ndarray,
    *,
    labels: LabelSet,
    spacing: tuple[float, float, float],
    numbers: Sequence[int] | None = None,
    tolerance_mm: float = 3.0,
) -> list[dict]:
    """Score a scan's predicted labels, several labels at a time in threads.

    `score` and `hausdorff_score` follow the text of the competition, `score_volume` and `hausdorff_score_volume` the
    public notebooks, see competition.py. They are computed in voxels of the given slices; distances in mm know the gaps
    between slice numbers: missing slices are empty in both masks.

    Args:
        scan: the scan's id.
        case: its patient, who may have other scans.
        truth: the reference. An array, bool [L, depth, height, width], is an annotation of all labels.
        prediction: bool array [L, depth, height, width].
        labels: the labels of the masks, in order.
        spacing: (z, y, x) in mm.
        numbers: the slice numbers, with gaps where slices are missing; None: no slice is missing.
        tolerance_mm: tolerance of surface_dice, in mm.

    Returns:
        One row per label, of plain values: scan, case, label; score, hausdorff_score, score_volume,
        hausdorff_score_volume, dice, iou, surface_dice, surface_dice_2mm, surface_dice_3mm; hausdorff_voxels,
        hausdorff_mm, hd95_mm, mean_surface_mm; added_path_mm; truth_ml, prediction_ml, volume_error_ml (predicted
        minus reference), volume_error_relative (the same divided by the reference volume), false_positive_ml;
        dice_2d_sum (the sum of the 2-D Dice over the slices in which either mask has the label) and dice_2d_slices
        (their number).
        A label absent from the reference has NaN in all scores and volume errors; its predicted volume is
        false_positive_ml, which is NaN for the other labels. If that is not 0, its score and hausdorff_score are 0. A
        label that is missed completely has 0 in all scores and NaN in all distances; added_path_mm is its whole
        contour. An unannotated label has NaN in every column, including truth_ml, and 0 in dice_2d_sum and
        dice_2d_slices; `summarize`, the intervals, charts and comparisons leave it out.
        Voxels of `truth.ignore` are removed from reference and prediction first.

    Raises:
        ValueError: the shapes differ or are not [L, depth, height, width], `spacing` is not three positive numbers, or
            `numbers` are not ascending, one per slice.

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
    if numbers is not None:
        check_numbers(numbers, masks.shape[1:])
        numbers = numbers if numbers[-1] - numbers[0] >= len(numbers) else None
    counted = None if annotation is None or annotation.ignore is None else ~annotation.ignore
    annotated = [True] * len(labels) if annotation is None else annotation.annotated.tolist()

    def score(k: int) -> dict:
        if not annotated[k]:
            return dict(UNANNOTATED)
        pair = (masks[k], prediction[k]) if counted is None else (masks[k] & counted, prediction[k] & counted)
        return score_label(*pair, spacing, numbers, tolerance_mm)

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
        The content of `evaluation.json`, valid for `json.dumps(..., allow_nan=False)`: score (0.4 dice_2d + 0.6
        hausdorff), dice_2d (the mean over all slices that are not empty in both masks), hausdorff (the mean
        hausdorff_score), score_volume, hausdorff_volume (the mean hausdorff_score_volume), dice, iou, hausdorff_mm,
        hd95_mm, mean_surface_mm, surface_dice, surface_dice_2mm, surface_dice_3mm, added_path_mm, volume_bias_ml (the
        mean signed error), volume_error_ml and volume_error_relative (the mean absolute errors), missed (labels of the
        reference that are not predicted at all), false_positive_ml (the total predicted volume of labels absent from
        the reference); scans and cases (their numbers); labels, {label: the same means}; unannotated, {label: the
        number of scans in which it is unannotated}, if there are any; per_scan, {scan: the same means, its case, and
        labels with the means again}.
        An empty mean is None. Unannotated labels do not enter any mean, absent ones only score, dice_2d and hausdorff,
        and only if they are predicted; missed labels do not enter means of distances.
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
        Numerators and denominators, each with the rows of `rows` and one column per mean, named as in the summary; the
        means in `COMBINED` are weighted sums of these. Both are 0 if a pair does not enter a mean, see `summarize`.
    """
    present = rows["truth_ml"] > 0
    scored = present | (rows["prediction_ml"] > 0)
    values = {name: rows[column].where(scored if column in OF_TEXT else present) for name, column in _MEANS.items()}
    values |= {name: rows[name].abs().where(present) for name in _MEANS_OF_SIZES}
    table = pd.DataFrame(values, index=rows.index)
    counts = table.notna().astype(float).assign(dice_2d=rows["dice_2d_slices"].where(scored, 0.0))
    return table.fillna(0.0).assign(dice_2d=rows["dice_2d_sum"].where(scored, 0.0)), counts


def metric_terms(rows: pd.DataFrame, metric: str) -> np.ndarray:
    """Compute the sums that give the mean of a metric, to be added over parts of the rows.

    Args:
        rows: rows of `score_scan`.
        metric: a name of the summary.

    Returns:
        float64 [terms, 2]: numerator and denominator of each mean whose weighted sum is the metric.
    """
    names = list(COMBINED.get(metric, {metric: 1.0}))
    if rows.empty:
        return np.zeros((len(names), 2))
    sums, counts = (terms[names].sum().to_numpy(float) for terms in mean_terms(rows))
    return np.stack([sums, counts], axis=1)


def metric_value(terms: np.ndarray, metric: str) -> float:
    """Compute a metric from the sum of its `metric_terms`; NaN if nothing enters it."""
    weights = np.array(list(COMBINED.get(metric, {metric: 1.0}).values()))
    return float(weights @ (terms[:, 0] / terms[:, 1])) if terms[:, 1].all() else math.nan


def scan_score(rows: Sequence[Mapping]) -> float | None:
    """Compute the `score` of some rows of `score_scan`, as in `summarize`; None if there is none."""
    slices = sum(row["dice_2d_slices"] for row in rows)
    distances = [row["hausdorff_score"] for row in rows if not math.isnan(row["hausdorff_score"])]
    dice_2d_sum = sum(row["dice_2d_sum"] for row in rows)
    return combined(dice_2d_sum / slices, sum(distances) / len(distances)) if slices else None


def _means(rows: pd.DataFrame) -> dict:
    sums, counts = (terms.sum() for terms in mean_terms(rows))
    means = {name: float(sums[name] / counts[name]) if counts[name] else None for name in sums.index}
    return _with_combined(means) | {
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
        _with_combined(row) | row_counts
        for row, row_counts in zip(
            means.where(means.notna(), None).to_dict("records"), counted.to_dict("records"), strict=True
        )
    ]


def _with_combined(means: dict) -> dict:
    """Put the means of `COMBINED` before the others; one is None if a part is."""
    combinations = {
        name: None if any(means[part] is None for part in parts) else sum(w * means[part] for part, w in parts.items())
        for name, parts in COMBINED.items()
    }
    return combinations | means
