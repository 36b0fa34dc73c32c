"""From a scanner's axes and intensities to those of the records."""

from dataclasses import dataclass

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from gitseg_tf.errors import InputError

# Of x, y and z: columns to the patient's left, rows to posterior, slices to the feet, as the competition's slices go.
RECORDS_AXES = "LPI"
_SHIFT = 0.1


@dataclass(frozen=True)
class Grid:
    """A voxel grid in space, and the way from its axes to those of the records.

    Attributes:
        shape: (x, y, z) voxels as stored in the file.
        affine: 4 rows of 4: stored voxel index (x, y, z) to millimetres to the right, anterior and superior (RAS+,
            as nibabel's).
    """

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]

    @property
    def transform(self) -> np.ndarray:
        """Orientation transform [3, 2] of nibabel's: (axis of the records, 1 or -1 for a flip) an axis of the file."""
        return ornt_transform(io_orientation(np.array(self.affine)), axcodes2ornt(RECORDS_AXES))

    @property
    def records_shape(self) -> tuple[int, int, int]:
        """(depth, height, width) in the records."""
        order = np.argsort(self.transform[:, 0])
        return tuple(int(self.shape[axis]) for axis in order[::-1])

    @property
    def records_affine(self) -> np.ndarray:
        """float64 [4, 4]: voxel index (column, row, slice) of the records to RAS+ millimetres.

        An array [D, H, W] transposed to [W, H, D] is, with this affine, a NIfTI image in its place.
        """
        return np.array(self.affine) @ inv_ornt_aff(self.transform, self.shape)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(z, y, x) in mm in the records."""
        lengths = np.linalg.norm(self.records_affine[:3, :3], axis=0)
        # Affines are stored in single precision: 1.4999999 and 1.5 are one spacing.
        return tuple(float(f"{length:.6g}") for length in lengths[::-1])

    def to_records(self, volume: np.ndarray) -> np.ndarray:
        """[X, Y, Z] as stored to [D, H, W]."""
        return apply_orientation(volume, self.transform).transpose(2, 1, 0)

    def from_records(self, volume: np.ndarray) -> np.ndarray:
        """[D, H, W] to [X, Y, Z] as stored."""
        stored = io_orientation(np.array(self.affine))
        return apply_orientation(volume.transpose(2, 1, 0), ornt_transform(axcodes2ornt(RECORDS_AXES), stored))

    def agrees_with(self, other: "Grid") -> bool:
        """True when the voxels of both are, in the records, the same ones to a tenth of a voxel."""
        if self.records_shape != other.records_shape:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.records_shape[::-1]])).reshape(3, -1)
        corners = np.vstack([corners, np.ones(8)])
        apart = (self.records_affine - other.records_affine) @ corners
        return float(np.linalg.norm(apart, axis=0).max()) <= _SHIFT * min(self.spacing)


def make_grid(shape: tuple[int, ...], affine: np.ndarray, name: str) -> Grid:
    """Check an affine and its shape.

    Args:
        shape: (x, y, z), as stored.
        affine: float [4, 4], as nibabel's.
        name: of the file, for the error.

    Raises:
        InputError: not three axes, or an affine that gives a voxel no volume or no place.
    """
    affine = np.asarray(affine, float)
    if len(shape) != 3:
        raise InputError(f"{name}: has {len(shape)} axes ({' x '.join(map(str, shape))}); a scan has three")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError(f"{name}: its affine gives voxels no volume; correct the header")
    return Grid(tuple(map(int, shape)), tuple(map(tuple, affine.tolist())))


def records_grid(shape: tuple[int, int, int], spacing: tuple[float, float, float], skipped: int = 0) -> Grid:
    """The grid of a scan of which nothing but the spacing is known, its axes those of the records.

    Args:
        shape: (depth, height, width).
        spacing: (z, y, x) in mm.
        skipped: slices before the first one; without any its first voxel is at 0.
    """
    affine = np.diag([-spacing[2], -spacing[1], -spacing[0], 1.0])
    affine[2, 3] = -skipped * spacing[0]
    return make_grid(shape[::-1], affine, "scan")


def to_uint16(volume: np.ndarray, name: str) -> np.ndarray:
    """Fit intensities into the records.

    Whole numbers from 0 to 65535 keep their values. Whole numbers that span no more than 65535 are shifted, so that the
    lowest is 0. All others are mapped linearly, the lowest to 0 and the highest to 65535.

    Args:
        volume: any shape, integer or float.
        name: of the file, for the error.

    Returns:
        uint16 of the same shape.

    Raises:
        InputError: a value that is not finite, or no number.
    """
    if volume.dtype.kind not in "biuf":
        raise InputError(f"{name}: holds {volume.dtype} voxels; a scan holds grey values")
    if volume.dtype.kind == "f" and not np.isfinite(volume).all():
        raise InputError(f"{name}: holds values that are not finite (NaN or infinite); replace them")
    low, high = float(volume.min()), float(volume.max())
    whole = volume.dtype.kind != "f" or bool((volume == np.rint(volume)).all())
    if whole and high - low <= 65535:
        return (volume if low >= 0 and high <= 65535 else volume.astype(np.float64) - low).astype(np.uint16)
    scale = 65535 / (high - low or 1)
    return np.rint((volume.astype(np.float64) - low) * scale).astype(np.uint16)
