"""Voxels and contours of one DICOM series."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_rescale

from gitseg_tf.data.contours import contours_to_mask
from gitseg_tf.data.dicom_grid import SeriesGrid
from gitseg_tf.data.orientation import Grid, to_uint16
from gitseg_tf.data.scans import ORGANS, Scan, Source
from gitseg_tf.errors import InputError

_PLANE = 0.2  # of the distance of two slices: how far from its slice a contour may lie


@dataclass(frozen=True)
class Roi:
    """A region of interest that is an organ of ours: its structure set, its number and its name there."""

    organ: str
    path: Path
    number: int
    name: str


@dataclass(frozen=True)
class DicomSource(Source):
    """One series, and the structure sets that refer to it.

    Attributes:
        paths: of the images, in the order of the grid's third axis.
        sop_uids: SOPInstanceUIDs of the images.
        series_uid, study_uid, frame_uid: what another structure set has to refer to.
        grid: of the series as acquired; its third axis goes the way that the records' nearest axis goes.
        structures: RTSTRUCT files.
        rois: what is an organ in them.
    """

    paths: tuple[Path, ...]
    sop_uids: tuple[str, ...]
    series_uid: str
    study_uid: str
    frame_uid: str
    grid: SeriesGrid
    structures: tuple[Path, ...]
    rois: tuple[Roi, ...]

    def files(self) -> list[tuple[str, Path]]:
        return [*(("image", path) for path in self.paths), *(("contours", path) for path in self.structures)]

    def digest(self):
        for role, path in self.files():
            yield f"{role} {path.name} {path.stat().st_size}\n".encode()
            if role != "image":
                yield hashlib.sha256(path.read_bytes()).digest()

    def read_image(self, scan: Scan) -> np.ndarray:
        volume = to_uint16(np.stack([_read_pixels(path) for path in self.paths]), self.paths[0].parent)
        return np.ascontiguousarray(self.grid.to_records(volume.transpose(2, 1, 0)))

    def read_masks(self, scan: Scan) -> np.ndarray:
        masks = np.zeros((len(ORGANS), *scan.shape), bool)
        for path in self.structures:
            contours = {int(c.ReferencedROINumber): c for c in read_dicom(path).get("ROIContourSequence") or ()}
            for roi in self.rois:
                if roi.path == path and roi.number in contours:
                    drawn = contours[roi.number].get("ContourSequence") or ()
                    masks[ORGANS.index(roi.organ)] = self.grid.to_records(self._fill(roi, drawn))
        return masks

    def whole_grid(self, scan: Scan) -> Grid:
        columns, rows, _ = self.grid.shape
        return Grid((columns, rows, self.grid.steps[-1] + 1), self.grid.affine)

    def _fill(self, roi: Roi, drawn) -> np.ndarray:
        """bool [columns, rows, slices]."""
        by_slice: dict[int, list[np.ndarray]] = {}
        for item in drawn:
            kind = item.get("ContourGeometricType", "CLOSED_PLANAR")
            if kind == "POINT":
                continue
            if kind not in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
                raise InputError(
                    f"{roi.path}: ROI {roi.name!r} has a contour of type {kind}; only closed ones are filled"
                )
            points = _points(roi, item)
            if len(points) < 3:
                continue  # has no area
            voxels = self.grid.voxels_at(points)
            nearest = self.grid.slice_at(voxels[:, 2], _PLANE)
            if nearest is None:
                place = ", ".join(f"{mm:.1f}" for mm in points[0])
                raise InputError(
                    f"{roi.path}: ROI {roi.name!r} has a contour at ({place}) mm, where its series has no slice; "
                    "add the slice or remove the contour"
                )
            by_slice.setdefault(nearest, []).append(voxels[:, :2])
        columns, rows, slices = self.grid.shape
        mask = np.zeros((columns, rows, slices), bool)
        for z, contours in by_slice.items():
            mask[:, :, z] = contours_to_mask(contours, (rows, columns)).T
        return mask


def read_dicom(path: Path, **options) -> pydicom.Dataset:
    """Read a file, or its header alone.

    Args:
        path: the file.
        options: of pydicom.dcmread.

    Raises:
        InputError: no DICOM, or damaged.
    """
    try:
        return pydicom.dcmread(path, **options)
    except (InvalidDicomError, OSError, EOFError, ValueError, KeyError, AttributeError, NotImplementedError) as error:
        raise InputError(f"{path}: cannot be read as DICOM ({_first_line(error)}); copy the file again") from None


def _points(roi: Roi, contour: pydicom.Dataset) -> np.ndarray:
    """float [N, 3] in patient millimetres."""
    if "ContourData" not in contour:
        return np.empty((0, 3))
    # The text as it stands in the file: pydicom's own numbers take three times as long as all the filling.
    value = contour.get_item("ContourData").value or b""
    try:
        return np.array([part for part in value.split(b"\\") if part.strip()], float).reshape(-1, 3)
    except ValueError:
        raise InputError(
            f"{roi.path}: ROI {roi.name!r} has a contour whose points cannot be read; export it again"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _read_pixels(path: Path) -> np.ndarray:
    dataset = read_dicom(path)
    try:
        pixels = apply_rescale(dataset.pixel_array, dataset)
    except (RuntimeError, NotImplementedError):
        syntax = dataset.file_meta.TransferSyntaxUID.name
        raise InputError(
            f"{path}: is compressed as {syntax} and cannot be decoded; pip install pylibjpeg[all]"
        ) from None
    except (ValueError, AttributeError, KeyError, EOFError) as error:
        raise InputError(f"{path}: its pixels cannot be read ({_first_line(error)}); copy the file again") from None
    # Rescaled ones are float64; a whole scan of them would be four times its records.
    whole = pixels.dtype.kind != "f" or bool((pixels == np.rint(pixels)).all())
    return pixels.astype(np.int32 if whole and np.abs(pixels).max(initial=0) < 2**31 else np.float32)
