"""Fixtures that write synthetic scans as NIfTI and as DICOM; tests/conftest.py imports them."""

from pathlib import Path

import contourpy
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, RTStructureSetStorage

from gitseg_tf.labels import UWMGI

RAS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
# The axes of a synthetic volume [D, H, W] point to inferior, posterior and the patient's left.
AXIS_OF = {"I": 0, "S": 0, "P": 1, "A": 1, "L": 2, "R": 2}
FIRST_SLICE_MM = 500.0
CLINIC_SCANS = (
    ("case1_20260102", (40, 64), range(1, 9)),
    ("case1_20260203", (40, 64), (1, 2, 3, 6, 7, 8, 9)),
    ("case2_20260102", (48, 40), range(1, 7)),
)


def stored_as(volume, codes):
    """A synthetic volume with its axes pointing in the directions of the three letters."""
    volume = volume.transpose([AXIS_OF[code] for code in codes])
    return np.flip(volume, [axis for axis, code in enumerate(codes) if code in "SAR"])


def affine_of(scan, codes):
    """The affine of `stored_as`; the first voxel of the synthetic volume is at (50, 40, FIRST_SLICE_MM)."""
    affine = np.eye(4)
    affine[:3, 3] = 50, 40, FIRST_SLICE_MM
    for axis, code in enumerate(codes):
        column = np.array(RAS[code]) * scan.spacing[AXIS_OF[code]]
        affine[:3, axis] = column
        if code in "SAR":
            affine[:3, 3] -= column * (scan.image.shape[AXIS_OF[code]] - 1)
    return affine


def save_nifti(path, volume, affine, dtype=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(np.ascontiguousarray(volume, dtype), affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def label_map(masks, numbers=(1, 2, 3)):
    """One label image of masks that do not overlap."""
    return sum(mask.astype(np.uint8) * number for mask, number in zip(masks, numbers, strict=True))


def without_overlaps(masks):
    """Masks without overlaps: the first label keeps a voxel."""
    taken = np.zeros(masks.shape[1:], bool)
    out = []
    for mask in masks:
        out.append(mask & ~taken)
        taken = taken | mask
    return np.array(out)


class DicomWriter:
    """Writes a study with one series and, on request, a structure set."""

    def __init__(self, root, scan, patient=None, date="20260102"):
        self.root, self.scan, self.patient, self.date = Path(root), scan, patient or scan.case, date
        self.root.mkdir(parents=True, exist_ok=True)
        self.study, self.series, self.frame = (self.uid(name) for name in ("study", "series", "frame"))

    def uid(self, *names):
        return pydicom.uid.generate_uid(entropy_srcs=[self.scan.id, *map(str, names)])

    def _dataset(self, path, sop_class, sop_uid, modality, series):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, sop_uid
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = sop_class, sop_uid, modality
        dataset.PatientID, dataset.StudyDate, dataset.StudyTime = self.patient, self.date, "120000"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = self.study, series
        return dataset

    def write_series(self, codes="LPI", change=lambda dataset, number: None):
        """Write one file per slice, numbered against the spatial order; `codes` are the directions of the axes."""
        volume = stored_as(self.scan.image, codes)
        numbers = self.scan.numbers if codes[2] in "IS" else range(1, volume.shape[2] + 1)
        affine = affine_of(self.scan, codes)
        if codes[2] == "S":
            numbers = [numbers[-1] - n for n in reversed(numbers)]
            affine[2, 3] = FIRST_SLICE_MM - self.scan.spacing[0] * (self.scan.numbers[-1] - 1)
        else:
            numbers = [n - 1 for n in numbers]
        lps = np.diag([-1.0, -1, 1, 1]) @ affine
        spacing = [self.scan.spacing[AXIS_OF[code]] for code in codes]
        for i, number in enumerate(numbers):
            path = self.root / f"IM{len(numbers) - i:04d}"
            dataset = self._dataset(path, MRImageStorage, self.uid("slice", i), "MR", self.series)
            dataset.FrameOfReferenceUID, dataset.ImageType = self.frame, ["ORIGINAL", "PRIMARY"]
            dataset.ImageOrientationPatient = [*(lps[:3, 0] / spacing[0]), *(lps[:3, 1] / spacing[1])]
            dataset.ImagePositionPatient = list(np.round(lps[:3, 3] + number * lps[:3, 2], 6))
            dataset.PixelSpacing, dataset.SliceThickness = [spacing[1], spacing[0]], 99
            plane = np.ascontiguousarray(volume[:, :, i].T)
            dataset.Rows, dataset.Columns = plane.shape
            dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
            dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
            dataset.PixelData = plane.astype("<u2").tobytes()
            change(dataset, i)
            dataset.save_as(path)
        return self

    def outline(self, mask, z):
        """Closed polygons in patient mm around a mask [H, W] of the slice, between the voxel centers."""
        padded = np.pad(mask.astype(float), 1)
        return [self.to_patient(line - 1, z) for line in contourpy.contour_generator(z=padded).lines(0.5)]

    def to_patient(self, points, z):
        """Convert (column, row) of the slice or slices z to the axes of DICOM: left, posterior, superior."""
        slice_mm, row_mm, column_mm = self.scan.spacing
        numbers = np.interp(np.full(len(points), z), range(len(self.scan.numbers)), self.scan.numbers)
        x, y = -50 + points[:, 0] * column_mm, -40 + points[:, 1] * row_mm
        return np.column_stack([x, y, FIRST_SLICE_MM - (numbers - 1) * slice_mm])

    def polygons(self, codes="LPI"):
        """Map each label to its outlines in the planes of a series acquired with these axes."""
        return {
            label: [line for k in range(volume.shape[2]) for line in self._acquired(volume, k, codes)]
            for label, mask in zip(UWMGI.names, self.scan.masks, strict=True)
            for volume in [stored_as(mask, codes)]
        }

    def _acquired(self, volume, k, codes):
        for line in contourpy.contour_generator(z=np.pad(volume[:, :, k].T.astype(float), 1)).lines(0.5):
            stored = np.column_stack([line - 1, np.full(len(line), k)])
            points = np.empty_like(stored)
            for axis, code in enumerate(codes):
                last = volume.shape[axis] - 1
                points[:, AXIS_OF[code]] = last - stored[:, axis] if code in "SAR" else stored[:, axis]
            yield self.to_patient(points[:, [2, 1]], points[:, 0])

    def write_structures(self, polygons=None, name="RS.dcm", by_frame=False, kind="CLOSED_PLANAR", series=None):
        """Write a structure set; polygons: ROI name to closed polygons in patient mm, by default those of the masks."""
        path = self.root / name
        dataset = self._dataset(path, RTStructureSetStorage, self.uid(name), "RTSTRUCT", self.uid("structures", name))
        frame = pydicom.Dataset()
        frame.FrameOfReferenceUID = self.frame
        if not by_frame:
            study, item = pydicom.Dataset(), pydicom.Dataset()
            item.SeriesInstanceUID, item.ContourImageSequence = series or self.series, []
            study.ReferencedSOPInstanceUID, study.RTReferencedSeriesSequence = self.study, [item]
            frame.RTReferencedStudySequence = [study]
        dataset.ReferencedFrameOfReferenceSequence = [frame]
        dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
        for number, (roi_name, lines) in enumerate((polygons or self.polygons()).items(), 5):
            roi, contours = pydicom.Dataset(), pydicom.Dataset()
            roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, roi_name, self.frame
            contours.ReferencedROINumber, contours.ContourSequence = number, []
            for line in lines:
                item = pydicom.Dataset()
                item.ContourGeometricType, item.NumberOfContourPoints = kind, len(line)
                item.ContourData = [f"{mm:.6f}".rstrip("0").rstrip(".") for mm in np.ravel(line)]
                contours.ContourSequence.append(item)
            dataset.StructureSetROISequence.append(roi)
            dataset.ROIContourSequence.append(contours)
        dataset.save_as(path)
        return self


@pytest.fixture(scope="session")
def dicom_writer():
    return DicomWriter


@pytest.fixture(scope="session")
def nifti():
    """The helpers that write synthetic scans as NIfTI."""

    class Nifti:
        stored_as, affine_of, save = map(staticmethod, (stored_as, affine_of, save_nifti))
        label_map, without_overlaps = map(staticmethod, (label_map, without_overlaps))

    return Nifti


@pytest.fixture(scope="session")
def patients(make_cohort, tmp_path_factory):
    """Synthetic scans with ids as read from DICOM; the second one has a gap."""
    return make_cohort(tmp_path_factory.mktemp("patients") / "cohort", CLINIC_SCANS)


@pytest.fixture
def clinic(tmp_path):
    return tmp_path / "clinic"


@pytest.fixture
def write(patients, clinic):
    """write(index) is a DicomWriter of a scan of `patients` to a folder in `clinic`."""

    def make(index=0):
        scan = patients.scans[index]
        return DicomWriter(clinic / scan.id, scan, scan.case, scan.id.split("_")[1])

    return make
