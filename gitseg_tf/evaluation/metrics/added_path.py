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
    pixels = 0
    for own, other in zip(truth, prediction, strict=True):
        if own.any():
            pixels += _added_pixels(_contour(own), _contour(other), tuple(spacing[1:]), tolerance_mm)
    return pixels * (spacing[1] + spacing[2]) / 2


def _contour(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def _added_pixels(contour: np.ndarray, other: np.ndarray, spacing: tuple[float, ...], tolerance: float) -> int:
    if tolerance > 0 and other.any():
        # 1e-6 mm are allowed for rounding.
        other = ndimage.distance_transform_edt(~other, spacing) <= tolerance + 1e-6
    return int(np.count_nonzero(contour & ~other))
