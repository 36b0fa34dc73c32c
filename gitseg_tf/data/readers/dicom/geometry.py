"""The voxel grid of a DICOM series, from the positions of its slices."""

from dataclasses import dataclass

import numpy as np

from gitseg_tf.data.readers.grid import Grid, make_grid
from gitseg_tf.errors import DataError

# DICOM's patient axes are left, posterior, superior; nibabel's are right, anterior, superior.
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SHIFT = 0.1  # tolerance, as a fraction of a voxel
_UNEVEN = 0.05  # tolerance, as a fraction of the slice distance
_ANGLE = 1e-3  # tolerance of a direction cosine


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


def series_grid(images) -> tuple[SeriesGrid, list[int]]:
    """Sort the slices of a series by position along the normal.

    Args:
        images: one (path, header) per slice, single-frame images with position and orientation.

    Returns:
        The grid, and the order of `images` along its third axis.

    Raises:
        DataError: slices of different sizes or orientations, duplicate positions, uneven distances, or slices shifted
            sideways.
    """
    path, first = images[0]
    _check_same_plane(images)
    across, down = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    row_mm, column_mm = map(float, first.PixelSpacing)
    normal = np.cross(across, down)
    positions = np.array([header.ImagePositionPatient for _, header in images], float)
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    steps, distance = _steps([images[i] for i in order], heights[order])
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([across * column_mm, down * row_mm, normal * distance])
    affine[:3, 3] = positions[order[0]]
    sideways = positions[order] - positions[order[0]] - np.outer(heights[order] - heights[order[0]], normal)
    if np.linalg.norm(sideways, axis=1).max() > _SHIFT * min(row_mm, column_mm):
        raise DataError(f"{path.parent}: the slices are shifted sideways (tilted gantry?); resample the series")
    grid = make_grid((int(first.Columns), int(first.Rows), len(images)), _LPS_TO_RAS @ affine, path.parent)
    if grid.transform[2, 1] < 0:
        order, steps = order[::-1], steps[-1] - steps[::-1]
        affine[:3, 2] *= -1
        affine[:3, 3] = positions[order[0]]
        grid = make_grid(grid.shape, _LPS_TO_RAS @ affine, path.parent)
    if steps[-1] >= len(steps) and grid.transform[2, 0] != 2:
        raise DataError(f"{path.parent}: slices are missing from a series that is not axial; add them")
    return SeriesGrid(grid.shape, grid.affine, tuple(steps.tolist())), order.tolist()


def _check_same_plane(images) -> None:
    path, first = images[0]
    for other, header in images[1:]:
        for name, tolerance in (
            ("ImageOrientationPatient", _ANGLE),
            ("PixelSpacing", 1e-4),
            ("Rows", 0),
            ("Columns", 0),
        ):
            apart = np.abs(np.subtract(np.array(first[name].value, float), np.array(header[name].value, float)))
            if apart.max() > tolerance:
                raise DataError(f"{path.parent}: {path.name} and {other.name} differ in {name}; remove one")


def _steps(images, heights: np.ndarray) -> tuple[np.ndarray, float]:
    """Compute integer steps from the first slice, and the length of a step in mm."""
    path, first = images[0]
    if len(images) == 1:
        distance = float(first.get("SpacingBetweenSlices") or first.get("SliceThickness") or 0)
        if distance <= 0:
            raise DataError(f"{path}: is a single slice without SliceThickness; add the other slices")
        return np.zeros(1, int), distance
    between = np.diff(heights)
    if between.min() < 1e-3:
        a, b = (images[int(between.argmin()) + i][0] for i in (0, 1))
        raise DataError(
            f"{path.parent}: {a.name} and {b.name} have the same position (several echoes or phases?); keep one set"
        )
    # The most frequent distance is the spacing; missing slices leave gaps of whole multiples of it.
    frequent = (np.abs(between[:, None] - between) <= _UNEVEN * between[:, None]).sum(1)
    distance = float(between[frequent == frequent.max()].min())
    whole = np.rint(between / distance)
    if whole.min() > 0:
        distance = between.sum() / whole.sum()
    uneven = np.abs(between - whole * distance) / distance
    if uneven.max() > _UNEVEN:
        worst = int(uneven.argmax())
        a, b = (images[worst + i][0] for i in (0, 1))
        raise DataError(
            f"{path.parent}: {a.name} and {b.name} are {between[worst]:.2f} mm apart, which is not a multiple of "
            f"{distance:.2f} mm; slices must be evenly spaced, so resample the series"
        )
    return np.concatenate([[0], np.cumsum(whole)]).astype(int), float(distance)
