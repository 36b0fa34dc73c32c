"""Metrics between masks: Dice, intersection over union, Hausdorff distances, surface Dice and added path length.

Masks are arrays of any dtype; nonzero elements are inside. Distances are in the unit of `spacing`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from gitseg_tf.evaluation.metrics import added_path, scores

__all__ = ["added_path_length", "dice", "hausdorff", "hd95", "iou", "surface_dice"]


def dice(reference: ArrayLike, prediction: ArrayLike) -> float:
    """Compute the Dice similarity coefficient, `2 |A and B| / (|A| + |B|)`.

    Args:
        reference: a mask of any shape.
        prediction: a mask of the same shape.

    Returns:
        0 (disjoint) to 1 (identical). Both masks empty: 1. One of them empty: 0.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> dice([[1, 1, 0]], [[0, 1, 0]])
        0.6666666666666666
    """
    return scores.dice(_mask(reference), _mask(prediction))


def iou(reference: ArrayLike, prediction: ArrayLike) -> float:
    """Compute the intersection over union (Jaccard index), `|A and B| / |A or B|`.

    Args:
        reference: a mask of any shape.
        prediction: a mask of the same shape.

    Returns:
        0 (disjoint) to 1 (identical). Both masks empty: 1. One of them empty: 0.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> iou([[1, 1, 0]], [[0, 1, 0]])
        0.5
    """
    return scores.iou(_mask(reference), _mask(prediction))


def hausdorff(
    reference: ArrayLike,
    prediction: ArrayLike,
    spacing: Sequence[float] | None = None,
    *,
    numbers: Sequence[int] | None = None,
) -> float:
    """Compute the symmetric Hausdorff distance between the surface voxels of two masks, as MONAI does.

    Args:
        reference: a mask [H, W] or [D, H, W].
        prediction: a mask of the same shape.
        spacing: the distance between voxels along each axis, such as (z, y, x) in mm; None for a distance in voxels.
        numbers: slice numbers of 3-D masks; missing ones are empty slices of both masks. None: no slice is missing.

    Returns:
        The distance in the unit of `spacing`. Identical masks: 0. Both empty: NaN. One empty: infinity.

    Raises:
        ValueError: the shapes differ or are not 2-D or 3-D, or `spacing` does not have one positive number per axis,
            or `numbers` are not ascending, one per slice.

    Example:
        >>> hausdorff([[1, 0, 0, 0]], [[0, 0, 0, 1]], spacing=(1.0, 1.5))
        4.5
    """
    return _distance(reference, prediction, spacing, 100.0, numbers)


def hd95(
    reference: ArrayLike,
    prediction: ArrayLike,
    spacing: Sequence[float] | None = None,
    *,
    numbers: Sequence[int] | None = None,
) -> float:
    """Compute the larger of the 95th percentiles of the surface distances in both directions, as MONAI does.

    Args:
        reference: a mask [H, W] or [D, H, W].
        prediction: a mask of the same shape.
        spacing: the distance between voxels along each axis, such as (z, y, x) in mm; None for a distance in voxels.
        numbers: slice numbers of 3-D masks; missing ones are empty slices of both masks. None: no slice is missing.

    Returns:
        The distance in the unit of `spacing`. Identical masks: 0. Both empty: NaN. One empty: infinity.

    Raises:
        ValueError: see `hausdorff`.

    Example:
        >>> hd95([[1, 0, 0, 0]], [[0, 0, 0, 1]])
        3.0
    """
    return _distance(reference, prediction, spacing, 95.0, numbers)


def surface_dice(
    reference: ArrayLike,
    prediction: ArrayLike,
    spacing: Sequence[float],
    *,
    tolerance_mm: float = 3.0,
    numbers: Sequence[int] | None = None,
) -> float:
    """Compute the fraction of both surfaces that lies within a tolerance of the other one.

    Args:
        reference: a mask [H, W] or [D, H, W].
        prediction: a mask of the same shape.
        spacing: the distance between voxels along each axis, in mm.
        tolerance_mm: the accepted deviation, inclusive, in mm.
        numbers: as for `hausdorff`.

    Returns:
        0 to 1. Identical masks: 1. Both empty: 1. One empty: 0.

    Raises:
        ValueError: see `hausdorff`.

    Source: Nikolov et al. 2018 (https://arxiv.org/abs/1809.04430), as computed by DeepMind's surface-distance.

    Example:
        >>> surface_dice([[0, 1, 1, 0]], [[0, 1, 1, 0]], spacing=(1.5, 1.5))
        1.0
    """
    return scores.surface_dice(_mask(reference), _mask(prediction), tuple(spacing), tolerance_mm, numbers)


def added_path_length(
    reference: ArrayLike, prediction: ArrayLike, spacing: Sequence[float], *, tolerance_mm: float = 0.0
) -> float:
    """Compute the length of the reference's contours that would have to be added to those of the prediction.

    Args:
        reference: a mask [D, H, W]; contours are those of its slices.
        prediction: a mask of the same shape.
        spacing: (z, y, x) in mm.
        tolerance_mm: in-plane distance within which a pixel of the contour counts as covered; 0 as published.

    Returns:
        The length in mm: the number of pixels, times the mean of the pixel's height and width.

    Raises:
        ValueError: the shapes differ or are not 3-D, or `spacing` is not three positive numbers.

    Source: Vaassen et al. 2020, https://doi.org/10.1016/j.phro.2019.12.001.

    Example:
        >>> added_path_length([[[0, 1, 1, 0]]], [[[0, 0, 1, 1]]], spacing=(3.0, 1.5, 1.5))
        1.5
    """
    return added_path.added_path_length(_mask(reference), _mask(prediction), tuple(spacing), tolerance_mm)


def _distance(
    reference: ArrayLike,
    prediction: ArrayLike,
    spacing: Sequence[float] | None,
    percentile: float,
    numbers: Sequence[int] | None,
) -> float:
    truth = _mask(reference)
    spacing = (1.0,) * truth.ndim if spacing is None else tuple(spacing)
    return scores.hausdorff(truth, _mask(prediction), spacing, percentile, numbers)


def _mask(values: ArrayLike) -> np.ndarray:
    return np.asarray(values) != 0
