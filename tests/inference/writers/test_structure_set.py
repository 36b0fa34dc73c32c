import cv2
import numpy as np
import pydicom
import pytest
from pydicom.uid import RTStructureSetStorage

from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.inference.prediction import Prediction
from gitseg_tf.inference.writers.registry import open_writer
from gitseg_tf.inference.writers.rtstruct import mask_to_polygons, structure_set
from gitseg_tf.labels import UWMGI, Code, Label, LabelSet

ROIS = ["Bowel_Large", "Bowel_Small", "Stomach"]


def write_rtstruct(out, scan, masks, labels=UWMGI):
    with open_writer("rtstruct", read_cohort(out), out, labels) as writer:
        writer.write(scan, None, Prediction(masks))


# Attributes of type 1 and 2 in the modules of PS3.3 A.19.3: Patient, General Study, RT Series, General Equipment,
# Structure Set, ROI Contour, RT ROI Observations, Approval, SOP Common.
FILLED = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "StructureSetLabel"]
FILLED += ["StructureSetROISequence", "ROIContourSequence", "RTROIObservationsSequence", "ApprovalStatus"]
PRESENT = ["PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"]
PRESENT += ["ReferringPhysicianName", "AccessionNumber", "OperatorsName", "SeriesNumber", "Manufacturer"]
PRESENT += ["StructureSetDate", "StructureSetTime"]


def crossings(polygon, shape):
    """How often a ray to the right from each pixel center crosses a polygon, downward and upward: int [2, H, W]."""
    rows, columns = np.indices(shape)
    count = np.zeros((2, *shape), int)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        if y0 != y1:
            spans = (rows >= min(y0, y1)) & (rows < max(y0, y1))
            count[int(y1 < y0)] += spans & (x0 + (rows - y0) / (y1 - y0) * (x1 - x0) > columns)
    return count


def fillings(polygons, shape):
    """All the ways in which software fills the contours of a slice: even-odd or nonzero winding rule, for each contour
    separately and merged, or for all together."""
    counts = np.array([crossings(polygon, shape) for polygon in polygons] or [np.zeros((2, *shape), int)])
    odd, wound = counts.sum(1) % 2, counts[:, 0] - counts[:, 1]
    return [odd.any(0), odd.sum(0) % 2 == 1, (wound != 0).any(0), wound.sum(0) != 0]


def rasterized(polygons, shape, times=1):
    """Rasterize with OpenCV on a grid finer by `times`, including outlines, and sample it at the voxel centers."""
    fine = np.zeros((shape[0] * times, shape[1] * times), np.uint8)
    for polygon in polygons:
        one = np.zeros_like(fine)
        cv2.fillPoly(one, [np.rint((polygon + 0.5) * times - 0.5).astype(np.int32)], 1)
        fine |= one
    return fine[times // 2 :: times, times // 2 :: times] > 0


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def rings():
    """A ring in a ring, two holes side by side, holes at the same height, and a voxel in a hole."""
    mask = np.zeros((60, 80), bool)
    mask[2:58, 3:77] = True
    mask[8:30, 8:40] = False
    mask[12:26, 14:34] = True
    mask[16:20, 18:28] = False
    mask[10:28, 50:60] = False
    mask[18, 55] = True
    mask[40:44, 10:70:4] = False
    return mask


def noise(seed, share):
    return np.random.default_rng(seed).random((24, 31)) < share


@pytest.mark.parametrize(
    "mask",
    [
        rings(),
        np.ones((5, 7), bool),
        np.eye(9, dtype=bool),
        ~np.eye(9, dtype=bool),
        np.arange(35).reshape(5, 7) == 17,
        np.zeros((4, 4), bool),
        *(noise(seed, share) for seed in range(3) for share in (0.3, 0.6, 0.9)),
    ],
    ids=["rings", "all", "diagonal", "two corners", "voxel", "none", *(f"noise{i}" for i in range(9))],
)
def test_polygons_contain_exactly_the_centers_of_the_mask_pixels(mask):
    assert all(np.array_equal(filling, mask) for filling in fillings(mask_to_polygons(mask), mask.shape))


def cross_each_other(polygon):
    """Whether two edges of a polygon intersect inside both."""
    start, end = polygon, np.roll(polygon, -1, 0)

    def sides(points):
        """The side of each edge on which each point lies: [points, edges]."""
        (dx, dy), (x, y) = (end - start).T, np.moveaxis(points[:, None] - start, -1, 0)
        return np.sign(np.round(dx * y - dy * x, 9))

    apart = sides(start) * sides(end) < 0
    return bool((apart & apart.T).any())


@pytest.mark.parametrize("mask", [rings(), ~np.eye(9, dtype=bool), noise(0, 0.6), noise(1, 0.9)])
def test_keyholes_cross_neither_outlines_nor_other_holes(mask):
    assert not any(map(cross_each_other, mask_to_polygons(mask)))


@pytest.mark.parametrize("times", [1, 8])
@pytest.mark.parametrize("mask", [rings(), np.eye(9, dtype=bool), ~np.eye(9, dtype=bool), noise(0, 0.6)])
def test_opencv_rasterizes_the_same_mask(mask, times):
    assert np.array_equal(rasterized(mask_to_polygons(mask), mask.shape, times), mask)


def test_straight_edges_need_only_their_end_points():
    mask = np.zeros((50, 50), bool)
    mask[5:45, 6:45] = True
    (polygon,) = mask_to_polygons(mask)
    assert len(polygon) == 8


@pytest.fixture
def strict():
    """Make pydicom reject values that violate the standard, in reading and writing."""
    before = pydicom.config.settings.reading_validation_mode, pydicom.config.settings.writing_validation_mode
    pydicom.config.settings.reading_validation_mode = pydicom.config.RAISE
    pydicom.config.settings.writing_validation_mode = pydicom.config.RAISE
    yield
    pydicom.config.settings.reading_validation_mode, pydicom.config.settings.writing_validation_mode = before


def masks_like(scan):
    """The masks of the scan, with a stomach of two pieces, one of them a ring."""
    masks = scan.masks.copy()
    masks[2, 4] = False
    masks[2, 4, 2:20, 4:24] = True
    masks[2, 4, 8:12, 9:14] = False
    masks[2, 4, 30:34, 40:50] = True
    return masks


@pytest.mark.parametrize("codes", ["LPI", "LPS", "LIP", "PIR"])
def test_contours_round_trip_to_the_same_masks(patients, write, clinic, codes):
    writer = write().write_series(codes)
    (scan,) = read_cohort(clinic).scans
    masks = masks_like(patients.scans[0])
    write_rtstruct(clinic, scan, masks)
    (read,) = read_cohort(clinic).scans
    assert read.labeled and np.array_equal(read.read_annotation().masks, masks)
    assert writer.series == read.source.series_uid


@pytest.mark.parametrize("index", [0, 1])
def test_contours_lie_in_the_plane_of_the_referenced_image(patients, write, clinic, strict, index):
    writer, truth = write(index).write_series(), patients.scans[index]
    (scan,) = read_cohort(clinic).scans
    masks = masks_like(truth)
    write_rtstruct(clinic, scan, masks)
    images = {}
    for path in (clinic / truth.id).iterdir():
        header = pydicom.dcmread(path, stop_before_pixels=True)
        images[header.SOPInstanceUID] = header
    dataset = pydicom.dcmread(clinic / f"{scan.id}.dcm")
    assert [roi.ROIName for roi in dataset.StructureSetROISequence] == ROIS
    names = {roi.ROINumber: k for k, roi in enumerate(dataset.StructureSetROISequence)}
    found = np.zeros_like(masks)
    for roi in dataset.ROIContourSequence:
        for contour in roi.ContourSequence:
            (reference,) = contour.ContourImageSequence
            image = images[reference.ReferencedSOPInstanceUID]
            assert reference.ReferencedSOPClassUID == image.SOPClassUID
            assert contour.ContourGeometricType == "CLOSED_PLANAR"
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            assert len(points) == contour.NumberOfContourPoints >= 3
            x, y, z = map(float, image.ImagePositionPatient)
            assert np.allclose(points[:, 2], z, atol=1e-3)
            row_mm, column_mm = map(float, image.PixelSpacing)
            polygon = np.column_stack([(points[:, 0] - x) / column_mm, (points[:, 1] - y) / row_mm])
            slice_index = truth.numbers.index(round((500 - z) / truth.spacing[0]) + 1)
            found[names[roi.ReferencedROINumber], slice_index] |= rasterized([polygon], masks.shape[2:])
    assert all(dice(a, b) >= 0.98 for a, b in zip(found, masks, strict=True))
    (frame,) = dataset.ReferencedFrameOfReferenceSequence
    (study,) = frame.RTReferencedStudySequence
    (series,) = study.RTReferencedSeriesSequence
    assert (frame.FrameOfReferenceUID, study.ReferencedSOPInstanceUID) == (writer.frame, writer.study)
    assert series.SeriesInstanceUID == writer.series
    assert {item.ReferencedSOPInstanceUID for item in series.ContourImageSequence} == set(images)


def test_the_file_has_the_attributes_required_by_the_standard(patients, write, clinic, strict):
    def patient(dataset, _):
        dataset.SpecificCharacterSet, dataset.PatientName, dataset.PatientSex = "ISO_IR 192", "Müller^Änne", "F"

    writer = write().write_series(change=patient)
    (scan,) = read_cohort(clinic).scans
    write_rtstruct(clinic, scan, patients.scans[0].masks)
    dataset = pydicom.dcmread(clinic / f"{scan.id}.dcm")
    assert [name for name in FILLED if not dataset.get(name)] == []
    assert [name for name in PRESENT if name not in dataset] == []
    assert dataset.SOPClassUID == dataset.file_meta.MediaStorageSOPClassUID == RTStructureSetStorage
    assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID
    assert dataset.Modality == "RTSTRUCT" and dataset.StudyInstanceUID == writer.study
    assert dataset.SeriesInstanceUID != writer.series
    assert (dataset.PatientName, dataset.PatientID, dataset.PatientSex) == ("Müller^Änne", "case1", "F")
    numbers = [roi.ROINumber for roi in dataset.StructureSetROISequence]
    assert numbers == [1, 2, 3]
    assert {roi.ReferencedFrameOfReferenceUID for roi in dataset.StructureSetROISequence} == {writer.frame}
    assert [roi.ReferencedROINumber for roi in dataset.ROIContourSequence] == numbers
    assert [item.ReferencedROINumber for item in dataset.RTROIObservationsSequence] == numbers


def test_an_absent_label_is_an_roi_without_contours(patients, write, clinic):
    write().write_series()
    (scan,) = read_cohort(clinic).scans
    masks = patients.scans[0].masks.copy()
    masks[1] = False
    dataset = structure_set(scan, masks, UWMGI)
    assert ["ContourSequence" in item for item in dataset.ROIContourSequence] == [True, False, True]
    write_rtstruct(clinic, scan, masks)
    assert np.array_equal(read_cohort(clinic).scans[0].read_annotation().masks, masks)


def test_a_contour_larger_than_64_kib_round_trips(patients, write, clinic):
    write().write_series()
    (scan,) = read_cohort(clinic).scans
    masks = np.zeros((3, *scan.shape), bool)
    masks[2, 3, 1:-1, 1:-1] = True
    masks[2, 3, 2:-2:2, 2:-2:2] = False
    write_rtstruct(clinic, scan, masks)
    data = pydicom.dcmread(clinic / f"{scan.id}.dcm").ROIContourSequence[2].ContourSequence[0]
    assert sum(len(value.original_string) + 1 for value in data.ContourData) > 2**16
    assert np.array_equal(read_cohort(clinic).scans[0].read_annotation().masks, masks)


def test_a_series_without_a_frame_of_reference_is_refused(patients, write, clinic, refusal):
    write().write_series(change=lambda dataset, _: delattr(dataset, "FrameOfReferenceUID"))
    (scan,) = read_cohort(clinic).scans
    line = refusal(write_rtstruct, clinic, scan, patients.scans[0].masks)
    assert "has no FrameOfReferenceUID" in line and str(clinic) in line
    assert not (clinic / f"{scan.id}.dcm").exists()


def test_twelve_labels_become_rois_with_names_colors_and_codes(patients, write, clinic, strict):
    write().write_series()
    (scan,) = read_cohort(clinic).scans
    names = LabelSet.of(*(f"structure {k}" for k in range(11)))
    code = Code("78961009", "SCT", "Spleen")
    labels = LabelSet((*names, Label("spleen", (1, 2, 3), roi_name="Spleen", code=code)))
    masks = np.zeros((12, *scan.shape), bool)
    for k in range(12):
        masks[k, k % 8, 2 * k : 2 * k + 6, 5:20] = True
    write_rtstruct(clinic, scan, masks, labels)
    dataset = pydicom.dcmread(clinic / f"{scan.id}.dcm")
    assert [roi.ROIName for roi in dataset.StructureSetROISequence] == [*names.names, "Spleen"]
    assert [tuple(item.ROIDisplayColor) for item in dataset.ROIContourSequence] == list(labels.colors)
    assert [len(item.ContourSequence) for item in dataset.ROIContourSequence] == [1] * 12
    *others, last = dataset.RTROIObservationsSequence
    assert not any("RTROIIdentificationCodeSequence" in item for item in others)
    (coded,) = last.RTROIIdentificationCodeSequence
    assert (coded.CodeValue, coded.CodingSchemeDesignator, coded.CodeMeaning) == ("78961009", "SCT", "Spleen")
