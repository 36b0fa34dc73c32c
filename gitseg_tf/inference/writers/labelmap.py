"""Write masks as NIfTI label maps: one file of integers per scan, with the label names in dataset.json."""

import json
import logging
from typing import Any

import numpy as np

from gitseg_tf.core.paths import write_atomically
from gitseg_tf.data.readers.base import Scan
from gitseg_tf.data.volume import Volume
from gitseg_tf.inference.prediction import Prediction
from gitseg_tf.inference.writers.nifti import to_nifti, with_gaps
from gitseg_tf.inference.writers.registry import Writer

logger = logging.getLogger(__name__)


class Labelmap(Writer):
    """Writes OUT/SCAN.nii.gz, uint8: 0 is background, k + 1 is label k; OUT/dataset.json names them like nnU-Net v2."""

    def check(self) -> None:
        self._overlaps: set[str] = set()

    def write(self, scan: Scan, volume: Volume, prediction: Prediction) -> None:
        if (prediction.masks.sum(0, dtype=np.uint8) > 1).any():
            self._overlaps.add("label order" if prediction.probabilities is None else "probability")
        grid = scan.source.whole_grid(scan)
        numbers = label_numbers(prediction.masks, prediction.probabilities)
        self.out.mkdir(parents=True, exist_ok=True)
        write_atomically(self.out / f"{scan.id}.nii.gz", to_nifti(with_gaps(numbers, scan, grid), grid))

    def finish(self) -> None:
        names = {"background": 0} | {name: k for k, name in enumerate(self.labels.names, 1)}
        tree = {"labels": names, "file_ending": ".nii.gz"}
        write_atomically(self.out / "dataset.json", (json.dumps(tree, indent=1) + "\n").encode())
        for how in sorted(self._overlaps):
            logger.info("labelmap: labels overlap in some voxels; each such voxel gets one label, chosen by %s", how)


def label_numbers(masks: np.ndarray, probabilities: np.ndarray | None = None) -> np.ndarray:
    """Combine masks to a label map.

    Args:
        masks: bool [L, D, H, W].
        probabilities: float32 [L, D, H, W]; where masks overlap, the most probable label wins. None lets the first
            label win.

    Returns:
        uint8 [D, H, W]: 0 is background, k + 1 is label k.

    Example:
        >>> masks = np.ones((2, 1, 1, 1), bool)
        >>> label_numbers(masks).item(), label_numbers(masks, np.float32([0.6, 0.7])[:, None, None, None]).item()
        (1, 2)
    """
    numbers = np.zeros(masks.shape[1:], np.uint8)
    best = np.full(masks.shape[1:], -1, np.float32)
    for k, mask in enumerate(masks):
        value: Any = np.float32(-k) if probabilities is None else probabilities[k]
        wins = mask & ((numbers == 0) | (value > best))
        numbers[wins] = k + 1
        best[wins] = value if probabilities is None else value[wins]
    return numbers
