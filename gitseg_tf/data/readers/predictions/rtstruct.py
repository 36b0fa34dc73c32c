"""Masks as DICOM RT structure sets that refer to the series of the reference."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom

from gitseg_tf.core.paths import AnyPath
from gitseg_tf.data.readers.base import Cohort, Scan
from gitseg_tf.data.readers.dicom.files import items, read_dicom, starts_like_dicom, text
from gitseg_tf.data.readers.dicom.source import DicomSource
from gitseg_tf.data.readers.dicom.structures import Roi, contoured_rois, roi_names
from gitseg_tf.data.readers.predictions.base import PredictedScan, PredictionReader, Predictions
from gitseg_tf.errors import DataError
from gitseg_tf.labels import LabelSet

_TAGS = ["Modality", "StructureSetROISequence", "ReferencedFrameOfReferenceSequence"]


@dataclass(frozen=True)
class StructureSetScan(PredictedScan):
    """The ROIs of the structure sets of one scan; `Roi.label` is the ROI's name."""

    where: str
    rois: tuple[Roi, ...]

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of the ROIs."""
        return tuple(roi.name for roi in self.rois)

    def read(self, scan: Scan, name_of: Mapping[str, str]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        assert isinstance(scan.source, DicomSource)
        label_of = {name: label for label, name in name_of.items()}
        rois = tuple(replace(roi, label=label_of[roi.name]) for roi in self.rois if roi.name in label_of)
        structures = tuple(dict.fromkeys(roi.path for roi in rois))
        source = replace(scan.source, structures=structures, rois=rois)
        annotation = source.read_annotation(replace(scan, source=source))
        return {label: annotation.masks[scan.labels.index(label)] for label in name_of}, annotation.notes


def is_here(path: AnyPath) -> bool:
    """Check for a structure set at any depth."""
    return isinstance(path, Path) and next(_structure_sets(path), None) is not None


def read(path: Path, reference: Cohort, labels: LabelSet | None = None) -> Predictions:
    """Find the structure sets of the scans of a DICOM reference.

    A structure set belongs to the scan whose series or images it refers to, or, if it refers to none, to the only scan
    with its frame of reference.

    Raises:
        DataError: a reference that is not DICOM, or an ROI that two structure sets of a scan draw.
    """
    if reference.layout != "DICOM":
        raise DataError(
            f"{path}: contains structure sets, which need a DICOM reference, but {reference.root} is {reference.layout}"
        )
    rois: dict[str, dict[str, Roi]] = {}
    files: dict[str, list[str]] = {}
    for file, header in _structure_sets(path):
        for scan_id in _scans_of(header, reference) or [file.stem]:
            files.setdefault(scan_id, []).append(str(file))
            for number, name in roi_names(header):
                _add(rois.setdefault(scan_id, {}), Roi(name, file, number, name))
    scans = {
        scan_id: StructureSetScan(" and ".join(paths), tuple(rois.get(scan_id, {}).values()))
        for scan_id, paths in files.items()
    }
    return Predictions(path, scans)


def _add(rois: dict[str, Roi], roi: Roi) -> None:
    """Add an ROI; of two with the same name, the one with contours counts."""
    before = rois.setdefault(roi.name, roi)
    if before is roi or roi.number not in contoured_rois(roi.path):
        return
    if before.number in contoured_rois(before.path):
        where = f"{before.path} and {roi.path}" if before.path != roi.path else f"{roi.path}"
        raise DataError(f"{where}: ROI {roi.name!r} is drawn twice; remove one of them")
    rois[roi.name] = roi


def _structure_sets(path: Path):
    """Yield (path, header) of each structure set."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        if starts_like_dicom(file):
            header = read_dicom(file, stop_before_pixels=True, specific_tags=_TAGS)
            if text(header, "Modality") == "RTSTRUCT":
                yield file, header


def _scans_of(header: pydicom.Dataset, reference: Cohort) -> list[str]:
    frames = items(header, "ReferencedFrameOfReferenceSequence")
    series = [
        item
        for frame in frames
        for study in items(frame, "RTReferencedStudySequence")
        for item in items(study, "RTReferencedSeriesSequence")
    ]
    uids = {text(item, "SeriesInstanceUID") for item in series}
    uids |= {
        text(image, "ReferencedSOPInstanceUID") for item in series for image in items(item, "ContourImageSequence")
    }
    uids -= {""}
    sources = {scan.id: scan.source for scan in reference.scans if isinstance(scan.source, DicomSource)}
    if uids:
        return [name for name, source in sources.items() if uids & {source.series_uid, *source.sop_uids}]
    of_frame = {text(frame, "FrameOfReferenceUID") for frame in frames} - {""}
    found = [name for name, source in sources.items() if source.frame_uid in of_frame]
    return found if len(found) == 1 else []


READER = PredictionReader(is_here, read)
