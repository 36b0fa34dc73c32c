"""Masks as NIfTI: a folder a scan, with the image and a mask an organ."""

import gzip

import nibabel
import numpy as np

from gitseg_tf.data.orientation import Grid
from gitseg_tf.data.scans import ORGANS, Scan
from gitseg_tf.files import AnyPath, write_atomically

_SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT of nifti1.h: millimetres of the scanner
_SAME_MM = 1e-3
_LEVEL = 1  # as nibabel's own: higher ones take several times as long for some percent


def write_nifti(out: AnyPath, scan: Scan, image: np.ndarray, masks: np.ndarray) -> None:
    """Write OUT/SCAN/image.nii.gz and a mask an organ beside it, as TotalSegmentator does: organs may overlap.

    All have the axes, the affine and the size of the input; only slices that are left out in scan.numbers are there,
    and empty.

    Args:
        out: gets SCAN/.
        scan: where its voxels are.
        image: uint16 [D, H, W].
        masks: bool [3, D, H, W].
    """
    folder, grid = out / scan.id, scan.source.whole_grid(scan)
    folder.mkdir(parents=True, exist_ok=True)
    volumes = {"image": image} | {organ: mask.astype(np.uint8) for organ, mask in zip(ORGANS, masks, strict=True)}
    for name, volume in volumes.items():
        write_atomically(folder / f"{name}.nii.gz", to_nifti(_with_gaps(volume, scan, grid), grid))


def to_nifti(volume: np.ndarray, grid: Grid) -> bytes:
    """A .nii.gz file.

    Args:
        volume: [D, H, W] in the axes of the records, as large as the grid.
        grid: where the voxels are; the file gets its axes.
    """
    affine = np.array(grid.affine)
    nifti = nibabel.Nifti1Image(np.ascontiguousarray(grid.from_records(volume)), affine)
    nifti.header.set_xyzt_units("mm")
    nifti.set_sform(affine, _SCANNER)
    # Some tools read the quaternion first, which cannot hold shears.
    nifti.set_qform(affine, _SCANNER)
    if not np.allclose(nifti.get_qform(), affine, atol=_SAME_MM):
        nifti.set_qform(None, 0)
    return gzip.compress(nifti.to_bytes(), _LEVEL, mtime=0)


def _with_gaps(volume: np.ndarray, scan: Scan, grid: Grid) -> np.ndarray:
    if volume.shape == grid.records_shape:
        return volume
    whole = np.zeros(grid.records_shape, volume.dtype)
    whole[np.array(scan.numbers) - scan.numbers[0]] = volume
    return whole
