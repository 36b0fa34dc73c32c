"""The competition's score of UW-Madison GI Tract Image Segmentation, by the organizers' text.

    score = 0.4 * Dice + 0.6 * (1 - Hausdorff)

Dice is 2-D: the mean over all images, which are pairs of slice and label; images that are empty in both masks are left
out. Hausdorff is 3-D: the mean over pairs of scan and label of the distance between the masks' voxels, in coordinates
divided by the volume's shape and by sqrt(3), which is the diagonal of the unit cube; pairs that are empty in both masks
are left out, and the distance is 1 if only one of the masks is empty. Missing slices are not part of the volume.

The form of the public MONAI-based notebooks, `score_volume`, has the same weights, but 3-D Dice and the distance
between surfaces in voxels divided by the diagonal of the scan. It leaves out labels that are absent from the reference.
docs/explanation/competition_score.md compares the two.
"""

import math
from typing import Any

import numpy as np

from gitseg_tf.evaluation.metrics.distances import MaskPair

DICE_WEIGHT, HAUSDORFF_WEIGHT = 0.4, 0.6
_CUBE_DIAGONAL = math.sqrt(3)


def combined(dice: Any, hausdorff_score: Any) -> Any:
    """Compute the weighted mean of both forms, of numbers or arrays: `0.4 * dice + 0.6 * hausdorff_score`."""
    return DICE_WEIGHT * dice + HAUSDORFF_WEIGHT * hausdorff_score


def dice_of_images(in_truth: np.ndarray, in_prediction: np.ndarray, in_both: np.ndarray) -> tuple[float, int]:
    """Add up the 2-D Dice of a label over the slices in which at least one of the masks is not empty.

    Args:
        in_truth, in_prediction, in_both: int [D], the number of voxels in each slice of the masks and their overlap.

    Returns:
        The sum, and the number of these slices.
    """
    voxels = in_truth + in_prediction
    images = voxels > 0
    return float((2 * in_both[images] / voxels[images]).sum()), int(np.count_nonzero(images))


def hausdorff_score(pair: MaskPair, shape: tuple[int, ...]) -> float:
    """Compute `1 - distance / sqrt(3)`, with the distance between the voxels of two masks in a unit cube.

    Args:
        pair: the masks, without planes for missing slices.
        shape: shape of the whole volume, by which coordinates are divided.

    Returns:
        0 to 1. Both masks empty: NaN. One empty: 0.
    """
    distance = pair.set_distance(tuple(1 / size for size in shape))
    return 0.0 if math.isinf(distance) else 1 - distance / _CUBE_DIAGONAL


def hausdorff_score_volume(voxels: float, shape: tuple[int, ...]) -> float:
    """Compute `1 - distance / diagonal`, the form of public notebooks.

    Args:
        voxels: the Hausdorff distance between the masks' surfaces, in voxels.
        shape: shape of the whole volume, whose diagonal is the norm of (depth, height, width).

    Returns:
        Up to 1.
    """
    return 1 - voxels / float(np.linalg.norm(shape))


def score_parts(truth: np.ndarray, prediction: np.ndarray, shape: tuple[int, ...]) -> tuple[float, int, float]:
    """Compute the parts of the competition's score for one label of a scan.

    Args:
        truth, prediction: bool [D, ...], all slices of the volume; rows and columns may be cropped.
        shape: shape of the whole volume.

    Returns:
        `dice_of_images` and `hausdorff_score`.
    """
    pair = MaskPair.of(truth, prediction, (1.0, 1.0, 1.0))
    return *dice_of_images(*plane_counts(pair, truth, prediction)), hausdorff_score(pair, shape)


def plane_counts(
    pair: MaskPair, truth: np.ndarray, prediction: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count the voxels in each slice of the pair's bounding box: of reference, prediction and both; int [D] each."""
    cut = truth[pair.box], prediction[pair.box]
    in_truth, in_prediction, in_both = (
        np.array([np.count_nonzero(plane) for plane in mask], int) for mask in (*cut, cut[0] & cut[1])
    )
    return in_truth, in_prediction, in_both
