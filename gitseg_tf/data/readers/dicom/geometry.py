"""The voxel grid of a DICOM series, from the positions of its slices."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gitseg_tf.data.readers.dicom.slices import Slice
from gitseg_tf.data.readers.grid import Grid, make_grid
from gitseg_tf.errors import DataError

# DICOM's patient axes are left, posterior, superior; nibabel's are right, anterior, superior.
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SHIFT = 0.1  # tolerance, as a fraction of a voxel
_UNEVEN = 0.05  # tolerance, as a fraction of the slice distance
_ANGLE = 1e-3  # tolerance of a direction cosine
_TILT = 0.1  # degrees; smaller values of GantryDetectorTilt are rounding


@dataclass(frozen=True)
class SeriesGrid(Grid):
    """A grid whose third axis may have missing slices.

    Attributes:
        steps: distance of each slice to the first, in units of the affine's third column; ascending from 0.
    """

    steps: tuple[int, ...]

    @property
    def numbers(self) -> list[int]:
        """The slice numbers in the records, ascending from 1."""
        if self.transform[2, 0] == 2:
            return [1 + step for step in self.steps]
        return list(range(1, self.records_shape[0] + 1))

    def voxels_at(self, points: np.ndarray) -> np.ndarray:
        """Convert DICOM patient coordinates [N, 3] in mm to float (column, row, step) [N, 3]."""
        to_voxels = np.linalg.inv(np.array(self.affine)) @ _LPS_TO_RAS
        return points @ to_voxels[:3, :3].T + to_voxels[:3, 3]

    def points_at(self, voxels: np.ndarray) -> np.ndarray:
        """Convert (column, row, step) [N, 3] to DICOM patient coordinates [N, 3] in mm, the inverse of `voxels_at`."""
        to_patient = _LPS_TO_RAS @ np.array(self.affine)
        return voxels @ to_patient[:3, :3].T + to_patient[:3, 3]

    def slice_at(self, steps: np.ndarray, tolerance: float) -> int | None:
        """Find the slice whose plane contains all of the float `steps`, within the tolerance; None if no slice does."""
        nearest = int(np.argmin(np.abs(np.array(self.steps) - steps.mean())))
        return nearest if np.abs(steps - self.steps[nearest]).max() <= tolerance else None


def series_grid(slices: Sequence[Slice]) -> tuple[SeriesGrid, list[int]]:
    """Sort the slices of a series by position along the normal.

    Args:
        slices: the slices of one series, in any order.

    Returns:
        The grid, and the order of `slices` along its third axis.

    Raises:
        DataError: slices of different sizes or orientations, duplicate positions, uneven distances, slices shifted
            sideways, or a tilted gantry.
    """
    first, folder = slices[0], slices[0].path.parent
    _check_same_plane(slices)
    across, down = first.orientation.reshape(2, 3)
    row_mm, column_mm = first.pixel_mm
    normal = np.cross(across, down)
    positions = np.array([one.position for one in slices])
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    steps, distance = _steps([slices[i] for i in order], heights[order])
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([across * column_mm, down * row_mm, normal * distance])
    affine[:3, 3] = positions[order[0]]
    _check_upright(slices, positions[order], heights[order], normal)
    rows, columns = first.size
    grid = make_grid((columns, rows, len(slices)), _LPS_TO_RAS @ affine, str(folder))
    if grid.transform[2, 1] < 0:
        order, steps = order[::-1], steps[-1] - steps[::-1]
        affine[:3, 2] *= -1
        affine[:3, 3] = positions[order[0]]
        grid = make_grid(grid.shape, _LPS_TO_RAS @ affine, str(folder))
    if steps[-1] >= len(steps) and grid.transform[2, 0] != 2:
        raise DataError(f"{folder}: slices are missing from a series that is not axial; add them")
    return SeriesGrid(grid.shape, grid.affine, tuple(steps.tolist())), order.tolist()


def _check_upright(slices: Sequence[Slice], positions: np.ndarray, heights: np.ndarray, normal: np.ndarray) -> None:
    """Check that slices are stacked along their normal; `positions` and `heights` are sorted."""
    first, folder = slices[0], slices[0].path.parent
    stacked = positions - positions[0]
    sideways = stacked - np.outer(heights - heights[0], normal)
    if np.linalg.norm(sideways, axis=1).max() > _SHIFT * min(first.pixel_mm):
        angle = np.degrees(np.arctan2(np.linalg.norm(sideways[-1]), heights[-1] - heights[0]))
        raise DataError(
            f"{folder}: the slices are shifted sideways (by {angle:.1f} degrees; a tilted gantry?); resample the series"
        )
    # Some exports keep the tilt and lose the orientation or the shift of the slices.
    leaning = np.degrees(np.arccos(min(1.0, abs(float(normal[2])))))
    tilted = max(slices, key=lambda one: abs(one.tilt))
    if abs(tilted.tilt) > _TILT and leaning < abs(tilted.tilt) / 2:
        raise DataError(
            f"{folder}: GantryDetectorTilt is {tilted.tilt:g} degrees in {tilted.name}, but the slices are not tilted; "
            "resample the series, or set it to 0 if that was done"
        )


def _check_same_plane(slices: Sequence[Slice]) -> None:
    first = slices[0]
    for other in slices[1:]:
        for name, one, another, tolerance in (
            ("ImageOrientationPatient", first.orientation, other.orientation, _ANGLE),
            ("PixelSpacing", first.pixel_mm, other.pixel_mm, 1e-4),
            ("Rows", first.size[0], other.size[0], 0),
            ("Columns", first.size[1], other.size[1], 0),
        ):
            if np.abs(np.subtract(one, another)).max() > tolerance:
                raise DataError(f"{first.path.parent}: {first.name} and {other.name} differ in {name}; remove one")


def _steps(slices: Sequence[Slice], heights: np.ndarray) -> tuple[np.ndarray, float]:
    """Compute integer steps from the first slice, and the length of a step in mm; slices are sorted."""
    first, folder = slices[0], slices[0].path.parent
    if len(slices) == 1:
        if first.distance <= 0:
            raise DataError(f"{first.path}: is a single slice without SliceThickness; add the other slices")
        return np.zeros(1, int), first.distance
    between = np.diff(heights)
    if between.min() < 1e-3:
        one, other = slices[int(between.argmin())], slices[int(between.argmin()) + 1]
        differ = [name for (name, i), (_, j) in zip(one.dimensions, other.dimensions, strict=False) if i != j]
        what = f"differ in {', '.join(differ)}" if differ else "several echoes or phases?"
        raise DataError(f"{folder}: {one.name} and {other.name} have the same position ({what}); keep one set")
    # The most frequent distance is the spacing; missing slices leave gaps of whole multiples of it.
    frequent = (np.abs(between[:, None] - between) <= _UNEVEN * between[:, None]).sum(1)
    distance = float(between[frequent == frequent.max()].min())
    whole = np.rint(between / distance)
    if whole.min() > 0:
        distance = between.sum() / whole.sum()
    uneven = np.abs(between - whole * distance) / distance
    if uneven.max() > _UNEVEN:
        worst = int(uneven.argmax())
        one, other = slices[worst], slices[worst + 1]
        raise DataError(
            f"{folder}: {one.name} and {other.name} are {between[worst]:.2f} mm apart, which is not a multiple of "
            f"{distance:.2f} mm; slices must be evenly spaced, so resample the series"
        )
    return np.concatenate([[0], np.cumsum(whole)]).astype(int), float(distance)
