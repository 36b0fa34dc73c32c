"""DICOM Segmentations, read back with pydicom alone."""

import builtins

import numpy as np
import pydicom
import pytest
from helpers.referees import write_ct
from pydicom.uid import EnhancedMRImageStorage, SegmentationStorage

from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.inference.identity import ModelIdentity
from gitseg_tf.inference.prediction import Prediction
from gitseg_tf.inference.writers.registry import open_writer, predicted_scans
from gitseg_tf.labels import UWMGI, Code, Label, LabelSet

MODEL = ModelIdentity("abdomen unet", "0.1.0", "3f5a9c0d" + 56 * "0")


def write_seg(root, out, masks, labels=UWMGI, index=0):
    cohort = read_cohort(root)
    with open_writer("seg", cohort, out, labels, MODEL) as writer:
        writer.write(cohort.scans[index], None, Prediction(masks))
    return pydicom.dcmread(out / cohort.scans[index].id / "segmentation.dcm")


def voxels_in_space(dataset, segment):
    """The centers of the voxels of a segment in patient mm, rounded to 0.01, from each frame's own geometry."""
    (shared,) = dataset.SharedFunctionalGroupsSequence
    row_mm, column_mm = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    directions = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    frames = np.atleast_3d(dataset.pixel_array).reshape(-1, dataset.Rows, dataset.Columns)
    found = []
    for frame, groups in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        if groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber == segment:
            rows, columns = np.nonzero(frame)
            steps = np.column_stack([columns * column_mm, rows * row_mm]) @ directions
            found += (np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float) + steps).tolist()
    return sorted(map(tuple, np.round(found, 2).tolist()))


def expected_in_space(scan, mask):
    """The same from the synthetic scan: its first voxel is at (-50, -40, 500) mm in patient coordinates."""
    z, y, x = np.nonzero(mask)
    slice_mm, row_mm, column_mm = scan.spacing
    numbers = np.array(scan.numbers)[z]
    points = np.column_stack([-50 + x * column_mm, -40 + y * row_mm, 500 - (numbers - 1) * slice_mm])
    return sorted(map(tuple, np.round(points, 2).tolist()))


@pytest.mark.parametrize("codes", ["LPI", "LPS", "LIP", "PIR"])
@pytest.mark.parametrize("index", [0, 1], ids=["whole", "with a gap"])
def test_a_segmentation_reads_back_to_the_voxel(patients, write, clinic, tmp_path, codes, index):
    if index and codes[2] not in "IS":
        pytest.skip("a series with a gap must be axial")
    truth = patients.scans[index]
    write(index).write_series(codes)
    masks = np.random.default_rng(0).random((3, *truth.image.shape)) < 0.3
    masks[1, 2:4] = masks[2, 2:4] = True
    masks[0, :3] = False
    dataset = write_seg(clinic, tmp_path / "out", masks)
    assert dataset.SOPClassUID == SegmentationStorage and dataset.SegmentationType == "BINARY"
    assert dataset.SegmentsOverlap == "YES"
    for k, mask in enumerate(masks):
        assert voxels_in_space(dataset, k + 1) == expected_in_space(truth, mask)


def test_each_frame_refers_to_its_image(patients, write, clinic, tmp_path):
    writer = write(0).write_series()
    dataset = write_seg(clinic, tmp_path / "out", patients.scans[0].masks)
    images = {h.SOPInstanceUID: h for h in (pydicom.dcmread(path) for path in writer.root.iterdir())}
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        image = images[source.ReferencedSOPInstanceUID]
        assert np.allclose(groups.PlanePositionSequence[0].ImagePositionPatient, image.ImagePositionPatient, atol=1e-4)
    (series,) = dataset.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == writer.series and len(series.ReferencedInstanceSequence) == len(images)
    assert dataset.FrameOfReferenceUID == writer.frame and dataset.StudyInstanceUID == writer.study
    assert dataset.PatientID == "case1" and dataset.StudyDate == "20260102"


def test_segments_have_names_colors_codes_and_the_model(patients, write, clinic, tmp_path):
    write().write_series()
    scan = patients.scans[0]
    tumor = Label("tumor", (255, 255, 255), code=Code("108369006", "SCT", "Neoplasm"))
    labels = LabelSet((UWMGI[0], tumor, Label("left_thing", (0, 0, 255), roi_name="Thing_L")))
    dataset = write_seg(clinic, tmp_path / "out", scan.masks, labels)
    segments = dataset.SegmentSequence
    assert [segment.SegmentLabel for segment in segments] == ["Bowel_Large", "tumor", "Thing_L"]
    kinds = [segment.SegmentedPropertyTypeCodeSequence[0] for segment in segments]
    assert [(k.CodeValue, k.CodingSchemeDesignator) for k in kinds] == [
        ("14742008", "SCT"), ("108369006", "SCT"), ("Thing_L", "99GITSEG")
    ]  # fmt: skip
    categories = [segment.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning for segment in segments]
    assert categories == ["Anatomical Structure", "Morphologically Abnormal Structure", "Tissue"]
    # PS3.3 C.10.7.1.1: L* from 0 to 100 and a*, b* from -128 to 127, in 16 bits. Blue is (32.30, 79.20, -107.86).
    white, blue = (segment.RecommendedDisplayCIELabValue for segment in segments[1:])
    assert np.allclose(np.array(white) / 65535 * (100, 255, 255) - (0, 128, 128), (100, 0, 0), atol=0.1)
    assert np.allclose(np.array(blue) / 65535 * (100, 255, 255) - (0, 128, 128), (32.30, 79.20, -107.86), atol=0.2)
    for segment in segments:
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert segment.SegmentAlgorithmType == "AUTOMATIC" and MODEL.weights in algorithm.AlgorithmParameters
        assert "abdomen unet" in segment.SegmentAlgorithmName and "3f5a9c0d" in segment.SegmentAlgorithmName
    assert (dataset.ContentLabel, dataset.DeviceSerialNumber) == ("ABDOMEN 3F5A9C0D", MODEL.weights)


@pytest.mark.parametrize("label", [0, None], ids=["one", "all"])
def test_absent_labels_keep_their_segment(patients, write, clinic, tmp_path, label):
    write().write_series()
    scan = patients.scans[0]
    masks = scan.masks.copy()
    masks[label if label is not None else slice(None)] = False
    dataset = write_seg(clinic, tmp_path / "out", masks)
    assert len(dataset.SegmentSequence) == 3
    for k, mask in enumerate(masks):
        assert voxels_in_space(dataset, k + 1) == expected_in_space(scan, mask)


def test_segments_of_an_enhanced_image_refer_to_its_frames(patients, write, clinic, tmp_path):
    """The frames are stored against the order of the slices."""
    truth, writer = patients.scans[0], write().write_series()
    image = as_enhanced(writer.root)
    masks = np.random.default_rng(1).random((3, *truth.image.shape)) < 0.3
    dataset = write_seg(clinic, tmp_path / "out", masks)
    for k, mask in enumerate(masks):
        assert voxels_in_space(dataset, k + 1) == expected_in_space(truth, mask)
    stored = [groups.PlanePositionSequence[0].ImagePositionPatient for groups in image.PerFrameFunctionalGroupsSequence]
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        assert source.ReferencedSOPInstanceUID == image.SOPInstanceUID
        assert source.ReferencedSOPClassUID == image.SOPClassUID
        position = stored[source.ReferencedFrameNumber - 1]
        assert np.allclose(groups.PlanePositionSequence[0].ImagePositionPatient, position, atol=1e-4)
    ((reference,),) = [series.ReferencedInstanceSequence for series in dataset.ReferencedSeriesSequence]
    assert reference.ReferencedSOPInstanceUID == image.SOPInstanceUID


def as_enhanced(folder):
    """Replace the slices in a folder by an enhanced MR image of their frames, in the order of their file names."""
    slices = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    image = slices[0].copy()
    image.PerFrameFunctionalGroupsSequence, image.SharedFunctionalGroupsSequence = [], [pydicom.Dataset()]
    for one in slices:
        groups, position, plane, measures = (pydicom.Dataset() for _ in range(4))
        position.ImagePositionPatient = one.ImagePositionPatient
        plane.ImageOrientationPatient = one.ImageOrientationPatient
        measures.PixelSpacing, measures.SliceThickness = one.PixelSpacing, 3
        groups.PlanePositionSequence, groups.PlaneOrientationSequence = [position], [plane]
        groups.PixelMeasuresSequence = [measures]
        image.PerFrameFunctionalGroupsSequence.append(groups)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(image, name)
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    image.NumberOfFrames, image.PixelData = len(slices), b"".join(one.PixelData for one in slices)
    for path in list(folder.iterdir()):
        path.unlink()
    image.save_as(folder / "enhanced.dcm")
    return image


def test_slices_with_a_series_of_their_own_are_referred_to_by_series(tmp_path):
    def separate(dataset, k):
        dataset.SeriesInstanceUID = f"{dataset.SeriesInstanceUID}.{k}"

    headers = write_ct(tmp_path / "ct", change=separate)
    dataset = write_seg(tmp_path / "ct", tmp_path / "out", np.ones((3, 5, 128, 128), bool))
    referred = {
        image.ReferencedSOPInstanceUID: item.SeriesInstanceUID
        for item in dataset.ReferencedSeriesSequence
        for image in item.ReferencedInstanceSequence
    }
    assert referred == {header.SOPInstanceUID: header.SeriesInstanceUID for header in headers}


@pytest.mark.parametrize(
    "name, value", [("PatientSex", "X"), ("StudyDate", "2004"), ("PatientBirthDate", "unknown"), ("StudyTime", "noon")]
)
def test_odd_values_of_the_patient_are_copied_and_stop_nothing(tmp_path, name, value):
    with pydicom.config.disable_value_validation():
        write_ct(tmp_path / "ct", change=lambda dataset, _: setattr(dataset, name, value))
        dataset = write_seg(tmp_path / "ct", tmp_path / "out", np.ones((3, 5, 128, 128), bool))
    assert str(dataset[name].value) == value


def test_an_image_without_an_identifier_is_refused(tmp_path, refusal):
    write_ct(tmp_path / "ct", change=lambda dataset, _: delattr(dataset, "FrameOfReferenceUID"))
    line = refusal(write_seg, tmp_path / "ct", tmp_path / "out", np.ones((3, 5, 128, 128), bool))
    assert "has no FrameOfReferenceUID" in line and not (tmp_path / "out").exists()


def test_other_layouts_are_refused(tiny_cohort, tmp_path, refusal):
    line = refusal(write_seg, tiny_cohort.root, tmp_path / "out", None)
    assert "competition" in line and "a DICOM segmentation needs DICOM" in line


def test_without_highdicom_the_extra_is_named(patients, write, clinic, tmp_path, monkeypatch, refusal):
    write().write_series()
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.split(".")[0] == "highdicom":
            raise ModuleNotFoundError("No module named 'highdicom'", name="highdicom")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'gitseg-tf[seg]'" in refusal(write_seg, clinic, tmp_path / "out", patients.scans[0].masks)


def test_earlier_segmentations_are_found(patients, write, clinic, tmp_path):
    write().write_series()
    write_seg(clinic, tmp_path / "out", patients.scans[0].masks)
    assert predicted_scans("seg", tmp_path / "out") == ["case1_20260102"]
    assert predicted_scans("rtstruct", tmp_path / "out") == []
