"""Voxels and contours of one DICOM series."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom

from gitseg_tf.core.text import plural
from gitseg_tf.data.readers.base import Scan, Source
from gitseg_tf.data.readers.contours import contours_to_mask
from gitseg_tf.data.readers.dicom.files import read_dicom as read_dicom
from gitseg_tf.data.readers.dicom.files import text
from gitseg_tf.data.readers.dicom.geometry import SeriesGrid
from gitseg_tf.data.readers.dicom.pixels import read_pixels
from gitseg_tf.data.readers.dicom.structures import Roi, contours_of
from gitseg_tf.data.readers.grid import Grid, stored_voxels
from gitseg_tf.data.volume import Annotation
from gitseg_tf.errors import DataError

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "INTERPOLATED_PLANAR")
_FARTHEST = 1e6  # mm
_PLANE = 0.2  # tolerance between a contour and its slice, as a fraction of the slice distance


@dataclass(frozen=True)
class DicomSource(Source):
    """One series with the structure sets that refer to it.

    Attributes:
        paths: the file of each slice, in the order of the grid's third axis; the same for all frames of a file.
        frames: the 0-based frame of each slice in its file; None for single-frame files.
        sop_uids: the SOPInstanceUID of each slice's file.
        series_uid, study_uid, frame_uid: UIDs that a new structure set must refer to.
        grid: the grid as acquired; its third axis points the same way as the nearest axis of the records.
        structures: RTSTRUCT files.
        rois: the ROIs that match a label.
    """

    paths: tuple[Path, ...]
    frames: tuple[int | None, ...]
    sop_uids: tuple[str, ...]
    series_uid: str
    study_uid: str
    frame_uid: str
    grid: SeriesGrid
    structures: tuple[Path, ...]
    rois: tuple[Roi, ...]

    def files(self) -> Sequence[tuple[str, Path]]:
        return [
            *(("image", path) for path in dict.fromkeys(self.paths)),
            *(("contours", path) for path in self.structures),
        ]

    def digest(self):
        for role, path in self.files():
            yield f"{role} {path.name} {path.stat().st_size}\n".encode()
            if role != "image":
                yield hashlib.sha256(path.read_bytes()).digest()

    def read_image(self, scan: Scan) -> np.ndarray:
        of_path: dict[Path, list[int]] = {}
        for i, path in enumerate(self.paths):
            of_path.setdefault(path, []).append(i)
        planes: dict[int, np.ndarray] = {}
        for path, indices in of_path.items():
            planes |= zip(indices, read_pixels(path, [self.frames[i] for i in indices]), strict=True)
        volume = stored_voxels(np.stack([planes[i] for i in range(len(self.paths))]), self.paths[0].parent)
        return np.ascontiguousarray(self.grid.to_records(volume.transpose(2, 1, 0)))

    def read_annotation(self, scan: Scan) -> Annotation:
        masks = np.zeros((len(scan.labels), *scan.shape), bool)
        drawn, skipped = 0, {}
        for path in self.structures:
            contours = contours_of(path)
            for roi in self.rois:
                if roi.path == path and roi.number in contours:
                    by_slice, without_slice = self._by_slice(roi, contours[roi.number])
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
            kind = text(item, "ContourGeometricType") or "CLOSED_PLANAR"
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


def _skipped_note(roi: Roi, positions: list[str]) -> str:
    what = f"{plural(len(positions), 'contour')} of ROI {roi.name!r} skipped because the series has no slice there"
    return f"{roi.path}: {what}; the first is at {positions[0]}"


def _points(roi: Roi, contour: pydicom.Dataset) -> np.ndarray:
    """Parse the points of a contour: float [N, 3] in mm, patient coordinates."""
    if "ContourData" not in contour:
        return np.empty((0, 3))
    # Parse the raw text, because pydicom's number parsing takes three times as long as filling the contours.
    value = contour.get_item("ContourData").value or b""
    try:
        points = np.array([part for part in value.split(b"\\") if part.strip(b"\0 ")], float).reshape(-1, 3)
        if not (np.abs(points) < _FARTHEST).all():  # NaN, too
            raise ValueError
        return points
    except ValueError:
        raise DataError(f"{roi.path}: ROI {roi.name!r} has a contour with unreadable points; export it again") from None
