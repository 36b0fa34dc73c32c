"""How far a network's probabilities can be believed: predicted against observed frequency, voxel by voxel."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from gitseg_tf.config import Config
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.inference.postprocess import clean_mask, organ_settings, postprocess
from gitseg_tf.inference.predictor import make_scan_function

# Level k holds the probabilities from k % to below k + 1 %; the last one holds 1 as well.
LEVELS = 100
_PER_BIN = 10
# Beside a level, in the same byte: the voxel reaches the organ's threshold.
_REACHED = 128


def make_level_predictor(
    probabilities: Callable, config: Config
) -> Callable[[np.ndarray, list[int], np.ndarray, tuple], tuple[np.ndarray, np.ndarray]]:
    """Wrap a network as `predictor.make_predictor` does, to give the probabilities beside the masks.

    A voxel's probability leaves the graph as its level, in one byte with the outcome of the exact threshold: a scan
    takes no more memory on its way than its masks do.

    Args:
        probabilities, config: as `make_predictor` takes them.

    Returns:
        Function of (image uint16 [D, H, W], slice numbers [D], percentiles float32 [11] of the scan, spacing
        (z, y, x) in mm) to the masks, bool [3, D, H, W], and to the levels, uint8 of the same shape, of the network's
        probabilities at the scan's size before any post-processing.
    """
    settings = organ_settings(config)
    if any(organ.smooth_mm for organ in settings):
        find = make_scan_function(probabilities, config, tf.identity)

        def predict_smooth(image, numbers, percentiles, spacing):
            found = find(image, numbers, percentiles, spacing)
            return postprocess(found, settings, numbers, spacing), _levels(found).numpy()

        return predict_smooth
    thresholds = np.array([organ.threshold for organ in settings], np.float32)
    code = make_scan_function(
        probabilities, config, lambda found: _levels(found) + tf.cast(found >= thresholds, tf.uint8) * _REACHED
    )

    def predict(image, numbers, percentiles, spacing):
        codes = code(image, numbers, percentiles, spacing)
        masks = codes >= _REACHED
        codes &= _REACHED - 1
        for k, organ in enumerate(settings):
            masks[k] = clean_mask(masks[k], organ, spacing)
        return masks, codes

    return predict


def _levels(probabilities: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.minimum(probabilities * LEVELS, LEVELS - 1), tf.uint8)


class Reliability:
    """Counts of voxels by organ and probability, and how many of them the reference has; scan after scan."""

    def __init__(self):
        self._voxels = np.zeros((len(ORGANS), LEVELS), np.int64)
        self._true = np.zeros_like(self._voxels)

    def add(self, levels: np.ndarray, truth: np.ndarray) -> None:
        """Count a scan.

        Args:
            levels: uint8 [3, D, H, W], as from `make_level_predictor`.
            truth: bool [3, D, H, W].
        """
        for k in range(len(ORGANS)):
            # Nearly all voxels are of level 0, which needs no histogram.
            above = levels[k] > 0
            voxels = np.bincount(levels[k][above], minlength=LEVELS)
            true = np.bincount(levels[k][above & truth[k]], minlength=LEVELS)
            voxels[0], true[0] = above.size - voxels.sum(), np.count_nonzero(truth[k]) - true.sum()
            self._voxels[k] += voxels
            self._true[k] += true

    def summary(self) -> dict:
        """What the counts say of voxels with a probability of 1 % and more, in bins of 10 %.

        Which voxels count depends on the prediction alone, so that the observed frequency within a bin is that of all
        voxels with such a probability, wherever they are. The background that the network is sure of, some 95 % of a
        scan, would bring any error near 0; what of the reference lies in there is told instead.

        Returns:
            {organ: {"voxels": how many count, "ece": the expected calibration error, i.e. the mean over voxels of the
            gap between mean prediction and observed frequency of their bin, "mce": the largest gap of a bin,
            "predicted" and "observed": the means over all these voxels, "below": the share of the organ's reference
            with a probability below 1 %, "bins": [{"predicted", "observed", "voxels"}] of the bins that have any}};
            None for what there is no voxel for.
            A voxel's probability is taken from the middle of its percent.

        Source: Guo 2017 (https://arxiv.org/abs/1706.04599), for segmentation as in Mehrtash 2020
        (https://arxiv.org/abs/1911.13273), here with a yes or no for each organ.
        """
        return {
            organ: _summarise(voxels, true)
            for organ, voxels, true in zip(ORGANS, self._voxels, self._true, strict=True)
        }


def _summarise(voxels: np.ndarray, true: np.ndarray) -> dict:
    below = float(true[0] / true.sum()) if true.any() else None
    middles = (np.arange(LEVELS) + 0.5) / LEVELS
    counted, true_counted = (np.where(np.arange(LEVELS) > 0, counts, 0) for counts in (voxels, true))
    total = int(counted.sum())
    if not total:
        return {"voxels": 0, "ece": None, "mce": None, "predicted": None, "observed": None, "below": below, "bins": []}
    in_bins, true_in_bins, predicted_in_bins = (
        values.reshape(-1, _PER_BIN).sum(axis=1) for values in (counted, true_counted, counted * middles)
    )
    there = in_bins > 0
    predicted, observed = predicted_in_bins[there] / in_bins[there], true_in_bins[there] / in_bins[there]
    gaps, shares = np.abs(predicted - observed), in_bins[there] / total
    return {
        "voxels": total,
        "ece": float(gaps @ shares),
        "mce": float(gaps.max()),
        "predicted": float(predicted @ shares),
        "observed": float(observed @ shares),
        "below": below,
        "bins": [
            {"predicted": float(p), "observed": float(o), "voxels": int(n)}
            for p, o, n in zip(predicted, observed, in_bins[there], strict=True)
        ],
    }
