"""Closed contours to masks."""

import numpy as np
from matplotlib.path import Path

_ON = 0.01  # pixels from a contour up to which a center lies on it


def contours_to_mask(contours: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Fill the contours of one slice.

    A pixel is inside if its center is inside an odd number of contours, so a contour within another one is a hole, as
    is the area enclosed by a keyhole. A center on a contour, to 0.01 pixels, is inside too, also on the contour of a
    hole: masks whose contours run through the centers of their outermost voxels come back to the voxel. A contour that
    is listed more than once counts once.

    Args:
        contours: float [N, 2] (column, row), in pixels from the center of the first pixel; closed implicitly.
        shape: (height, width).

    Returns:
        bool [H, W].

    Example:
        >>> square = np.array([(1, 1), (3, 1), (3, 3), (1, 3)])
        >>> contours_to_mask([square], (5, 5)).sum(), contours_to_mask([square, square[::-1]], (5, 5)).sum()
        (np.int64(9), np.int64(9))
    """
    mask, border = np.zeros(shape, bool), np.zeros(shape, bool)
    for contour in {_key(contour): contour for contour in contours}.values():
        left, top = np.maximum(np.floor(contour.min(0)).astype(int), 0)
        right, bottom = np.minimum(np.ceil(contour.max(0)).astype(int) + 1, shape[::-1])
        if left < right and top < bottom:
            columns, rows = np.meshgrid(np.arange(left, right), np.arange(top, bottom))
            inside = Path(contour, closed=False).contains_points(np.column_stack([columns.ravel(), rows.ravel()]))
            mask[top:bottom, left:right] ^= inside.reshape(columns.shape)
        border[_centers_on(contour, shape)] = True
    return mask | border


def _key(contour: np.ndarray) -> bytes:
    """Return the same bytes for a contour from whichever point and in whichever direction its points are listed."""
    points = np.round(contour / (_ON / 10)).astype(np.int64)
    points = points[np.any(points != np.roll(points, 1, 0), axis=1)]  # a repeated point, and a closing one
    if not len(points):
        return b""
    firsts = np.flatnonzero((points == min(map(tuple, points))).all(1))
    orders = [np.roll(points, -first, 0) for first in firsts]
    orders += [np.roll(points[::-1], first + 1, 0) for first in firsts]
    return min(order.tobytes() for order in orders)


def _centers_on(contour: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Find the pixels whose centers lie on a contour: their rows and columns."""
    found = []
    start, end = contour, np.roll(contour, -1, 0)
    steep = np.abs(end - start)[:, 1] > np.abs(end - start)[:, 0]
    for chosen, along in ((~steep, 0), (steep, 1)):
        # Along its longer axis, an edge has at most one center per row or column within _ON.
        a, b = start[chosen], end[chosen]
        first = np.ceil(np.minimum(a[:, along], b[:, along]) - _ON).astype(int)
        counts = np.floor(np.maximum(a[:, along], b[:, along]) + _ON).astype(int) - first + 1
        edges = np.repeat(np.arange(len(a)), counts)
        whole = first[edges] + np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        a, step = a[edges], (b - a)[edges]
        length = np.hypot(*step.T)
        share = np.clip((whole - a[:, along]) / np.where(step[:, along] == 0, 1, step[:, along]), 0, 1)
        center = np.empty((len(edges), 2))
        center[:, along], center[:, 1 - along] = whole, np.rint(a[:, 1 - along] + share * step[:, 1 - along])
        # The distance of the center from the edge, which ends at its points.
        at = np.clip(((center - a) * step).sum(1) / np.where(length == 0, 1, length) ** 2, 0, 1)
        distance = np.hypot(*(center - a - at[:, None] * step).T)
        found.append(center[distance <= _ON].astype(int))
    columns, rows = np.concatenate(found).T
    present = (columns >= 0) & (columns < shape[1]) & (rows >= 0) & (rows < shape[0])
    return rows[present], columns[present]
