"""The exact distance from points of a grid to the nearest of other points, fast where they lie close together."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

# In grid steps, in the mean over the axes: how far the neighbourhood of a point is searched before a k-d tree is built.
_REACH = 6


@dataclass(frozen=True)
class Points:
    """Points of a grid, and for each place of the grid how far the nearest of them is in its own column.

    A column runs along the last axis but one. It is read at the places around a point in the order of their distance
    from it until the nearest cannot be further out: about ten readings a point where two surfaces are some voxels
    apart, which takes less time than a query of a k-d tree.

    Attributes:
        shape: of the grid, 2 or 3 axes.
        places: int [N], indices into the flattened grid. Along all axes but the columns' they keep clear of the border
            by as many steps as `reach` gives.
        steps: uint8, the flattened grid: steps along the column to the nearest point, or the reach and one more where
            it is further.
    """

    shape: tuple[int, ...]
    places: np.ndarray
    steps: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray, spacing: tuple[float, ...]) -> "Points":
        """Take the true elements of a bool array as points, for distances in a grid of such a spacing."""
        columns = mask.ndim - 2
        beyond = reach(spacing)[columns] + 1
        steps = np.where(mask, np.uint8(0), np.uint8(beyond))
        along = np.moveaxis(steps, columns, 0)
        for here, before in zip(along[1:], along, strict=False):
            np.minimum(here, before + np.uint8(1), out=here)
        for here, behind in zip(along[-2::-1], along[:0:-1], strict=True):
            np.minimum(here, behind + np.uint8(1), out=here)
        return cls(mask.shape, np.flatnonzero(mask), steps.ravel())

    def coordinates(self, spacing: tuple[float, ...], places: np.ndarray | None = None) -> np.ndarray:
        """Give the coordinates of the points, or of other places of the grid, in the unit of the spacing: [N, axes]."""
        indices = np.unravel_index(self.places if places is None else places, self.shape)
        return np.column_stack([index * float(s) for index, s in zip(indices, spacing, strict=True)])

    def distances(
        self, places: np.ndarray, spacing: tuple[float, ...], radius: float, limit: float = math.inf
    ) -> np.ndarray:
        """Measure from each place to the nearest point.

        Args:
            places: int [M], as in `Points.places`.
            spacing: of the grid, in the unit wanted.
            radius: up to where the neighbourhood is searched; `search_radius` of the spacing at most.
            limit: what lies further may be given as any larger number, if that is faster.

        Returns:
            float [M], infinite where there are no points.
        """
        if not self.places.size or not places.size:
            return np.full(len(places), math.inf)
        within = min(radius, limit)
        found = self._search(places, spacing, within)
        far = np.flatnonzero(found > within)
        if far.size and limit > radius:
            tree = cKDTree(self.coordinates(spacing), balanced_tree=False, compact_nodes=False)
            found[far] = tree.query(self.coordinates(spacing, places[far]))[0]
        return found

    def _search(self, places: np.ndarray, spacing: tuple[float, ...], radius: float) -> np.ndarray:
        """Distances, right up to the radius; some larger number where the nearest point is further out."""
        columns = len(self.shape) - 2
        squares = (np.arange(256) * float(spacing[columns])) ** 2
        squares[int(radius / spacing[columns]) + 1 :] = math.inf
        found = squares.take(self.steps.take(places))
        left, at, best = np.arange(len(places)), places, found
        for square, shifts in _rings(self.shape, spacing, radius):
            open_ = best > square
            count = np.count_nonzero(open_)
            if not count:
                break
            if count < 0.9 * len(best):
                found[left] = best
                left, at, best = left[open_], at[open_], best[open_]
            for shift in shifts:
                np.minimum(best, squares.take(self.steps.take(at + shift)) + square, out=best)
        found[left] = best
        return np.sqrt(found)


def search_radius(spacing: tuple[float, ...]) -> float:
    """Give how far the neighbourhood of a point is searched, in the unit of the spacing."""
    *others, columns, last = spacing
    others.append(last)
    # 253 steps, one that stands for more, and room for an addition are what uint8 holds. A grid whose spacings differ
    # greatly must not be searched, nor have a border, of thousands of its smallest steps.
    return min(_REACH * math.prod(others) ** (1 / len(others)), 32 * min(others), 253 * columns)


def reach(spacing: tuple[float, ...]) -> tuple[int, ...]:
    """Give the steps along each axis that `search_radius` spans."""
    return tuple(int(search_radius(spacing) / s) for s in spacing)


def _rings(shape: tuple[int, ...], spacing: tuple[float, ...], radius: float) -> list[tuple[float, list[int]]]:
    """The columns around a place, nearest first: their squared distance, and their places less its own.

    The place's own column is not among them.
    """
    axes = [axis for axis in range(len(shape)) if axis != len(shape) - 2]
    strides = [math.prod(shape[axis + 1 :]) for axis in axes]
    rings = {}
    for steps in itertools.product(*(range(-int(radius / spacing[a]), int(radius / spacing[a]) + 1) for a in axes)):
        square = sum((step * spacing[axis]) ** 2 for step, axis in zip(steps, axes, strict=True))
        if 0 < square <= radius**2:
            shift = sum(step * stride for step, stride in zip(steps, strides, strict=True))
            rings.setdefault(square, []).append(shift)
    return sorted(rings.items())
