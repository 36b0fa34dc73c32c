"""Voxels and contours of one DICOM series."""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import apply_rescale
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from gitseg_tf.core.text import plural
from gitseg_tf.data.readers.base import Scan, Source
from gitseg_tf.data.readers.contours import contours_to_mask
from gitseg_tf.data.readers.dicom.geometry import SeriesGrid
from gitseg_tf.data.readers.grid import Grid, stored_voxels
from gitseg_tf.data.volume import Annotation
from gitseg_tf.errors import DataError, first_line

# What pydicom raises for damaged values.
_DAMAGE = (
    InvalidDicomError, BytesLengthException, OSError, EOFError, ValueError, KeyError, IndexError, AttributeError,
    TypeError, NotImplementedError, OverflowError, RecursionError, struct.error,
)  # fmt: skip
_LARGE = 1 << 30  # bytes; smaller files are decoded in the memory of any computer
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "INTERPOLATED_PLANAR")
_FARTHEST = 1e6  # mm
_PLANE = 0.2  # tolerance between a contour and its slice, as a fraction of the slice distance


@dataclass(frozen=True)
class Roi:
    """An ROI that matches a label: its structure set, and its number and name in it."""

    label: str
    path: Path
    number: int
    name: str


@dataclass(frozen=True)
class DicomSource(Source):
    """One series with the structure sets that refer to it.

    Attributes:
        paths: the images, in the order of the grid's third axis.
        sop_uids: the images' SOPInstanceUIDs.
        series_uid, study_uid, frame_uid: UIDs that a new structure set must refer to.
        grid: the grid as acquired; its third axis points the same way as the nearest axis of the records.
        structures: RTSTRUCT files.
        rois: the ROIs that match a label.
    """

    paths: tuple[Path, ...]
    sop_uids: tuple[str, ...]
    series_uid: str
    study_uid: str
    frame_uid: str
    grid: SeriesGrid
    structures: tuple[Path, ...]
    rois: tuple[Roi, ...]

    def files(self) -> Sequence[tuple[str, Path]]:
        return [*(("image", path) for path in self.paths), *(("contours", path) for path in self.structures)]

    def digest(self):
        for role, path in self.files():
            yield f"{role} {path.name} {path.stat().st_size}\n".encode()
            if role != "image":
                yield hashlib.sha256(path.read_bytes()).digest()

    def read_image(self, scan: Scan) -> np.ndarray:
        volume = stored_voxels(np.stack([_read_pixels(path) for path in self.paths]), self.paths[0].parent)
        return np.ascontiguousarray(self.grid.to_records(volume.transpose(2, 1, 0)))

    def read_annotation(self, scan: Scan) -> Annotation:
        masks = np.zeros((len(scan.labels), *scan.shape), bool)
        drawn, skipped = 0, {}
        for path in self.structures:
            contours = _contours_of(path)
            for roi in self.rois:
                if roi.path == path and roi.number in contours:
                    with naming_damage(path):
                        items = contours[roi.number].get("ContourSequence") or ()
                        by_slice, without_slice = self._by_slice(roi, items)
                    masks[scan.labels.index(roi.label)] = self.grid.to_records(self._fill(by_slice))
                    drawn += len(by_slice)
                    if without_slice:
                        skipped[roi] = without_slice
        if skipped and not drawn:
            roi, (position, *_) = next(iter(skipped.items()))
            raise DataError(
                f"{roi.path}: no contour lies on a slice of the series, for example ROI {roi.name!r} at {position}; "
                "add the slices or remove the structure set"
            )
        notes = tuple(_skipped_note(roi, positions) for roi, positions in skipped.items())
        return Annotation(masks, scan.is_annotated, notes=notes)

    def whole_grid(self, scan: Scan) -> Grid:
        columns, rows, _ = self.grid.shape
        return Grid((columns, rows, self.grid.steps[-1] + 1), self.grid.affine)

    def _by_slice(self, roi: Roi, items) -> tuple[dict[int, list[np.ndarray]], list[str]]:
        """Sort the contours of an ROI by slice, in pixels, and list the positions of those without a slice."""
        by_slice: dict[int, list[np.ndarray]] = {}
        without_slice = []
        for item in items:
            kind = item.get("ContourGeometricType", "CLOSED_PLANAR")
            if kind == "POINT":
                continue
            if kind not in _CLOSED:
                raise DataError(
                    f"{roi.path}: ROI {roi.name!r} has a contour of type {kind}, which is not supported; remove it"
                )
            points = _points(roi, item)
            if len(points) < 3:
                continue  # encloses no area
            voxels = self.grid.voxels_at(points)
            nearest = self.grid.slice_at(voxels[:, 2], _PLANE)
            if nearest is None:
                without_slice.append(f"({', '.join(f'{mm:.1f}' for mm in points[0])}) mm")
            else:
                by_slice.setdefault(nearest, []).append(voxels[:, :2])
        return by_slice, without_slice

    def _fill(self, by_slice: dict[int, list[np.ndarray]]) -> np.ndarray:
        """Fill contours: bool [columns, rows, slices]."""
        columns, rows, slices = self.grid.shape
        mask = np.zeros((columns, rows, slices), bool)
        for z, contours in by_slice.items():
            mask[:, :, z] = contours_to_mask(contours, (rows, columns)).T
        return mask


def has_contours(roi: Roi) -> bool:
    """Check whether an ROI has any contour."""
    items = _contours_of(roi.path).get(roi.number)
    with naming_damage(roi.path):
        return items is not None and bool(items.get("ContourSequence"))


def _contours_of(path: Path) -> dict[int, pydicom.Dataset]:
    """Read the contours of a structure set by ROI number; those without a number belong to none."""
    dataset = read_dicom(path)
    with naming_damage(path):
        sequence = dataset.get("ROIContourSequence") or ()
        return {int(c.ReferencedROINumber): c for c in sequence if c.get("ReferencedROINumber") is not None}


def _skipped_note(roi: Roi, positions: list[str]) -> str:
    what = f"{plural(len(positions), 'contour')} of ROI {roi.name!r} skipped because the series has no slice there"
    return f"{roi.path}: {what}; the first is at {positions[0]}"


def starts_like_dicom(path: Path) -> bool:
    """Check whether a file starts with DICOM's preamble or, as some planning systems write it, with its first group."""
    with open(path, "rb") as file:
        start = file.read(132)
    # Without a preamble: group 0008 in little endian, a low element, and a value representation or a short length.
    return start[128:] == b"DICM" or (
        start[:2] == b"\x08\x00" and start[3:4] == b"\x00" and (start[4:6].isalpha() or start[5:8] == b"\x00\x00\x00")
    )


@contextmanager
def naming_damage(path: Path, what: str = "cannot be read as DICOM") -> Iterator[None]:
    """Convert the errors of pydicom, which decodes most values when they are used, to a DataError that names the file.

    Raises:
        DataError: a value cannot be decoded, or a file claims to contain more than fits into memory.
    """
    try:
        yield
    except _DAMAGE as error:
        raise DataError(f"{path}: {what} ({first_line(error)}); copy the file again") from None
    except MemoryError:
        if path.stat().st_size > _LARGE:
            raise
        raise DataError(f"{path}: {what} (a length in it is far too large); copy the file again") from None


def read_dicom(path: Path, **options) -> pydicom.Dataset:
    """Read a DICOM file, with or without preamble.

    Args:
        path: the file.
        options: passed to pydicom.dcmread. With specific_tags, all values are decoded, so that damaged ones are found.

    Raises:
        DataError: not a DICOM file, or a damaged one.
    """
    with naming_damage(path):
        try:
            dataset = pydicom.dcmread(path, **options)
        except InvalidDicomError:
            if not starts_like_dicom(path):
                raise
            dataset = pydicom.dcmread(path, force=True, **options)
        if "TransferSyntaxUID" not in dataset.file_meta:  # a file without preamble; needed to decode pixels
            implicit, little = dataset.original_encoding
            explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
        if "specific_tags" in options:
            for _ in dataset.iterall():
                pass
        return dataset


def _points(roi: Roi, contour: pydicom.Dataset) -> np.ndarray:
    """Parse the points of a contour: float [N, 3] in mm, patient coordinates."""
    if "ContourData" not in contour:
        return np.empty((0, 3))
    # Parse the raw text, because pydicom's number parsing takes three times as long as filling the contours.
    value = contour.get_item("ContourData").value or b""
    try:
        points = np.array([part for part in value.split(b"\\") if part.strip()], float).reshape(-1, 3)
    except (ValueError, AttributeError):
        points = np.full((1, 3), np.nan)
    if not (np.abs(points) < _FARTHEST).all():
        raise DataError(f"{roi.path}: ROI {roi.name!r} has a contour with unreadable points; export it again")
    return points


def _read_pixels(path: Path) -> np.ndarray:
    dataset = read_dicom(path)
    try:
        pixels = apply_rescale(dataset.pixel_array, dataset)
    except RecursionError:
        raise DataError(f"{path}: its pixels cannot be read; copy the file again") from None
    except (RuntimeError, NotImplementedError):
        syntax = dataset.file_meta.TransferSyntaxUID.name
        raise DataError(f"{path}: cannot decode {syntax}; pip install 'pylibjpeg[all]'") from None
    except _DAMAGE as error:
        raise DataError(f"{path}: its pixels cannot be read ({first_line(error)}); copy the file again") from None
    # Rescaled pixels are float64, four times the size of the stored voxels.
    whole = pixels.dtype.kind != "f" or bool((pixels == np.rint(pixels)).all())
    return pixels.astype(np.int32 if whole and np.abs(pixels).max(initial=0) < 2**31 else np.float32)
