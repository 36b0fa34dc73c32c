"""Write masks as NIfTI: one folder per scan, with the image and one mask per label."""

import gzip
import struct

import nibabel
import numpy as np

from gitseg_tf.core.paths import write_atomically
from gitseg_tf.data.readers.base import Scan
from gitseg_tf.data.readers.grid import Grid
from gitseg_tf.data.volume import Volume
from gitseg_tf.inference.prediction import Prediction
from gitseg_tf.inference.writers.registry import Writer

_SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT of nifti1.h: scanner coordinates in mm
_SAME_MM = 1e-3
_SCL_SLOPE = 112  # offset of scl_slope in nifti1.h; scl_inter follows and is 0
_LEVEL = 1  # as in nibabel: higher levels take several times as long and save a few percent


class NiftiMasks(Writer):
    """Writes OUT/SCAN/image.nii.gz and one mask per label next to it, like TotalSegmentator; labels may overlap.

    All files have the axes, the affine and the size of the input; slices missing from scan.numbers are empty.
    """

    def write(self, scan: Scan, volume: Volume, prediction: Prediction) -> None:
        folder, grid = self.out / scan.id, scan.source.whole_grid(scan)
        folder.mkdir(parents=True, exist_ok=True)
        names = (f"{name}.nii.gz" for name in self.labels.names)
        files = {"image.nii.gz": volume.voxels} | dict(zip(names, prediction.masks.astype(np.uint8), strict=True))
        for name, voxels in files.items():
            write_atomically(folder / name, to_nifti(with_gaps(voxels, scan, grid), grid))


def to_nifti(volume: np.ndarray, grid: Grid, slope: float | None = None) -> bytes:
    """Encode a volume as a .nii.gz file.

    Args:
        volume: [D, H, W] or [D, H, W, C] in the axes of the records, with the size of the grid.
        grid: position of the voxels; the file has its axes, and channels as the last axis.
        slope: factor by which readers multiply the stored integers (scl_slope); None is none.

    Returns:
        The content of the file.
    """
    affine = np.array(grid.affine)
    if volume.ndim == 4:
        stored = np.stack([grid.from_records(volume[..., c]) for c in range(volume.shape[3])], -1)
    else:
        stored = np.ascontiguousarray(grid.from_records(volume))
    nifti = nibabel.Nifti1Image(stored, affine)
    nifti.header.set_xyzt_units("mm")
    nifti.set_sform(affine, _SCANNER)
    # Some tools prefer the quaternion, which cannot represent shears.
    nifti.set_qform(affine, _SCANNER)
    if not np.allclose(nifti.get_qform(), affine, atol=_SAME_MM):
        nifti.set_qform(None, 0)
    content = bytearray(nifti.to_bytes())
    if slope is not None:  # nibabel would divide the voxels by it
        struct.pack_into(f"{nifti.header.endianness}f", content, _SCL_SLOPE, slope)
    return gzip.compress(content, _LEVEL, mtime=0)


def with_gaps(volume: np.ndarray, scan: Scan, grid: Grid) -> np.ndarray:
    """Insert an empty slice into a volume [D, H, W] or [D, H, W, C] for each number that the scan lacks."""
    if volume.shape[:3] == grid.records_shape:
        return volume
    whole = np.zeros((*grid.records_shape, *volume.shape[3:]), volume.dtype)
    whole[np.array(scan.numbers) - scan.numbers[0]] = volume
    return whole
