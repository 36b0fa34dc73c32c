"""Added path length: how much contour would have to be drawn to turn a prediction into the reference."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from gitseg_tf.evaluation.metrics.distances import as_masks, check_spacing


def added_path_length(
    truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], tolerance_mm: float = 0.0
) -> float:
    """Compute the length of the reference's contours that the prediction's contours do not cover.

    In each slice, the contour of a mask consists of its pixels with at least one of their 4 neighbors outside;
    everything beyond the slice is outside. Each pixel of the reference's contour that is farther than the tolerance
    from the prediction's contour in the same slice adds the size of a pixel. Contour that would have to be erased does
    not count.

    Args:
        truth: bool [D, H, W].
        prediction: bool array of the same shape.
        spacing: (z, y, x) in mm; the size of a pixel is the mean of the last two.
        tolerance_mm: the accepted in-plane distance between pixel centers; 0, as published, accepts only the pixel
            itself.

    Returns:
        The length in mm, over all slices; 0 if the reference is empty.

    Raises:
        ValueError: the shapes differ or are not 3-D, or `spacing` is not three positive numbers.

    Source: Vaassen et al. 2020 (https://doi.org/10.1016/j.phro.2019.12.001), number of pixels times pixel size;
    Kiser et al. 2021 (https://doi.org/10.1007/s10278-021-00460-3).

    Example:
        >>> truth = np.zeros((1, 5, 6), bool)
        >>> truth[0, 1:4, 1:4] = True
        >>> added_path_length(truth, np.roll(truth, 1, 2), (3.0, 1.5, 1.5))
        6.0
    """
    truth, prediction = as_masks(truth, prediction)
    if truth.ndim != 3:
        raise ValueError(f"masks must be [depth, height, width], got shape {truth.shape}")
    check_spacing(tuple(spacing), 3)
    pixels, in_plane = 0, tuple(spacing[1:])
    for own, other in zip(truth, prediction, strict=True):
        if tolerance_mm > 0:
            pixels += int(np.greater(_contour(own), _near(_contour(other), in_plane, tolerance_mm)).sum())
        elif own.any():
            pixels += int(np.greater(_contour(own), _contour(other)).sum())
    return pixels * (spacing[1] + spacing[2]) / 2


def _contour(mask: np.ndarray) -> np.ndarray:
    inside = np.zeros_like(mask)
    core = inside[1:-1, 1:-1]
    np.logical_and(mask[:-2, 1:-1], mask[2:, 1:-1], out=core)
    core &= mask[1:-1, :-2]
    core &= mask[1:-1, 2:]
    return np.greater(mask, inside)


def _near(contour: np.ndarray, spacing: tuple[float, ...], tolerance: float) -> np.ndarray:
    """Mark the pixels within the tolerance of a contour; 1e-6 mm are allowed for rounding."""
    if not contour.any():
        return contour
    return ndimage.distance_transform_edt(~contour, spacing) <= tolerance + 1e-6
