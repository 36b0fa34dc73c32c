"""Measure how well contours follow the image: the gradient along them, compared with that along shifted copies."""

from dataclasses import dataclass

import cv2
import numpy as np

REACH, STEP = 24, 3
REACH_Z = 6
# In smaller slices, most copies of a contour would lie outside the image.
LEAST_PIXELS = 4 * REACH
# A copy shifted by less than this still lies on the same blurred edge.
_APART = 9
_SHIFTS = np.array([(dy, dx) for dy in range(-REACH, REACH + 1, STEP) for dx in range(-REACH, REACH + 1, STEP)])
_STILL = len(_SHIFTS) // 2
_FAR = np.abs(_SHIFTS).max(axis=1) >= _APART


@dataclass(frozen=True)
class ContourFit:
    """How well the contours of a range of slices fit the image.

    Attributes:
        first, last: indices of the slices, both inclusive.
        slices: how many slices in the range have contours.
        contrast: mean gradient along the contours, divided by the median of the mean gradients along copies shifted by
            9 to 24 pixels: 1 for contours unrelated to the image, 1.3 to 2.3 for real ones.
        shift: (rows, columns) in pixels by which the contours must be shifted to fit best.
        gain: mean gradient along the contours shifted by `shift`, divided by that of the unshifted ones; at least 1.
        shift_z: shift in whole slices that fits best, -6 to 6.
        gain_z: the gain of `shift_z`.
    """

    first: int
    last: int
    slices: int
    contrast: float
    shift: tuple[int, int]
    gain: float
    shift_z: int
    gain_z: float


def contour_fits(image: np.ndarray, masks: np.ndarray, block: int = 16) -> list[ContourFit]:
    """Measure how well the contours fit, over the whole scan and in blocks of slices.

    Args:
        image: [D, H, W].
        masks: bool [L, D, H, W].
        block: approximate number of slices with contours in a block.

    Returns:
        The fit of all slices, followed by the fits of the blocks if there are two or more; empty without contours, and
        for slices of less than `LEAST_PIXELS` in height or width.
    """
    annotated = np.flatnonzero(masks.any(axis=(0, 2, 3)))
    if not annotated.size or min(image.shape[1:]) < LEAST_PIXELS:
        return []
    depth = len(image)
    near = range(max(annotated[0] - REACH_Z, 0), min(annotated[-1] + REACH_Z + 1, depth))
    gradients = {z: np.pad(_gradient(image[z]), REACH) for z in near}
    in_plane = np.zeros((annotated.size, len(_SHIFTS)))
    along_z = np.full((annotated.size, 2 * REACH_Z + 1), np.nan)
    points = np.zeros(annotated.size)
    for i, z in enumerate(annotated.tolist()):
        rows, columns = _outline_points(masks[masks[:, z].any(axis=(1, 2)), z])
        points[i] = len(rows)
        width = gradients[z].shape[1]
        flat = (rows + REACH) * width + columns + REACH
        in_plane[i] = gradients[z].ravel()[flat[:, None] + _SHIFTS @ (width, 1)].sum(axis=0)
        for k, other in enumerate(range(z - REACH_Z, z + REACH_Z + 1)):
            if other in gradients:
                along_z[i, k] = gradients[other].ravel()[flat].sum()
    count = max(1, round(annotated.size / block))
    ranges = [np.arange(annotated.size)] + (np.array_split(np.arange(annotated.size), count) if count > 1 else [])
    return [_fit(annotated[r], in_plane[r], along_z[r], points[r]) for r in ranges]


def _gradient(plane: np.ndarray) -> np.ndarray:
    """Compute the gradient magnitude, scaled so that the strongest 5% of the slice are 1."""
    smooth = cv2.GaussianBlur(plane.astype(np.float32), (0, 0), 1.5)
    size = cv2.magnitude(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    top = np.percentile(size, 95)
    return np.minimum(size / top, 1) if top > 0 else np.zeros_like(size)


def _outline_points(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inner = [cv2.erode(mask.view(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) for mask in masks]
    outlines = [np.nonzero(mask & ~core) for mask, core in zip(masks, inner, strict=True)]
    return np.concatenate([o[0] for o in outlines]), np.concatenate([o[1] for o in outlines])


def _fit(slices: np.ndarray, in_plane: np.ndarray, along_z: np.ndarray, points: np.ndarray) -> ContourFit:
    moved = in_plane.sum(axis=0) / points.sum()
    far = np.median(moved[_FAR])
    best = int(moved.argmax())
    # For each shift along z, compare only the slices that have a neighbor at that distance.
    has_neighbor = np.isfinite(along_z)
    unshifted = (along_z[:, [REACH_Z]] * has_neighbor).sum(axis=0)
    gains = np.nan_to_num(along_z).sum(axis=0) / np.maximum(unshifted, 1e-9)
    gains[has_neighbor.sum(axis=0) < max(4, 0.75 * len(slices))] = 0
    gains[REACH_Z] = 1.0
    best_z = int(gains.argmax())
    shift_y, shift_x = map(int, _SHIFTS[best])
    return ContourFit(
        int(slices[0]), int(slices[-1]), len(slices), float(moved[_STILL] / far) if far > 0 else 1.0,
        (shift_y, shift_x), float(moved[best] / moved[_STILL]) if moved[_STILL] > 0 else 1.0,
        best_z - REACH_Z, float(gains[best_z]),
    )  # fmt: skip
