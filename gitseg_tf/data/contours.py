"""Closed contours to masks, and masks to contours in a picture."""

import cv2
import numpy as np
from matplotlib.path import Path

from gitseg_tf.data.scans import ORGAN_COLORS


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


def draw_outlines(picture: np.ndarray, masks: np.ndarray) -> None:
    """Draw the organs' outlines into a picture, in the colours of ORGAN_COLORS, one pixel wide.

    Args:
        picture: uint8 [H, W, 3] RGB, a whole multiple of the masks' size; changed in place.
        masks: bool [3, h, w].
    """
    scale = picture.shape[0] // masks.shape[1]
    for colour, mask in zip(ORGAN_COLORS.values(), masks, strict=True):
        enlarged = mask.astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
        outlines, _ = cv2.findContours(enlarged, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, colour, 1)
