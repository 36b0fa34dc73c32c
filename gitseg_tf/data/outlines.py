"""Draw the outlines of masks into images."""

from collections.abc import Sequence

import cv2
import numpy as np


def draw_outlines(picture: np.ndarray, masks: np.ndarray, colors: Sequence[tuple[int, int, int]]) -> None:
    """Draw the outlines of masks into an image, one pixel wide; later masks cover earlier ones.

    Args:
        picture: uint8 [H, W, 3] RGB, whose size is an integer multiple of the masks' size; changed in place.
        masks: bool [L, h, w].
        colors: (red, green, blue) of each mask, 0 to 255.

    Example:
        >>> picture = np.zeros((3, 3, 3), np.uint8)
        >>> draw_outlines(picture, np.ones((1, 3, 3), bool), [(255, 0, 0)])
        >>> picture[..., 0].tolist()
        [[255, 255, 255], [255, 0, 255], [255, 255, 255]]
    """
    scale = picture.shape[0] // masks.shape[1]
    for color, mask in zip(colors, masks, strict=True):
        if mask.any():
            enlarged = mask.astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
            outlines, _ = cv2.findContours(enlarged, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(picture, outlines, -1, color, 1)
