"""Distances between the surfaces of two masks: between surface voxels as in MONAI, or surface elements as in DeepMind.

docs/how-to/evaluate.md has the formulas and the conventions for empty masks.
"""

import math
from dataclasses import dataclass

import numpy as np

from gitseg_tf.data.masks import bounding_box
from gitseg_tf.evaluation.metrics.nearest import Points, reach, search_radius
from gitseg_tf.evaluation.metrics.surfels import surfel_areas, surfels

# Tolerance for rounding: with a spacing of 0.1 mm, three voxels are 0.30000000000000004 mm.
_ROUNDING = 1e-6
_PIECE = 1 << 17


@dataclass(frozen=True)
class VoxelDistances:
    """Distances between the surface voxels of two masks, in unspecified order.

    Attributes:
        from_truth: float array [N], from every surface voxel of the reference to the nearest one of the prediction. All
            infinite if the prediction is empty, of length 0 if the reference is empty.
        from_prediction: float array [M], the same from every surface voxel of the prediction.
    """

    from_truth: np.ndarray
    from_prediction: np.ndarray

    def hausdorff(self, percentile: float = 100.0) -> float:
        """Return the larger of the two directions' percentiles. Both masks empty: NaN. One empty: infinity."""
        if not self.from_truth.size and not self.from_prediction.size:
            return math.nan
        if not self.from_truth.size or not self.from_prediction.size:
            return math.inf
        if percentile == 100:
            return float(max(self.from_truth.max(), self.from_prediction.max()))
        return float(max(np.percentile(self.from_truth, percentile), np.percentile(self.from_prediction, percentile)))

    def mean(self) -> float:
        """Return the mean over the surface voxels of both masks. Both masks empty: NaN. One empty: infinity."""
        voxels = self.from_truth.size + self.from_prediction.size
        return float((self.from_truth.sum() + self.from_prediction.sum()) / voxels) if voxels else math.nan


@dataclass(frozen=True)
class SurfelDistances:
    """Distances between the surface elements of two masks, and their areas in the same order.

    Attributes:
        from_truth: float array [N], from every surface element of the reference to the nearest one of the prediction.
            All infinite if the prediction is empty, of length 0 if the reference is empty.
        from_prediction: float array [M], the same from every surface element of the prediction.
        truth_areas: float array [N], the area of every surface element of the reference (in 2-D its length).
        prediction_areas: float array [M], the same for the prediction.
    """

    from_truth: np.ndarray
    from_prediction: np.ndarray
    truth_areas: np.ndarray
    prediction_areas: np.ndarray

    def hausdorff(self, percentile: float = 100.0) -> float:
        """Return the larger of the two directions' area-weighted percentiles.

        Both masks empty: NaN. One empty: infinity.
        """
        if not self.from_truth.size and not self.from_prediction.size:
            return math.nan
        if not self.from_truth.size or not self.from_prediction.size:
            return math.inf
        return max(
            _percentile(self.from_truth, self.truth_areas, percentile),
            _percentile(self.from_prediction, self.prediction_areas, percentile),
        )

    def means(self) -> tuple[float, float]:
        """Return the area-weighted means (from reference, from prediction): NaN from an empty mask, infinity to one."""
        of_truth, of_prediction = (
            float((distances * areas).sum() / areas.sum()) if areas.size else math.nan
            for distances, areas in ((self.from_truth, self.truth_areas), (self.from_prediction, self.prediction_areas))
        )
        return of_truth, of_prediction

    def dice(self, tolerance: float) -> float:
        """Return the fraction of both surfaces' area that lies within the tolerance. Both empty: 1. One empty: 0."""
        area = self.truth_areas.sum() + self.prediction_areas.sum()
        if not area:
            return 1.0
        truth = self.truth_areas[self.from_truth <= tolerance + _ROUNDING].sum()
        return float((truth + self.prediction_areas[self.from_prediction <= tolerance + _ROUNDING].sum()) / area)


@dataclass(frozen=True)
class MaskPair:
    """Two masks cropped to their joint bounding box, in the layout that `nearest.Points` needs.

    Attributes:
        box: the bounding box in the original masks.
        truth: bool array with a border of background; the second to last axis of the original mask comes first.
        prediction: bool array of the same shape.
        spacing: the distance between voxels along each of these axes.
        truth_surface: int [N], the surface voxels, as indices into the flattened `truth`.
        prediction_surface: int [M], the same for `prediction`.
    """

    box: tuple[slice, ...]
    truth: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, ...]
    truth_surface: np.ndarray
    prediction_surface: np.ndarray

    @classmethod
    def of(cls, truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> "MaskPair":
        """Crop two masks of the same shape.

        Raises:
            ValueError: the masks are not 2-D or 3-D, their shapes differ, or `spacing` does not have one positive
                number per axis.
        """
        truth, prediction = as_masks(truth, prediction)
        if truth.ndim not in (2, 3):
            raise ValueError(f"masks must be 2-D or 3-D, got shape {truth.shape}")
        check_spacing(spacing, truth.ndim)
        empty = (slice(0, 0),) * truth.ndim
        boxes = [box for box in map(bounding_box, (truth, prediction)) if box != empty] or [empty]
        box = tuple(
            slice(min(part.start for part in along), max(part.stop for part in along))
            for along in zip(*boxes, strict=True)
        )
        *first, columns, last = map(float, spacing)
        spacing = (columns, *first, last)
        truth, prediction = (_with_border(np.moveaxis(mask[box], -2, 0), spacing) for mask in (truth, prediction))
        return cls(box, truth, prediction, spacing, _surface(truth), _surface(prediction))

    def voxel_distances(self) -> VoxelDistances:
        """Measure the distances between surface voxels, see `voxel_distances`."""
        return self._measured_voxels()[0]

    def voxel_distances_and_steps(self) -> tuple[VoxelDistances, float]:
        """Return the distances, and the Hausdorff distance in voxels, which needs only few more measurements."""
        distances, truth, prediction = self._measured_voxels()
        if not truth.places.size or not prediction.places.size:
            return distances, distances.hausdorff()
        largest = 0.0
        pairs = ((distances.from_truth, truth, prediction), (distances.from_prediction, prediction, truth))
        for in_unit, points, others in pairs:
            largest = self._largest_in_voxels(in_unit, points, others, largest)
        return distances, largest

    def surfel_distances(self, limit: float = math.inf) -> SurfelDistances:
        """Measure as `surfel_distances`; distances above the limit may be inexact but stay above it, to save time."""
        (truth_places, truth_codes), (prediction_places, prediction_codes) = map(surfels, (self.truth, self.prediction))
        truth, prediction = (
            Points.of(places, self.truth.shape, self.spacing) for places in (truth_places, prediction_places)
        )
        table, radius = surfel_areas(self.spacing), search_radius(self.spacing)
        return SurfelDistances(
            prediction.distances(truth.places, self.spacing, radius, limit),
            truth.distances(prediction.places, self.spacing, radius, limit),
            table.take(truth_codes),
            table.take(prediction_codes),
        )

    def surface_dice(self, tolerance: float) -> float:
        """Compute the surface Dice, see `SurfelDistances.dice`."""
        return self.surfel_distances(tolerance + 2 * _ROUNDING).dice(tolerance)

    def _measured_voxels(self) -> tuple[VoxelDistances, Points, Points]:
        shape, radius = self.truth.shape, search_radius(self.spacing)
        truth = Points.of(self.truth_surface, shape, self.spacing)
        prediction = Points.of(self.prediction_surface, shape, self.spacing)
        from_truth = prediction.distances(truth.places, self.spacing, radius)
        from_prediction = truth.distances(prediction.places, self.spacing, radius)
        return VoxelDistances(from_truth, from_prediction), truth, prediction

    def _largest_in_voxels(self, in_unit: np.ndarray, points: Points, others: Points, least: float) -> float:
        """Find the largest distance in voxels from points to others, or `least` if that is larger.

        A distance in voxels is at most the distance in the unit of the spacing divided by the smallest spacing, and at
        most the distance to any of the others, so only points that could exceed the current maximum are candidates.
        They are measured one by one, the most promising first, as long as that rules out most of the others.
        """
        all_others, voxels, smallest = others.indices(), (1.0,) * len(self.spacing), min(self.spacing)
        candidate = points.indices(points.places[[in_unit.argmax()]])
        least, nearest = _distance_to_nearest(candidate, all_others, least)
        left = np.flatnonzero(in_unit > least * smallest)
        limits = np.full(left.size, math.inf)
        while left.size:
            here = points.indices(points.places.take(left))
            limits = np.minimum(limits, np.sqrt(sum((a - b) ** 2 for a, b in zip(here, nearest, strict=True))))
            open_ = np.flatnonzero(limits > least)
            if open_.size > left.size / 2:
                places = points.places.take(left.take(open_))
                return max(least, float(others.distances(places, voxels, min(reach(self.spacing))).max()))
            left, limits = left.take(open_), limits.take(open_)
            if left.size:
                candidate = points.indices(points.places[[left[limits.argmax()]]])
                least, nearest = _distance_to_nearest(candidate, all_others, least)
        return least


def voxel_distances(truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> VoxelDistances:
    """Measure every surface voxel's distance to the other mask's surface, between voxel centers, as MONAI does.

    The surface is the mask without its binary erosion by the cross of face neighbors (6 in 3-D, 4 in 2-D). Everything
    beyond the array counts as outside, so a mask that touches the border has surface there.

    Args:
        truth: bool array, 2-D or 3-D.
        prediction: bool array of the same shape.
        spacing: the distance between voxels along each axis, in any unit; (1, 1, 1) for voxels.

    Returns:
        The distances in both directions, in the unit of `spacing`.

    Raises:
        ValueError: the masks are not 2-D or 3-D, their shapes differ, or `spacing` does not have one positive number
            per axis.
    """
    return MaskPair.of(truth, prediction, spacing).voxel_distances()


def surfel_distances(truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> SurfelDistances:
    """Measure every surface element's distance to the other mask's surface, as DeepMind's surface-distance does.

    A surface element is the piece of surface that marching cubes places in a cell of 2 x 2 x 2 neighboring voxels (in
    2-D, a piece of line in 2 x 2), see `surfels.surfel_areas`; distances are between the centers of such cells.

    Args:
        truth: bool array, 2-D or 3-D.
        prediction: bool array of the same shape.
        spacing: the distance between voxels along each axis, in any unit.

    Returns:
        The distances in both directions, in the unit of `spacing`, and the elements' areas.

    Raises:
        ValueError: see `voxel_distances`.

    Source: Nikolov et al. 2018, https://arxiv.org/abs/1809.04430.
    """
    return MaskPair.of(truth, prediction, spacing).surfel_distances()


def as_masks(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert two arrays to bool.

    Raises:
        ValueError: their shapes differ.
    """
    truth, prediction = np.asarray(truth, bool), np.asarray(prediction, bool)
    if truth.shape != prediction.shape:
        raise ValueError(
            f"truth has shape {truth.shape}, but prediction has {prediction.shape}; resample both to one grid"
        )
    return truth, prediction


def check_spacing(spacing: tuple[float, ...], axes: int) -> None:
    """Check that a spacing has one positive number per axis.

    Raises:
        ValueError: it does not.
    """
    if len(spacing) != axes or not all(0 < s < math.inf for s in spacing):
        raise ValueError(f"spacing must be {axes} positive numbers for {axes}-D masks, got {tuple(spacing)}")


def _distance_to_nearest(
    point: list[np.ndarray], others: list[np.ndarray], least: float
) -> tuple[float, tuple[np.ndarray, ...]]:
    """Find the nearest of others to a point; return its distance in voxels, but at least `least`, and its indices."""
    squares = sum((theirs - mine) ** 2 for theirs, mine in zip(others, point, strict=True))
    nearest = int(squares.argmin())
    return max(least, math.sqrt(squares[nearest])), tuple(theirs[nearest] for theirs in others)


def _percentile(distances: np.ndarray, areas: np.ndarray, percentile: float) -> float:
    order = distances.argsort()
    shares = areas[order].cumsum() / areas.sum()
    return float(distances[order[min(shares.searchsorted(percentile / 100), len(order) - 1)]])


def _with_border(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    border = [1, *(steps + 1 for steps in reach(spacing)[1:])]
    grid = np.zeros([size + 2 * steps for size, steps in zip(mask.shape, border, strict=True)], bool)
    grid[tuple(slice(steps, -steps) for steps in border)] = mask
    return grid


def _surface(grid: np.ndarray) -> np.ndarray:
    """Find the voxels of a mask with a border that have a face neighbor outside the mask, as flat indices."""
    flat = grid.reshape(-1)
    strides = [math.prod(grid.shape[axis + 1 :]) for axis in range(grid.ndim)]
    surface = np.zeros_like(flat)
    # Work in pieces that stay in the CPU cache.
    for start in range(strides[0], flat.size - strides[0], _PIECE):
        stop = min(start + _PIECE, flat.size - strides[0])
        if not flat[start:stop].any():
            continue
        inside = flat[start - 1 : stop - 1] & flat[start + 1 : stop + 1]
        for stride in strides[:-1]:
            inside &= flat[start - stride : stop - stride]
            inside &= flat[start + stride : stop + stride]
        np.greater(flat[start:stop], inside, out=surface[start:stop])
    return np.flatnonzero(surface)
