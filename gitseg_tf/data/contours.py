"""Closed contours to masks."""

import numpy as np
from matplotlib.path import Path


def contours_to_mask(contours: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Fill the contours of one slice.

    A pixel is inside when its centre is inside of an odd number of contours, so that a contour in another one is a
    hole, and so is what a keyhole runs around. A centre exactly on a contour may count either way.

    Args:
        contours: float [N, 2] (column, row), in pixels from the centre of the first pixel; closed by themselves.
        shape: (height, width).

    Returns:
        bool [H, W].
    """
    mask = np.zeros(shape, bool)
    for contour in contours:
        left, top = np.maximum(np.floor(contour.min(0)).astype(int), 0)
        right, bottom = np.minimum(np.ceil(contour.max(0)).astype(int) + 1, shape[::-1])
        if left < right and top < bottom:
            columns, rows = np.meshgrid(np.arange(left, right), np.arange(top, bottom))
            inside = Path(contour, closed=False).contains_points(np.column_stack([columns.ravel(), rows.ravel()]))
            mask[top:bottom, left:right] ^= inside.reshape(columns.shape)
    return mask
