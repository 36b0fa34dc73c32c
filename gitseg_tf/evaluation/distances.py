"""Distances between the surfaces of two masks: of surface voxels as MONAI takes them, of surface elements as DeepMind.

docs/evaluation.md has the formulas, and what empty masks give.
"""

import math
from dataclasses import dataclass

import numpy as np

from gitseg_tf.data.masks import bounding_box
from gitseg_tf.evaluation.nearest import Points, reach, search_radius
from gitseg_tf.evaluation.surfels import surfel_areas, surfels

# Within the tolerance despite rounding: with a spacing of 0.1 mm, three voxels are 0.30000000000000004 mm.
_ROUNDING = 1e-6
_PIECE = 1 << 17


@dataclass(frozen=True)
class VoxelDistances:
    """How far the surface voxels of two masks lie from each other's surface, in no order to rely on.

    Attributes:
        from_truth: float array [N], from every surface voxel of the truth to the nearest one of the prediction. All
            infinite when the prediction is empty, of length 0 when the truth is.
        from_prediction: float array [M], the same from every surface voxel of the prediction.
    """

    from_truth: np.ndarray
    from_prediction: np.ndarray

    def hausdorff(self, percentile: float = 100.0) -> float:
        """Give the larger of the two directions' percentiles. Both masks empty: NaN. One empty: infinity."""
        if not self.from_truth.size and not self.from_prediction.size:
            return math.nan
        if not self.from_truth.size or not self.from_prediction.size:
            return math.inf
        if percentile == 100:
            return float(max(self.from_truth.max(), self.from_prediction.max()))
        return float(max(np.percentile(self.from_truth, percentile), np.percentile(self.from_prediction, percentile)))

    def mean(self) -> float:
        """Give the mean over the surface voxels of both masks. Both masks empty: NaN. One empty: infinity."""
        voxels = self.from_truth.size + self.from_prediction.size
        return float((self.from_truth.sum() + self.from_prediction.sum()) / voxels) if voxels else math.nan


@dataclass(frozen=True)
class SurfelDistances:
    """How far the surface elements of two masks lie from each other's, and how large they are, in the same order.

    Attributes:
        from_truth: float array [N], from every surface element of the truth to the nearest one of the prediction. All
            infinite when the prediction is empty, of length 0 when the truth is.
        from_prediction: float array [M], the same from every surface element of the prediction.
        truth_areas: float array [N], the area of every surface element of the truth (in 2-D its length).
        prediction_areas: float array [M], the same of the prediction.
    """

    from_truth: np.ndarray
    from_prediction: np.ndarray
    truth_areas: np.ndarray
    prediction_areas: np.ndarray

    def hausdorff(self, percentile: float = 100.0) -> float:
        """Give the larger of the two directions' smallest distances that so much of the area keeps to.

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
        """Give the means over the area of the truth and of the prediction; of an empty mask NaN, to one infinity."""
        return tuple(
            float((distances * areas).sum() / areas.sum()) if areas.size else math.nan
            for distances, areas in ((self.from_truth, self.truth_areas), (self.from_prediction, self.prediction_areas))
        )

    def dice(self, tolerance: float) -> float:
        """Give the share of both surfaces' area that lies within the tolerance. Both empty: 1. One empty: 0."""
        area = self.truth_areas.sum() + self.prediction_areas.sum()
        if not area:
            return 1.0
        truth = self.truth_areas[self.from_truth <= tolerance + _ROUNDING].sum()
        return float((truth + self.prediction_areas[self.from_prediction <= tolerance + _ROUNDING].sum()) / area)


@dataclass(frozen=True)
class MaskPair:
    """Two masks cut to where either is, as `nearest.Points` needs them.

    Attributes:
        box: where they were cut out of the masks as given.
        truth: bool array, the last axis but one of the mask as given being the first, with a border of background.
        prediction: bool array of the same shape.
        spacing: the distance between voxels along each axis, in the order of these axes.
        truth_surface: int [N], the surface voxels, as indices into the flattened truth.
        prediction_surface: int [M], the same of the prediction.
    """

    box: tuple[slice, ...]
    truth: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, ...]
    truth_surface: np.ndarray
    prediction_surface: np.ndarray

    @classmethod
    def of(cls, truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> "MaskPair":
        """Cut two masks of one shape.

        Raises:
            ValueError: they are not 2-D or 3-D, their shapes differ, or `spacing` has not one positive number an axis.
        """
        truth, prediction = as_masks(truth, prediction)
        if truth.ndim not in (2, 3):
            raise ValueError(f"masks of shape {truth.shape}: surfaces have distances in 2-D and in 3-D")
        check_spacing(spacing, truth.ndim)
        empty = (slice(0, 0),) * truth.ndim
        boxes = [box for box in map(bounding_box, (truth, prediction)) if box != empty] or [empty]
        box = tuple(
            slice(min(part.start for part in along), max(part.stop for part in along))
            for along in zip(*boxes, strict=True)
        )
        *first, columns, last = map(float, spacing)
        spacing = (columns, *first, last)
        grids = [_with_border(np.moveaxis(mask[box], -2, 0), spacing) for mask in (truth, prediction)]
        return cls(box, *grids, spacing, *map(_surface, grids))

    def voxel_distances(self) -> VoxelDistances:
        """See `voxel_distances`."""
        return self._measured_voxels()[0]

    def voxel_distances_and_steps(self) -> tuple[VoxelDistances, float]:
        """Give the distances, and beside them the Hausdorff distance in voxels, for which few are measured again."""
        found, truth, prediction = self._measured_voxels()
        if not truth.places.size or not prediction.places.size:
            return found, found.hausdorff()
        largest = 0.0
        pairs = ((found.from_truth, truth, prediction), (found.from_prediction, prediction, truth))
        for in_unit, points, others in pairs:
            largest = self._largest_in_voxels(in_unit, points, others, largest)
        return found, largest

    def surfel_distances(self, limit: float = math.inf) -> SurfelDistances:
        """See `surfel_distances`; distances over the limit may be given as any larger ones, which is faster."""
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
        """See `SurfelDistances.dice`."""
        return self.surfel_distances(tolerance + 2 * _ROUNDING).dice(tolerance)

    def _measured_voxels(self) -> tuple[VoxelDistances, Points, Points]:
        shape, radius = self.truth.shape, search_radius(self.spacing)
        truth = Points.of(self.truth_surface, shape, self.spacing)
        prediction = Points.of(self.prediction_surface, shape, self.spacing)
        from_truth = prediction.distances(truth.places, self.spacing, radius)
        from_prediction = truth.distances(prediction.places, self.spacing, radius)
        return VoxelDistances(from_truth, from_prediction), truth, prediction

    def _largest_in_voxels(self, in_unit: np.ndarray, points: Points, others: Points, least: float) -> float:
        """The largest distance in voxels from points to others, or `least` where that is larger.

        A distance in voxels is at most that in the unit of the spacing over the smallest spacing, and at most that to
        any one of the others: only points that could be further than what is known come into question. They are
        measured one by one, the most promising first, for as long as that rules out most of the others.
        """
        all_others, voxels, smallest = others.indices(), (1.0,) * len(self.spacing), min(self.spacing)
        candidate = points.indices(points.places[[in_unit.argmax()]])
        least, nearest = _furthest_of(candidate, all_others, least)
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
                least, nearest = _furthest_of(candidate, all_others, least)
        return least


def voxel_distances(truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> VoxelDistances:
    """Measure every surface voxel's distance to the other mask's surface, between voxel centres, as MONAI does.

    The surface is the mask without its binary erosion by the cross of face neighbours (6 in 3-D, 4 in 2-D). What lies
    beyond the array counts as outside, so a mask that touches the border has surface there.

    Args:
        truth: bool array, 2-D or 3-D.
        prediction: bool array of the same shape.
        spacing: the distance between voxels along each axis, in the unit wanted; (1, 1, 1) for voxels.

    Returns:
        The distances in both directions, in the unit of `spacing`.

    Raises:
        ValueError: the masks are not 2-D or 3-D, their shapes differ, or `spacing` has not one positive number an axis.
    """
    return MaskPair.of(truth, prediction, spacing).voxel_distances()


def surfel_distances(truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> SurfelDistances:
    """Measure every surface element's distance to the other mask's surface, as DeepMind's surface-distance does.

    A surface element is the piece of surface that marching cubes puts into a cell of 2 x 2 x 2 neighbouring voxels (in
    2-D, of line into 2 x 2), see `surfels.surfel_areas`; distances are between the middles of such cells. Nikolov et
    al. 2018, https://arxiv.org/abs/1809.04430.

    Args:
        truth: bool array, 2-D or 3-D.
        prediction: bool array of the same shape.
        spacing: the distance between voxels along each axis, in the unit wanted.

    Returns:
        The distances in both directions, in the unit of `spacing`, and the elements' areas.

    Raises:
        ValueError: as `voxel_distances`.
    """
    return MaskPair.of(truth, prediction, spacing).surfel_distances()


def as_masks(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take two arrays as bool.

    Raises:
        ValueError: their shapes differ.
    """
    truth, prediction = np.asarray(truth, bool), np.asarray(prediction, bool)
    if truth.shape != prediction.shape:
        raise ValueError(f"truth has shape {truth.shape}, prediction {prediction.shape}: bring both to one grid first")
    return truth, prediction


def check_spacing(spacing: tuple[float, ...], axes: int) -> None:
    """Check that there is one positive number an axis.

    Raises:
        ValueError: there is not.
    """
    if len(spacing) != axes or not all(0 < s < math.inf for s in spacing):
        raise ValueError(f"spacing {tuple(spacing)} of {axes}-D masks: give one positive number an axis")


def _furthest_of(
    point: list[np.ndarray], others: list[np.ndarray], least: float
) -> tuple[float, tuple[np.ndarray, ...]]:
    """The distance in voxels from a point to the nearest of others, or `least` if that is larger; and the nearest."""
    squares = sum((theirs - own) ** 2 for theirs, own in zip(others, point, strict=True))
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
    """The places of the voxels of a mask with a border that have a face neighbour outside of it."""
    flat = grid.reshape(-1)
    strides = [math.prod(grid.shape[axis + 1 :]) for axis in range(grid.ndim)]
    surface = np.zeros_like(flat)
    # In pieces that stay in the processor's cache.
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
