"""Write masks as the contours of a DICOM RT structure set."""

from datetime import datetime
from itertools import pairwise
from typing import cast

import contourpy
import numpy as np
from pydicom import Dataset, FileDataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from gitseg_tf.core.paths import write_atomically
from gitseg_tf.data.readers.base import Scan
from gitseg_tf.data.readers.dicom.geometry import SeriesGrid
from gitseg_tf.data.readers.dicom.source import DicomSource
from gitseg_tf.data.volume import Volume
from gitseg_tf.inference.identity import ModelIdentity
from gitseg_tf.inference.prediction import Prediction
from gitseg_tf.inference.writers.dicom import (
    LONG,
    OF_PATIENT,
    OF_STUDY,
    SHORT,
    Origin,
    by_series,
    character_set,
    check_layout,
    encoded,
    image_headers,
    label_texts,
    reference,
    roi_name,
)
from gitseg_tf.inference.writers.registry import Writer
from gitseg_tf.labels import Code, Label, LabelSet

_REACH = 0.49  # distance of the outline from the centers of the pixels inside, in pixels
_STRAIGHT = 1e-6
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, retired; the class of referenced studies


class StructureSets(Writer):
    """Writes OUT/SCAN.dcm, an RT structure set that refers to the scan's series, with one ROI per label."""

    def check(self) -> None:
        check_layout(self.cohort, "a structure set")

    def write(self, scan: Scan, volume: Volume, prediction: Prediction) -> None:
        content = encoded(structure_set(scan, prediction.masks, self.labels, self.model))
        self.out.mkdir(parents=True, exist_ok=True)
        write_atomically(self.out / f"{scan.id}.dcm", content)


def structure_set(scan: Scan, masks: np.ndarray, labels: LabelSet, model: ModelIdentity | None = None) -> FileDataset:
    """Build the RT Structure Set (DICOM PS3.3 A.19.3).

    Contours run between the centers of voxels inside and outside, see `mask_to_polygons`. A hole is connected to the
    outline around it by a keyhole, as in PS3.3 C.8.8.6.3, so that software that takes the union of the contours of a
    slice and software with the even-odd rule read the same mask.

    Args:
        scan: a scan read from DICOM.
        masks: bool [L, D, H, W].
        labels: names, colors and codes of the ROIs.
        model: the model that made the masks, which the structure set names; None says that it was made from masks.

    Returns:
        A new instance in a new series of the scan's study. An absent label becomes an ROI without contours.

    Raises:
        DataError: an image cannot be read, or has no FrameOfReferenceUID or another identifier to refer to.
    """
    source, headers, origin = cast(DicomSource, scan.source), image_headers(scan, "the contours"), Origin.of(model)
    references = [reference(header, frame) for header, frame in zip(headers, source.frames, strict=True)]
    dataset = _new_instance(headers[0], origin, labels)
    dataset.ReferencedFrameOfReferenceSequence = [_frame_reference(headers)]
    dataset.StructureSetROISequence, dataset.ROIContourSequence, dataset.RTROIObservationsSequence = [], [], []
    for number, (label, mask) in enumerate(zip(labels, masks, strict=True), 1):
        roi, observation = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, roi_name(label), source.frame_uid
        roi.ROIGenerationAlgorithm, roi.ROIGenerationDescription = origin.algorithm, origin.line
        observation.ObservationNumber, observation.ReferencedROINumber = number, number
        observation.RTROIInterpretedType, observation.ROIInterpreter = "ORGAN", ""
        if label.code:
            observation.RTROIIdentificationCodeSequence = [_code(label.code)]
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(_roi_contour(number, label, mask, source.grid, references))
        dataset.RTROIObservationsSequence.append(observation)
    return dataset


def _code(code: Code) -> Dataset:
    item = Dataset()
    # SH is limited to 16 characters; longer codes have a separate attribute (PS3.3 8.1).
    setattr(item, "CodeValue" if len(code.value) <= SHORT else "LongCodeValue", code.value)
    item.CodingSchemeDesignator, item.CodeMeaning = code.scheme, code.meaning[:LONG]
    return item


def mask_to_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Trace closed polygons around the pixels of a mask, nearly halfway to their neighbors outside.

    The centers of the mask's pixels, and no others, are inside. Points rounded to whole pixels are pixels of the mask,
    so that software that fills polygons including their outline, like OpenCV's fillPoly, gets the same mask.

    Args:
        mask: bool [H, W].

    Returns:
        float [N, 2] (column, row) in pixels from the center of the first pixel, one polygon per outline, without
        repeating the first point. Holes are connected to the outline around them by keyholes.
    """
    padded = np.pad(mask.astype(np.float64), 1)
    filled = contourpy.contour_generator(z=padded, fill_type="OuterOffset").filled(1 - _REACH, 2)
    polygons = []
    for points, offsets in zip(*filled, strict=True):
        outer, *holes = (_without_straight_points(points[a:b] - 1) for a, b in pairwise(offsets.tolist()))
        # Process holes from right to left, so that holes further to the right are already part of the outline.
        for hole in sorted(holes, key=lambda hole: -hole[:, 0].max()):
            outer = _with_keyhole(outer, hole)
        polygons.append(outer)
    return polygons


def _without_straight_points(closed: np.ndarray) -> np.ndarray:
    """Remove collinear points from a polygon whose last point repeats the first one."""
    points = closed[:-1]
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    return points[np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > _STRAIGHT]


def _with_keyhole(outer: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Join an outline and a hole into one polygon by a horizontal cut from the hole's rightmost point."""
    start = int(np.argmax(hole[:, 0]))
    x, y = hole[start]
    (x0, y0), (x1, y1) = outer.T, np.roll(outer, -1, 0).T
    crosses = (y0 <= y) != (y1 <= y)
    crossing = np.full(len(outer), np.inf)
    crossing[crosses] = x0[crosses] + (y - y0[crosses]) / (y1 - y0)[crosses] * (x1 - x0)[crosses]
    crossing[crossing < x] = np.inf
    edge = int(np.argmin(crossing))
    gate = np.array([[crossing[edge], y]])
    around = np.roll(hole, -start, 0)
    return np.concatenate([outer[: edge + 1], gate, around, around[:1], gate, outer[edge + 1 :]])


def _roi_contour(number: int, label: Label, mask: np.ndarray, grid: SeriesGrid, references: list[Dataset]) -> Dataset:
    item = Dataset()
    item.ReferencedROINumber, item.ROIDisplayColor = number, list(label.color)
    stored = grid.from_records(mask)
    contours = []
    for k in np.flatnonzero(stored.any((0, 1))):
        for polygon in mask_to_polygons(stored[:, :, k].T):
            voxels = np.column_stack([polygon, np.full(len(polygon), grid.steps[k])])
            contour = Dataset()
            contour.ContourImageSequence = [references[k]]
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(polygon)
            contour.ContourData = [f"{mm:.4f}" for mm in grid.points_at(voxels).ravel()]
            contours.append(contour)
    if contours:
        item.ContourSequence = contours
    return item


def _new_instance(header: Dataset, origin: Origin, labels: LabelSet) -> FileDataset:
    meta = FileMetaDataset()
    # Explicit VR stores the length of ContourData in 16 bits, which is too small for large contours.
    meta.TransferSyntaxUID = ImplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, generate_uid()
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)  # type: ignore[arg-type]
    now = datetime.now()
    if characters := character_set(header, *label_texts(labels), origin.text):
        dataset.SpecificCharacterSet = characters
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, meta.MediaStorageSOPInstanceUID
    for name in (*OF_PATIENT, *OF_STUDY):
        setattr(dataset, name, header.get(name, ""))
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = header.StudyInstanceUID, generate_uid()
    dataset.Modality, dataset.SeriesNumber, dataset.OperatorsName = "RTSTRUCT", None, ""
    dataset.SeriesDescription = origin.line
    dataset.Manufacturer, dataset.ManufacturerModelName = "", "gitseg"
    dataset.SoftwareVersions = list(origin.software)
    dataset.FrameOfReferenceUID = header.FrameOfReferenceUID
    dataset.PositionReferenceIndicator = header.get("PositionReferenceIndicator", "")
    dataset.StructureSetLabel, dataset.StructureSetName = origin.label, origin.line
    dataset.StructureSetDescription = origin.text
    dataset.StructureSetDate, dataset.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    dataset.ApprovalStatus = "UNAPPROVED"
    return dataset


def _frame_reference(headers: list[Dataset]) -> Dataset:
    frame, study = Dataset(), Dataset()
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY_CLASS, headers[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = []
    for uid, images in by_series(headers):
        series = Dataset()
        series.SeriesInstanceUID, series.ContourImageSequence = uid, images
        study.RTReferencedSeriesSequence.append(series)
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = headers[0].FrameOfReferenceUID, [study]
    return frame
