"""Conversion from a scanner's axes and intensities to those of the records."""

from dataclasses import dataclass

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from gitseg_tf.errors import DataError

# Columns go to the patient's left, rows to posterior, slices to the feet, as in the competition.
RECORDS_AXES = "LPI"
_SHIFT = 0.1
_HIGHEST = 1e30


@dataclass(frozen=True)
class Grid:
    """A voxel grid in space that can be reoriented to the axes of the records.

    Attributes:
        shape: (x, y, z) voxels as stored in the file.
        affine: 4 rows of 4 values that map a stored voxel index (x, y, z) to millimeters to the right, anterior and
            superior (RAS+, as in nibabel).
    """

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]

    @property
    def transform(self) -> np.ndarray:
        """nibabel's orientation transform [3, 2]: (axis of the records, 1 or -1 for a flip) per axis of the file."""
        return ornt_transform(io_orientation(np.array(self.affine)), axcodes2ornt(RECORDS_AXES))

    @property
    def records_shape(self) -> tuple[int, int, int]:
        """(depth, height, width) in the records."""
        order = np.argsort(self.transform[:, 0])
        depth, height, width = (int(self.shape[axis]) for axis in order[::-1])
        return depth, height, width

    @property
    def records_affine(self) -> np.ndarray:
        """float64 [4, 4] that maps a voxel index (column, row, slice) of the records to RAS+ millimeters.

        With this affine, an array [D, H, W] transposed to [W, H, D] is a NIfTI image at the right position.
        """
        return np.array(self.affine) @ inv_ornt_aff(self.transform, self.shape)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(z, y, x) in mm, along the axes of the records."""
        lengths = np.linalg.norm(self.records_affine[:3, :3], axis=0)
        # Affines are stored in single precision, so that 1.4999999 means 1.5.
        z, y, x = (float(f"{length:.6g}") for length in lengths[::-1])
        return z, y, x

    def to_records(self, volume: np.ndarray) -> np.ndarray:
        """Reorient [X, Y, Z] as stored to [D, H, W]."""
        return apply_orientation(volume, self.transform).transpose(2, 1, 0)

    def from_records(self, volume: np.ndarray) -> np.ndarray:
        """Reorient [D, H, W] to [X, Y, Z] as stored."""
        stored = io_orientation(np.array(self.affine))
        return apply_orientation(volume.transpose(2, 1, 0), ornt_transform(axcodes2ornt(RECORDS_AXES), stored))

    def agrees_with(self, other: "Grid") -> bool:
        """Check that both grids place the voxels of the records equally, within a tenth of a voxel along each axis."""
        if self.records_shape != other.records_shape:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.records_shape[::-1]])).reshape(3, -1)
        corners = np.vstack([corners, np.ones(8)])
        apart = np.linalg.inv(self.records_affine) @ other.records_affine @ corners - corners
        return float(np.abs(apart).max()) <= _SHIFT

    def __str__(self) -> str:
        """Describe the grid along the axes of the records, with the centers of the first and the last voxel in RAS+ mm.

        Example:
            >>> str(records_grid((8, 40, 64), (3.0, 1.5, 1.25)))
            '8 x 40 x 64 voxels of 3 x 1.5 x 1.25 mm from (0, 0, 0) to (-78.75, -58.5, -21) mm'
        """
        depth, height, width = self.records_shape
        corners = self.records_affine @ np.array([[0, 0, 0, 1], [width - 1, height - 1, depth - 1, 1]]).T
        first, last = (", ".join(f"{mm + 0.0:.5g}" for mm in corner) for corner in corners[:3].T)
        size, step = (" x ".join(f"{n:.4g}" for n in numbers) for numbers in (self.records_shape, self.spacing))
        return f"{size} voxels of {step} mm from ({first}) to ({last}) mm"


def make_grid(shape: tuple[int, ...], affine: np.ndarray, name: str) -> Grid:
    """Make a grid from a checked shape and affine.

    Args:
        shape: (x, y, z), as stored.
        affine: float [4, 4], as in nibabel.
        name: the file, for errors.

    Raises:
        DataError: not three axes, or a singular affine.
    """
    affine = np.asarray(affine, float)
    if min(shape, default=0) < 1:
        raise DataError(f"{name}: has no voxels ({' x '.join(map(str, shape))}); copy or export the file again")
    if len(shape) != 3:
        raise DataError(f"{name}: has {len(shape)} axes ({' x '.join(map(str, shape))}); a scan must have three")
    # An axis may also be too short or too long for the float32 in which spacings are stored.
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    usable = np.isfinite(affine).all() and lengths.min() > 1e-6 and lengths.max() < 1e6
    if not usable or abs(np.linalg.det(affine[:3, :3])) < 1e-9 or np.isnan(io_orientation(affine)).any():
        raise DataError(f"{name}: its affine is singular; fix the header")
    columns, rows, slices = map(int, shape)
    return Grid((columns, rows, slices), tuple(map(tuple, affine.tolist())))


def records_grid(shape: tuple[int, int, int], spacing: tuple[float, float, float], skipped: int = 0) -> Grid:
    """Make a grid along the axes of the records, for a scan with known spacing only.

    Args:
        shape: (depth, height, width).
        spacing: (z, y, x) in mm.
        skipped: number of slices before the first; 0 puts the first voxel at the origin.
    """
    affine = np.diag([-spacing[2], -spacing[1], -spacing[0], 1.0])
    affine[2, 3] = -skipped * spacing[0]
    return make_grid(shape[::-1], affine, "scan")


def stored_voxels(volume: np.ndarray, name: object) -> np.ndarray:
    """Convert intensities to the smallest dtype of the records that keeps every value.

    Args:
        volume: any shape, integer or float, in the file's units.
        name: the file, for errors.

    Returns:
        uint16 or int16 of the same shape if all values are integers in range, float32 otherwise.

    Raises:
        DataError: values that are not real numbers, not finite, or too large for statistics in float32.
    """
    if volume.dtype.kind not in "biuf":
        raise DataError(f"{name}: contains {volume.dtype} voxels; a scan must be grayscale")
    if volume.dtype.kind == "f" and not np.isfinite(volume).all():
        raise DataError(f"{name}: contains NaN or infinite values; replace them")
    low, high = float(volume.min()), float(volume.max())
    if max(-low, high) > _HIGHEST:
        raise DataError(f"{name}: contains values up to {max(-low, high):.3g}; fix the scaling in its header")
    if volume.dtype.kind != "f" or bool((volume == np.rint(volume)).all()):
        for dtype in (np.uint16, np.int16):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return volume.astype(dtype, copy=False)
    return volume.astype(np.float32, copy=False)
