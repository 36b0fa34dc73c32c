"""Distances between the surfaces of two masks: between surface voxels as in MONAI, or surface elements as in DeepMind.

docs/how-to/evaluate.md has the formulas and the conventions for empty masks.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gitseg_tf.data.masks import bounding_box
from gitseg_tf.evaluation.metrics.nearest import Points, radius_within, reach, search_radius
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
        planes: int, the positions of the planes along the second axis in steps, or None if no slice is missing.
    """

    box: tuple[slice, ...]
    truth: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, ...]
    truth_surface: np.ndarray
    prediction_surface: np.ndarray
    planes: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        truth: np.ndarray,
        prediction: np.ndarray,
        spacing: tuple[float, ...],
        numbers: Sequence[int] | None = None,
    ) -> "MaskPair":
        """Crop two masks of the same shape.

        Missing slices are empty in both masks. Long gaps are shortened in the arrays, `planes` has the true positions.

        Args:
            truth, prediction: bool arrays, 2-D or 3-D.
            spacing: the distance between voxels along each axis.
            numbers: the slice numbers of 3-D masks, with gaps where slices are missing; None: no slice is missing.

        Raises:
            ValueError: the masks are not 2-D or 3-D, their shapes differ, `spacing` does not have one positive number
                per axis, or `numbers` does not have one ascending integer per slice.
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
        if numbers is not None:
            check_numbers(numbers, truth.shape)
        *first, columns, last = map(float, spacing)
        spacing = (columns, *first, last)
        truth, prediction = (np.moveaxis(mask[box], -2, 0) for mask in (truth, prediction))
        planes = None
        if numbers is not None and (gaps := _planes(np.asarray(numbers)[box[0]], reach(spacing)[1])) is not None:
            rows, planes = gaps
            truth, prediction = (_with_missing_planes(mask, rows, len(planes)) for mask in (truth, prediction))
            before = np.arange(-reach(spacing)[1] - 1, 0)
            planes = np.concatenate([before, planes, planes[-1] - before[::-1]])
        truth, prediction = (_with_border(mask, spacing) for mask in (truth, prediction))
        return cls(box, truth, prediction, spacing, _surface(truth), _surface(prediction), planes)

    def voxel_distances(self) -> VoxelDistances:
        """Measure the distances between surface voxels, see `voxel_distances`."""
        return self._measured_voxels()[0]

    def voxel_distances_and_steps(self) -> tuple[VoxelDistances, float]:
        """Return the distances, and the Hausdorff distance in voxels, which needs only few more measurements."""
        distances, truth, prediction = self._measured_voxels()
        if not truth.places.size or not prediction.places.size:
            return distances, distances.hausdorff()
        voxels, radius, largest = (1.0,) * len(self.spacing), float(min(reach(self.spacing))), 0.0
        pairs = ((distances.from_truth, truth, prediction), (distances.from_prediction, prediction, truth))
        for in_unit, points, others in pairs:
            # A distance in voxels is at most the distance in the unit of the spacing divided by the smallest spacing.
            farthest = int(in_unit.argmax())
            largest = others.largest_distance(points.places[[farthest]], voxels, radius, least=largest)
            left = np.flatnonzero(in_unit > largest * min(self.spacing))
            first = int(in_unit.take(left).argmax()) if left.size else 0
            largest = others.largest_distance(points.places.take(left), voxels, radius, first=first, least=largest)
        return distances, largest

    def set_distance(self, units: tuple[float, ...]) -> float:
        """Compute the Hausdorff distance between all voxels of the masks, not only between their surfaces.

        A voxel inside the other mask has distance 0, so only voxels in one of the masks are measured.

        Args:
            units: the distance between voxels along each axis of the original masks, in any unit.

        Returns:
            The distance in that unit. Both masks empty: NaN. One empty: infinity.
        """
        *leading, columns, last = map(float, units)
        units = (columns, *leading, last)
        radius, largest = radius_within(reach(self.spacing), units), 0.0
        both_empty = not self.truth_surface.size and not self.prediction_surface.size
        truth, prediction = self._surfaces
        for mask, other, nearest in ((self.truth, self.prediction, prediction), (self.prediction, self.truth, truth)):
            alone = np.flatnonzero(np.greater(mask, other).reshape(-1))
            if alone.size:
                largest = nearest.largest_distance(alone, units, radius, least=largest)
        return math.nan if both_empty else largest

    def surfel_distances(self, limit: float = math.inf) -> SurfelDistances:
        """Measure as `surfel_distances`; distances above the limit may be inexact but stay above it, to save time."""
        (truth_places, truth_codes), (prediction_places, prediction_codes) = map(surfels, (self.truth, self.prediction))
        truth, prediction = (
            Points.of(places, self.truth.shape, self.spacing, self.planes)
            for places in (truth_places, prediction_places)
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
        return self.surface_dices((tolerance,))[0]

    def surface_dices(self, tolerances: Sequence[float]) -> list[float]:
        """Compute the surface Dice at several tolerances from one set of distances."""
        distances = self.surfel_distances(max(tolerances) + 2 * _ROUNDING)
        return [distances.dice(tolerance) for tolerance in tolerances]

    @cached_property
    def _surfaces(self) -> tuple[Points, Points]:
        """The surface voxels of reference and prediction."""
        truth, prediction = (
            Points.of(surface, self.truth.shape, self.spacing, self.planes)
            for surface in (self.truth_surface, self.prediction_surface)
        )
        return truth, prediction

    def _measured_voxels(self) -> tuple[VoxelDistances, Points, Points]:
        radius = search_radius(self.spacing)
        truth, prediction = self._surfaces
        from_truth = prediction.distances(truth.places, self.spacing, radius)
        from_prediction = truth.distances(prediction.places, self.spacing, radius)
        return VoxelDistances(from_truth, from_prediction), truth, prediction


def voxel_distances(
    truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...], numbers: Sequence[int] | None = None
) -> VoxelDistances:
    """Measure every surface voxel's distance to the other mask's surface, between voxel centers, as MONAI does.

    The surface is the mask without its binary erosion by the cross of face neighbors (6 in 3-D, 4 in 2-D). Everything
    beyond the array counts as outside, so a mask that touches the border has surface there.

    Args:
        truth: bool array, 2-D or 3-D.
        prediction: bool array of the same shape.
        spacing: the distance between voxels along each axis, in any unit; (1, 1, 1) for voxels.
        numbers: the slice numbers of 3-D masks; missing ones are empty slices. None: no slice is missing.

    Returns:
        The distances in both directions, in the unit of `spacing`.

    Raises:
        ValueError: see `MaskPair.of`.
    """
    return MaskPair.of(truth, prediction, spacing, numbers).voxel_distances()


def surfel_distances(
    truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...], numbers: Sequence[int] | None = None
) -> SurfelDistances:
    """Measure every surface element's distance to the other mask's surface, as DeepMind's surface-distance does.

    A surface element is the piece of surface that marching cubes places in a cell of 2 x 2 x 2 neighboring voxels (in
    2-D, a piece of line in 2 x 2), see `surfels.surfel_areas`; distances are between the centers of such cells.

    Args:
        truth: bool array, 2-D or 3-D.
        prediction: bool array of the same shape.
        spacing: the distance between voxels along each axis, in any unit.
        numbers: as for `voxel_distances`.

    Returns:
        The distances in both directions, in the unit of `spacing`, and the elements' areas.

    Raises:
        ValueError: see `MaskPair.of`.

    Source: Nikolov et al. 2018, https://arxiv.org/abs/1809.04430.
    """
    return MaskPair.of(truth, prediction, spacing, numbers).surfel_distances()


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


def check_numbers(numbers: Sequence[int], shape: tuple[int, ...]) -> None:
    """Check that 3-D masks have one slice number per slice, in ascending order.

    Raises:
        ValueError: they do not.
    """
    if len(shape) != 3 or len(numbers) != shape[0] or any(b <= a for a, b in itertools.pairwise(numbers)):
        raise ValueError(f"numbers must be {shape[0]} ascending slice numbers of 3-D masks, got {tuple(numbers)[:8]}")


def _planes(numbers: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Place slices with gaps on a grid that shortens gaps to `steps` + 1 planes.

    Returns:
        int [D], the plane of each slice, and int [planes], the position of each plane in steps; the missing planes of a
        gap directly precede the slice after it. None if no slice is missing.
    """
    gaps = np.diff(numbers) - 1
    if not gaps.any():
        return None
    rows = np.concatenate([[0], (np.minimum(gaps, steps + 1) + 1).cumsum()])
    planes = np.arange(rows[-1] + 1)
    following = rows.searchsorted(planes)
    return rows, (numbers - numbers[0])[following] - (rows[following] - planes)


def _with_missing_planes(mask: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    grid = np.zeros((mask.shape[0], count, mask.shape[2]), bool)
    grid[:, rows] = mask
    return grid


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
