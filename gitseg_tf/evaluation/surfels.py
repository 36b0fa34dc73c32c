"""Surface elements ("surfels") of masks: the pieces that marching cubes cuts, and their areas."""

import math

import numpy as np


def surfel_codes(mask: np.ndarray) -> np.ndarray:
    """Give the neighbour code of every cell, the cells being what lies between 2 x 2 (x 2) neighbouring voxel centres.

    Args:
        mask: bool [..., H, W], 2-D or 3-D.

    Returns:
        uint8, an element less along each axis. Bit `4 dz + 2 dy + dx` (in 2-D `2 dy + dx`) is the voxel that is dz, dy
        and dx further than the cell's first. The surface runs through the cells that are neither 0 nor all ones.
    """
    codes = mask.view(np.uint8)
    for shift, axis in enumerate(reversed(range(mask.ndim))):
        first, second = (
            codes[tuple(part if a == axis else slice(None) for a in range(mask.ndim))]
            for part in (slice(None, -1), slice(1, None))
        )
        codes = first | (second << (1 << shift))
    return codes


def surfel_areas(spacing: tuple[float, ...]) -> np.ndarray:
    """Give the area (2-D: length) of the surface within a cell, for every neighbour code of `surfel_codes`.

    Marching cubes (Lorensen and Cline 1987, https://doi.org/10.1145/37401.37422): the surface crosses the edges of the
    cell between a voxel inside and one outside half way, and cuts off, one by one, the groups of voxels that hang
    together along edges; of the two sides, that with fewer voxels. Where the polygon of a group is not flat, its area
    depends on the triangles: the areas here equal those of Nikolov et al. 2018 (https://arxiv.org/abs/1809.04430).

    Args:
        spacing: the distance between voxels along each axis, 2 or 3 of them.

    Returns:
        float [16] or [256], in the unit of `spacing`, squared in 3-D.
    """
    return np.array([_area_of_code(code, tuple(spacing)) for code in range(1 << (1 << len(spacing)))])


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
