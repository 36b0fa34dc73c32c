"""Exact distances from points of a grid to the nearest of other points, fast if they lie close together."""

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.spatial import cKDTree

# Radius of the neighborhood that is searched before a k-d tree is built, in grid steps averaged over the axes.
_REACH = 6
_LEAF = 32  # leaf size of the k-d tree: faster to build than the default of 16, and as fast for distant queries


@dataclass(frozen=True)
class Points:
    """Points of a grid, and for each grid index the distance to the nearest point in the same column.

    A column runs along the first axis. Columns around a point are read in order of their distance until the nearest
    point cannot be further out: six reads per point if labels are a few voxels apart, one if outlines nearly coincide.
    A k-d tree of the same points takes at least ten times as long.

    Attributes:
        shape: shape of the grid, with 2 or 3 axes.
        places: int [N], ascending indices into the flattened grid. Along all axes but the first they are at least
            `reach` steps away from the border.
        steps: uint8, the flattened grid: steps along the column to the nearest point, or reach + 1 if it is further.
        planes: int [shape[1]], the positions of the planes along the second axis, in steps, if there are gaps between
            them that the grid shortens; a gap must still be longer than `reach`. None: planes are one step apart.
    """

    shape: tuple[int, ...]
    places: np.ndarray
    steps: np.ndarray
    planes: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        places: np.ndarray,
        shape: tuple[int, ...],
        spacing: tuple[float, ...],
        planes: np.ndarray | None = None,
    ) -> "Points":
        """Create points from flat indices into a grid with this shape and spacing."""
        steps = np.full(shape, reach(spacing)[0] + 1, np.uint8)
        steps.reshape(-1)[places] = 0
        further = np.empty(shape[1:], np.uint8)
        for here, before in [*zip(steps[1:], steps, strict=False), *zip(steps[-2::-1], steps[:0:-1], strict=True)]:
            np.add(before, np.uint8(1), out=further)
            np.minimum(here, further, out=here)
        return cls(shape, places, steps.reshape(-1), planes)

    def coordinates(self, spacing: tuple[float, ...], places: np.ndarray | None = None) -> np.ndarray:
        """Compute coordinates [N, axes] of the points, or of other flat indices, in the unit of the spacing."""
        return np.column_stack([index * float(s) for index, s in zip(self.indices(places), spacing, strict=True)])

    def indices(self, places: np.ndarray | None = None) -> list[np.ndarray]:
        """Convert the points, or other flat indices, to positions along each axis in steps: int64 [N] per axis."""
        left, indices = self.places if places is None else places, []
        for axis in range(1, len(self.shape)):
            stride = math.prod(self.shape[axis:])
            indices.append(left // stride)  # several times as fast as np.unravel_index
            left = left - indices[-1] * stride
        indices.append(left)
        if self.planes is not None:
            indices[1] = self.planes.take(indices[1])
        return indices

    def distances(
        self, places: np.ndarray, spacing: tuple[float, ...], radius: float, limit: float = math.inf
    ) -> np.ndarray:
        """Measure the distance from each index to the nearest point.

        Args:
            places: int [M], flat indices as in `Points.places`.
            spacing: spacing of the grid, in any unit.
            radius: radius of the neighborhood that is searched, at most `search_radius` of the spacing.
            limit: distances above it may be inexact but stay above it, which is faster.

        Returns:
            float [M], infinite if there are no points.
        """
        if not self.places.size or not places.size:
            return np.full(len(places), math.inf)
        within = min(radius, limit)
        distances = self._search(places, spacing, within)
        far = np.flatnonzero(distances > within)
        if far.size and limit > radius:
            tree = cKDTree(self.coordinates(spacing), _LEAF, balanced_tree=False, compact_nodes=False)
            distances[far] = tree.query(self.coordinates(spacing, places[far]))[0]
        return distances

    def _search(self, places: np.ndarray, spacing: tuple[float, ...], radius: float) -> np.ndarray:
        """Compute distances that are exact up to the radius, and some larger number if the nearest point is further."""
        squares = (np.arange(256) * float(spacing[0])) ** 2
        squares[int(radius / spacing[0]) + 1 :] = math.inf
        squared = squares.take(self.steps.take(places))
        left: slice | np.ndarray = slice(None)
        remaining, best = places, squared
        strides = [math.prod(self.shape[axis + 1 :]) for axis in range(1, len(self.shape))]
        for square, steps in _rings(spacing, radius):
            open_ = np.flatnonzero(best > square)
            if not open_.size:
                break
            if open_.size < 0.8 * best.size:
                squared[left] = best
                left = open_ if isinstance(left, slice) else left.take(open_)
                remaining, best = remaining.take(open_), best.take(open_)
            first, *others = steps @ strides
            column = self.steps.take(remaining + first)
            for shift in others:
                np.minimum(column, self.steps.take(remaining + shift), out=column)
            np.minimum(best, squares.take(column) + square, out=best)
        squared[left] = best
        return np.sqrt(squared)

    def largest_distance(
        self, places: np.ndarray, spacing: tuple[float, ...], radius: float, *, first: int = 0, least: float = 0.0
    ) -> float:
        """Find the largest distance from any of the indices to its nearest point.

        Indices whose distance to a known point does not exceed the largest distance so far are ruled out without a
        search. The most promising index is measured first, as long as that rules out most of the others.

        Args:
            places, spacing, radius: as for `distances`.
            first: position in `places` of the index to measure first; the farther, the faster.
            least: a lower bound.

        Returns:
            The distance, at least `least`; infinite if there are no points.
        """
        if not places.size:
            return least
        if not self.places.size:
            return math.inf
        points = self.coordinates(spacing)
        limits, candidate = np.full(places.size, math.inf), first
        while True:
            squares = ((points - self.coordinates(spacing, places[[candidate]])) ** 2).sum(1)
            nearest = int(squares.argmin())
            least = max(least, math.sqrt(squares[nearest]))
            limits = np.minimum(limits, np.sqrt(((self.coordinates(spacing, places) - points[nearest]) ** 2).sum(1)))
            remaining = np.flatnonzero(limits > least)
            if not remaining.size:
                return least
            if remaining.size > places.size / 2:
                return max(least, float(self.distances(places.take(remaining), spacing, radius).max()))
            places, limits = places.take(remaining), limits.take(remaining)
            candidate = int(limits.argmax())


def radius_within(steps: tuple[int, ...], spacing: tuple[float, ...]) -> float:
    """Return the largest radius, in the unit of a spacing, that spans at most these steps along each axis."""
    return min((n + 1) * s for n, s in zip(steps, spacing, strict=True)) * (1 - 1e-9)


def search_radius(spacing: tuple[float, ...]) -> float:
    """Return the radius of the neighborhood that is searched, in the unit of the spacing."""
    columns, *others = spacing
    # uint8 can represent 253 steps, one value for more, and the result of an addition. If spacings differ greatly, the
    # radius, and thus the border, must not span thousands of the smallest steps.
    return min(_REACH * math.prod(others) ** (1 / len(others)), 32 * min(others), 253 * columns)


def reach(spacing: tuple[float, ...]) -> tuple[int, ...]:
    """Return the number of steps along each axis that `search_radius` spans."""
    return tuple(int(search_radius(spacing) / s) for s in spacing)


@lru_cache(64)
def _rings(spacing: tuple[float, ...], radius: float) -> list[tuple[float, np.ndarray]]:
    """List the columns around a point, nearest first: their squared distance, and the steps [N, axes - 1] to them.

    The point's own column is not included.
    """
    rings: dict[float, list[tuple[int, ...]]] = {}
    for steps in itertools.product(*(range(-int(radius / s), int(radius / s) + 1) for s in spacing[1:])):
        square = sum((step * s) ** 2 for step, s in zip(steps, spacing[1:], strict=True))
        if 0 < square <= radius**2:
            rings.setdefault(square, []).append(steps)
    return [(square, np.array(steps)) for square, steps in sorted(rings.items())]
