"""Surface elements ("surfels") of masks: the pieces that marching cubes cuts, and their areas."""

import math
from functools import lru_cache

import numpy as np

_PIECE = 1 << 17


def surfels(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the surface elements of a mask: the cells whose voxels are neither all inside nor all outside.

    A cell is what lies between 2 x 2 (x 2) neighbouring voxel centres. Bit `4 a + 2 b + c` (in 2-D `2 a + b`) of its
    neighbour code is the voxel a, b and c steps along the axes from its first.

    Args:
        mask: bool, 2-D or 3-D, contiguous, with background all around.

    Returns:
        int [N], the cells, as indices of their first voxels in the flattened mask, ascending; and their codes, uint8.
    """
    strides = [math.prod(mask.shape[axis + 1 :]) for axis in range(mask.ndim)]
    flat, all_inside = mask.reshape(-1).view(np.uint8), (1 << (1 << mask.ndim)) - 1
    places, codes = [np.empty(0, np.intp)], [np.empty(0, np.uint8)]
    # In pieces that stay in the processor's cache.
    for start in range(0, flat.size, _PIECE):
        found = flat[start : start + _PIECE + sum(strides)]
        if not found.view(bool).any():
            continue
        # The voxels along the last axis are one bit apart, those along the last but one 2, along the one before 4.
        for bits, stride in zip((1, 2, 4), reversed(strides), strict=False):
            found = found[:-stride] | (found * np.uint8(1 << bits))[stride:]
        cut = np.flatnonzero((found != 0) & (found != all_inside))
        places.append(cut + start)
        codes.append(found.take(cut))
    return np.concatenate(places), np.concatenate(codes)


@lru_cache(64)
def surfel_areas(spacing: tuple[float, ...]) -> np.ndarray:
    """Give the area (2-D: length) of the surface within a cell, for every neighbour code.

    Marching cubes (Lorensen and Cline 1987, https://doi.org/10.1145/37401.37422): the surface crosses the edges of the
    cell between a voxel inside and one outside half way, and cuts off, one by one, the groups of voxels that hang
    together along edges; of the two sides, that with fewer voxels. Where the polygon of a group is not flat, its area
    depends on the triangles: the areas here equal those of Nikolov et al. 2018 (https://arxiv.org/abs/1809.04430).

    Args:
        spacing: the distance between voxels along each axis, 2 or 3 of them.

    Returns:
        float [16] or [256], in the unit of `spacing`, squared in 3-D; not to be written to.
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
    """The edges (corner, corner, axis) of each group of corners that hang together; of a single corner, none."""
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
    triangle = math.hypot(*faces) / 8  # that cuts off one corner
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
