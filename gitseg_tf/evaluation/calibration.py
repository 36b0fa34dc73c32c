"""Calibration of a network's probabilities: predicted versus observed frequency over voxels."""

import numpy as np

from gitseg_tf.data.volume import Annotation
from gitseg_tf.inference.predictor import LEVELS
from gitseg_tf.labels import LabelSet

_PER_BIN = 10


class Reliability:
    """Counts voxels by label and probability, and how many of them are in the reference, scan by scan.

    Args:
        labels: the labels of the masks.
    """

    def __init__(self, labels: LabelSet):
        self._names = labels.names
        self._voxels = np.zeros((len(labels), LEVELS), np.int64)
        self._true = np.zeros_like(self._voxels)

    def add(self, levels: np.ndarray, truth: Annotation) -> None:
        """Count a scan, without its unannotated labels and its ignored voxels.

        Args:
            levels: uint8 [L, D, H, W], from `Predictor.predict_levels`.
            truth: the reference.
        """
        counted = None if truth.ignore is None else ~truth.ignore
        for k in np.flatnonzero(truth.annotated):
            level, mask = levels[k], truth.masks[k]
            if counted is not None:
                level, mask = level[counted], mask[counted]
            # Nearly all voxels have level 0, which does not need a histogram.
            above = level > 0
            voxels = np.bincount(level[above], minlength=LEVELS)
            true = np.bincount(level[above & mask], minlength=LEVELS)
            voxels[0], true[0] = above.size - voxels.sum(), np.count_nonzero(mask) - true.sum()
            self._voxels[k] += voxels
            self._true[k] += true

    def summary(self) -> dict:
        """Summarize the voxels with a probability of at least 1%, in bins of 10%.

        The selection of voxels depends on the prediction alone, so that the observed frequency of a bin covers all
        voxels with that probability, wherever they are. Confident background, about 95% of a scan, would bring any
        error close to 0; the fraction of the reference in it is reported instead.

        Returns:
            {label: {"voxels": number of voxels, "ece": the expected calibration error, i.e. the mean over voxels of the
            gap between mean prediction and observed frequency of their bin, "mce": the largest gap of a bin,
            "predicted" and "observed": the means over all these voxels, "below": the fraction of the label's reference
            with a probability below 1%, "bins": [{"predicted", "observed", "voxels"}] of the nonempty bins}}; values
            are None if there are no voxels. A voxel's probability is taken as the center of its percent.

        Source: Guo 2017 (https://arxiv.org/abs/1706.04599), for segmentation as in Mehrtash 2020
        (https://arxiv.org/abs/1911.13273), here with a binary decision per label.
        """
        return {
            name: _summarize(voxels, true)
            for name, voxels, true in zip(self._names, self._voxels, self._true, strict=True)
        }


def _summarize(voxels: np.ndarray, true: np.ndarray) -> dict:
    below = float(true[0] / true.sum()) if true.any() else None
    middles = (np.arange(LEVELS) + 0.5) / LEVELS
    counted, true_counted = (np.where(np.arange(LEVELS) > 0, counts, 0) for counts in (voxels, true))
    total = int(counted.sum())
    if not total:
        return {"voxels": 0, "ece": None, "mce": None, "predicted": None, "observed": None, "below": below, "bins": []}
    in_bins, true_in_bins, predicted_in_bins = (
        values.reshape(-1, _PER_BIN).sum(axis=1) for values in (counted, true_counted, counted * middles)
    )
    filled = in_bins > 0
    predicted, observed = predicted_in_bins[filled] / in_bins[filled], true_in_bins[filled] / in_bins[filled]
    gaps, shares = np.abs(predicted - observed), in_bins[filled] / total
    return {
        "voxels": total,
        "ece": float(gaps @ shares),
        "mce": float(gaps.max()),
        "predicted": float(predicted @ shares),
        "observed": float(observed @ shares),
        "below": below,
        "bins": [
            {"predicted": float(p), "observed": float(o), "voxels": int(n)}
            for p, o, n in zip(predicted, observed, in_bins[filled], strict=True)
        ],
    }
