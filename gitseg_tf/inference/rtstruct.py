"""Masks as the contours of a DICOM RT structure set."""

import io
from datetime import datetime
from itertools import pairwise

import contourpy
import numpy as np
from pydicom import Dataset, FileDataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from gitseg_tf import __version__
from gitseg_tf.data.dicom_source import DicomSource, read_dicom
from gitseg_tf.data.scans import ORGAN_COLORS, ORGANS, Cohort, Scan
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, write_atomically

# AAPM TG-263, which planning systems and `data.scans.organ_named` know.
ROI_NAMES = {"large_bowel": "Bowel_Large", "small_bowel": "Bowel_Small", "stomach": "Stomach"}
_REACH = 0.49  # of a pixel, from the centres inside
_STRAIGHT = 1e-6
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, retired; what referenced studies are given as
# Of the patient and study modules, type 2: there, but maybe empty.
_OF_PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
_OF_STUDY = ("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber")


def check_is_dicom(cohort: Cohort) -> None:
    """Refuse scans that have no series to refer to."""
    if cohort.layout != "DICOM":
        raise InputError(
            f"{cohort.root}: is {cohort.layout}; a structure set refers to a DICOM series: give that, or --format nifti"
        )


def write_rtstruct(out: AnyPath, scan: Scan, image: np.ndarray, masks: np.ndarray) -> None:
    """Write OUT/SCAN.dcm, an RT structure set of the three organs that refers to the scan's series.

    Args:
        out: the folder.
        scan: from DICOM.
        image: not used.
        masks: bool [3, D, H, W].

    Raises:
        InputError: the series has no FrameOfReferenceUID, or its first file cannot be read.
    """
    file = io.BytesIO()
    structure_set(scan, masks).save_as(file, enforce_file_format=True)
    write_atomically(out / f"{scan.id}.dcm", file.getvalue())


def structure_set(scan: Scan, masks: np.ndarray) -> FileDataset:
    """Build the RT Structure Set (DICOM PS3.3 A.19.3).

    Contours go between the centres of voxels inside and outside, see `mask_to_polygons`. A hole is joined to the
    outline around it by a keyhole, as PS3.3 C.8.8.6.3 has it: software that joins the contours of a slice and software
    that takes an odd number of them for inside read the same mask.

    Args:
        scan: from DICOM.
        masks: bool [3, D, H, W].

    Returns:
        A new instance in a new series of the scan's study. An organ that is absent is a ROI without contours.

    Raises:
        InputError: as `write_rtstruct`.
    """
    source: DicomSource = scan.source
    header = read_dicom(source.paths[0], stop_before_pixels=True)
    if not source.frame_uid:
        raise InputError(
            f"{source.paths[0]}: has no FrameOfReferenceUID, without which contours have no place; use --format nifti"
        )
    dataset = _new_instance(header)
    dataset.ReferencedFrameOfReferenceSequence = [_frame_reference(source, header.SOPClassUID)]
    dataset.StructureSetROISequence, dataset.ROIContourSequence, dataset.RTROIObservationsSequence = [], [], []
    for number, (organ, mask) in enumerate(zip(ORGANS, masks, strict=True), 1):
        roi, observation = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, ROI_NAMES[organ], source.frame_uid
        roi.ROIGenerationAlgorithm = "AUTOMATIC"
        observation.ObservationNumber, observation.ReferencedROINumber = number, number
        observation.RTROIInterpretedType, observation.ROIInterpreter = "ORGAN", ""
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(_roi_contour(number, organ, mask, source, header.SOPClassUID))
        dataset.RTROIObservationsSequence.append(observation)
    return dataset


def mask_to_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Closed polygons around the pixels of a mask, nearly half-way to their neighbours outside.

    Exactly the centres of the mask's pixels are inside. Points that are rounded to whole pixels are pixels of the mask,
    so that software that fills so, outline included, as OpenCV's fillPoly does, gets the mask back too.

    Args:
        mask: bool [H, W].

    Returns:
        float [N, 2] (column, row) in pixels from the centre of the first pixel, a polygon an outline; the last point
        is not the first one again. Holes are joined to the outline around them by keyholes.
    """
    padded = np.pad(mask.astype(np.float64), 1)
    filled = contourpy.contour_generator(z=padded, fill_type="OuterOffset").filled(1 - _REACH, 2)
    polygons = []
    for points, offsets in zip(*filled, strict=True):
        outer, *holes = (_without_straight_points(points[a:b] - 1) for a, b in pairwise(offsets.tolist()))
        # From right to left, so that what lies to the right of a hole is part of the outline already.
        for hole in sorted(holes, key=lambda hole: -hole[:, 0].max()):
            outer = _with_keyhole(outer, hole)
        polygons.append(outer)
    return polygons


def _without_straight_points(closed: np.ndarray) -> np.ndarray:
    """The corners of a polygon whose last point is its first one."""
    points = closed[:-1]
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    return points[np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > _STRAIGHT]


def _with_keyhole(outer: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """One polygon of an outline and a hole in it: from the outline straight to the hole's rightmost point, around, and
    back the same way."""
    start = int(np.argmax(hole[:, 0]))
    x, y = hole[start]
    (x0, y0), (x1, y1) = outer.T, np.roll(outer, -1, 0).T
    crosses = (y0 <= y) != (y1 <= y)
    at = np.full(len(outer), np.inf)
    at[crosses] = x0[crosses] + (y - y0[crosses]) / (y1 - y0)[crosses] * (x1 - x0)[crosses]
    at[at < x] = np.inf
    edge = int(np.argmin(at))
    gate = np.array([[at[edge], y]])
    around = np.roll(hole, -start, 0)
    return np.concatenate([outer[: edge + 1], gate, around, around[:1], gate, outer[edge + 1 :]])


def _roi_contour(number: int, organ: str, mask: np.ndarray, source: DicomSource, image_class: str) -> Dataset:
    item = Dataset()
    item.ReferencedROINumber, item.ROIDisplayColor = number, list(ORGAN_COLORS[organ])
    stored = source.grid.from_records(mask)
    contours = []
    for k in np.flatnonzero(stored.any((0, 1))):
        for polygon in mask_to_polygons(stored[:, :, k].T):
            voxels = np.column_stack([polygon, np.full(len(polygon), source.grid.steps[k])])
            contour = Dataset()
            contour.ContourImageSequence = [_reference(image_class, source.sop_uids[k])]
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(polygon)
            contour.ContourData = [f"{mm:.4f}" for mm in source.grid.points_at(voxels).ravel()]
            contours.append(contour)
    if contours:
        item.ContourSequence = contours
    return item


def _new_instance(header: Dataset) -> FileDataset:
    meta = FileMetaDataset()
    # An explicit VR has 16 bits for the length of ContourData, which large contours outgrow.
    meta.TransferSyntaxUID = ImplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, generate_uid()
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    now = datetime.now()
    if "SpecificCharacterSet" in header:
        dataset.SpecificCharacterSet = header.SpecificCharacterSet
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, meta.MediaStorageSOPInstanceUID
    for name in (*_OF_PATIENT, *_OF_STUDY):
        setattr(dataset, name, header.get(name, ""))
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = header.StudyInstanceUID, generate_uid()
    dataset.Modality, dataset.SeriesNumber, dataset.OperatorsName = "RTSTRUCT", None, ""
    dataset.SeriesDescription = "gitseg"
    dataset.Manufacturer, dataset.ManufacturerModelName, dataset.SoftwareVersions = "", "gitseg", __version__
    dataset.StructureSetLabel = "gitseg"
    dataset.StructureSetDate, dataset.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    dataset.ApprovalStatus = "UNAPPROVED"
    return dataset


def _frame_reference(source: DicomSource, image_class: str) -> Dataset:
    frame, study, series = Dataset(), _reference(_STUDY_CLASS, source.study_uid), Dataset()
    series.SeriesInstanceUID = source.series_uid
    series.ContourImageSequence = [_reference(image_class, uid) for uid in source.sop_uids]
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = source.frame_uid, [study]
    return frame


def _reference(sop_class: str, sop_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_uid
    return item
