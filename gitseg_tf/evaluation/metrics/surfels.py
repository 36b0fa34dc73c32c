"""Surface elements ("surfels") of masks: the pieces of surface from marching cubes, and their areas."""

import math
from functools import lru_cache

import numpy as np

_PIECE = 1 << 17


def surfels(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the surface elements of a mask: the cells whose voxels are neither all inside nor all outside.

    A cell lies between 2 x 2 (x 2) neighboring voxel centers. Bit `4 a + 2 b + c` (in 2-D `2 a + b`) of its neighbor
    code is the voxel that is a, b and c steps along the axes from its first voxel.

    Args:
        mask: bool, 2-D or 3-D, contiguous, with a border of background.

    Returns:
        int [N], the cells, as ascending indices of their first voxels in the flattened mask; and their codes, uint8.
    """
    strides = [math.prod(mask.shape[axis + 1 :]) for axis in range(mask.ndim)]
    flat, all_inside = mask.reshape(-1).view(np.uint8), (1 << (1 << mask.ndim)) - 1
    cells, codes = [np.empty(0, np.intp)], [np.empty(0, np.uint8)]
    # Work in pieces that stay in the CPU cache.
    for start in range(0, flat.size, _PIECE):
        code = flat[start : start + _PIECE + sum(strides)]
        if not code.view(bool).any():
            continue
        # Neighbors along the last axis are one bit apart, along the axis before 2 bits, and along the first of three 4.
        for bits, stride in zip((1, 2, 4), reversed(strides), strict=False):
            code = code[:-stride] | (code * np.uint8(1 << bits))[stride:]
        cut = np.flatnonzero((code != 0) & (code != all_inside))
        cells.append(cut + start)
        codes.append(code.take(cut))
    return np.concatenate(cells), np.concatenate(codes)


@lru_cache(64)
def surfel_areas(spacing: tuple[float, ...]) -> np.ndarray:
    """Compute the area (in 2-D the length) of the surface within a cell, for every neighbor code.

    In marching cubes (Lorensen and Cline 1987, https://doi.org/10.1145/37401.37422) the surface crosses an edge between
    a voxel inside and one outside at its midpoint, and separates each group of edge-connected voxels on the side that
    has fewer voxels. If the polygon of a group is not flat, its area depends on the triangulation; the areas here equal
    those of Nikolov et al. 2018 (https://arxiv.org/abs/1809.04430).

    Args:
        spacing: the distance between voxels along each of 2 or 3 axes.

    Returns:
        float [16] or [256], read-only, in the unit of `spacing`, squared in 3-D.
    """
    areas = np.array([_area_of_code(code, spacing) for code in range(1 << (1 << len(spacing)))])
    areas.setflags(write=False)
    return areas


def _area_of_code(code: int, spacing: tuple[float, ...]) -> float:
    corners = range(1 << len(spacing))
    inside = {corner for corner in corners if code >> corner & 1}
    if len(inside) > len(corners) // 2:
        inside = set(corners) - inside
    area_of_group = _length_of_group if len(spacing) == 2 else _area_of_group
    return math.fsum(area_of_group(edges, spacing) for edges in _groups(inside, len(spacing)))


def _groups(corners: set[int], axes: int) -> list[list[tuple[int, int, int]]]:
    """List the edges (corner, corner, axis) of each group of connected corners; a single corner has none."""
    groups, left = [], set(corners)
    while left:
        group, reached = set(), {left.pop()}
        while reached:
            group |= reached
            reached = {corner ^ (1 << bit) for corner in reached for bit in range(axes)} & left
            left -= reached
        # Bit 0 of a corner is its step along the last axis.
        pairs = ((corner, corner | 1 << bit, axes - 1 - bit) for corner in group for bit in range(axes))
        groups.append([(a, b, axis) for a, b, axis in pairs if a != b and b in group])
    return groups


def _length_of_group(edges: list[tuple[int, int, int]], spacing: tuple[float, ...]) -> float:
    return spacing[edges[0][2]] if edges else math.hypot(*spacing) / 2


def _area_of_group(edges: list[tuple[int, int, int]], spacing: tuple[float, ...]) -> float:
    faces = [math.prod(spacing) / s for s in spacing]
    triangle = math.hypot(*faces) / 8  # area of the triangle that cuts off one corner
    axes = [axis for _, _, axis in edges]
    if not edges:
        return triangle
    if len(edges) == 1:
        return math.hypot(*(faces[axis] for axis in range(3) if axis != axes[0])) / 2
    if len(edges) == 2:
        return faces[3 - sum(axes)] / 2 + 3 * triangle
    if len(edges) == 4:
        return faces[3 - sum(set(axes))]
    ends = [corner for edge in edges for corner in edge[:2]]
    if max(map(ends.count, ends)) == 3:
        return 6 * triangle
    middle = next(axis for a, b, axis in edges if ends.count(a) == ends.count(b) == 2)
    return 4 * triangle + sum(math.hypot(faces[axis], faces[middle]) for axis in axes if axis != middle) / 4
