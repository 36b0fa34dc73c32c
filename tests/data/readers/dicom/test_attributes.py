"""Attributes that are missing, empty (type 2), malformed, padded, or have the wrong number of values."""

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.inspection import inspect_data
from gitseg_tf.labels import UWMGI

IDENTIFIERS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "StudyDate")
IDENTIFIERS += ("StudyTime", "SeriesNumber", "SeriesDescription", "FrameOfReferenceUID", "ImageType", "Modality")
OPTIONAL = (
    "PhotometricInterpretation",
    "SamplesPerPixel",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "SliceThickness",
)
OPTIONAL += ("SpacingBetweenSlices", "GantryDetectorTilt", "NumberOfFrames", "ModalityLUTSequence")
REQUIRED = ("Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient")


def raw(name, value):
    """Return a change that stores bytes which pydicom would not write."""
    tag, vr = Tag(name), pydicom.datadict.dictionary_VR(name)

    def change(dataset, _=None):
        dataset[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)

    return change


def empty(name):
    def change(dataset, _=None):
        dataset[Tag(name)] = pydicom.DataElement(Tag(name), pydicom.datadict.dictionary_VR(name), None)

    return change


def drop(name):
    return lambda dataset, _=None: name in dataset and delattr(dataset, name)


def only(root, **options):
    (scan,) = read_cohort(root, **options).scans
    return scan


@pytest.mark.parametrize("how", [empty, drop])
@pytest.mark.parametrize("name", IDENTIFIERS + OPTIONAL)
def test_an_optional_attribute_can_be_empty_or_missing(write, clinic, patients, how, name):
    write().write_series(change=how(name))
    assert np.array_equal(only(clinic).read_volume().voxels, patients.scans[0].image)
    assert not [finding for finding in inspect_data(clinic).findings if finding.severity == "error"]


@pytest.mark.parametrize("how", [empty, drop])
@pytest.mark.parametrize("name", REQUIRED)
def test_a_required_attribute_is_named(write, clinic, refusal, how, name):
    write().write_series(change=lambda dataset, i: how(name)(dataset) if i == 3 else None)
    assert f"has no {name}" in refusal(read_cohort, clinic)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("PixelSpacing", b"1.5\\x ", "PixelSpacing is not a number"),
        ("PixelSpacing", b"0\\1.25", "PixelSpacing must be positive"),
        ("PixelSpacing", b"nan\\1.25 ", "PixelSpacing is not a number"),
        ("PixelSpacing", b"1.5\\1.25\\1 ", "PixelSpacing must have 2 values, got 3"),
        ("ImagePositionPatient", b"a\\b\\c ", "ImagePositionPatient is not a number"),
        ("ImagePositionPatient", b"1\\\\3", "ImagePositionPatient is not a number"),
        ("ImageOrientationPatient", b"1\\0\\0\\0\\1", "ImageOrientationPatient must have 6 values, got 5"),
        ("ImageOrientationPatient", b"0\\0\\0\\0\\0\\0 ", "is not a pair of perpendicular directions"),
        ("RescaleSlope", b"two ", "RescaleSlope is not a number"),
        ("RescaleSlope", b"1\\2 ", "RescaleSlope must have 1 value, got 2"),
        ("RescaleSlope", b"0 ", "RescaleSlope is 0"),
        ("RescaleIntercept", b"- ", "RescaleIntercept is not a number"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_malformed_number_is_named_with_its_file(write, clinic, refusal, name, value, expected):
    writer = write().write_series(change=lambda dataset, i: raw(name, value)(dataset) if i == 3 else None)
    line = refusal(lambda: only(clinic).read_volume())
    assert expected in line and f"{writer.root}/IM0005" in line


@pytest.mark.parametrize("padding", [b"\0", b" ", b"\0\0", b"  "])
def test_padding_is_no_part_of_a_value(write, clinic, patients, padding):
    def pad(dataset, _=None):
        for name, value in (
            ("Modality", b"MR"),
            ("PatientID", b"case1"),
            ("StudyDate", b"20260102"),
            ("PixelSpacing", b"1.5\\1.25"),
            ("RescaleSlope", b"1"),
            ("PhotometricInterpretation", b"MONOCHROME2"),
        ):
            raw(name, value + padding + (b" " if len(value + padding) % 2 else b""))(dataset)

    write().write_series(change=pad).write_structures()
    scan = only(clinic)
    assert (scan.id, scan.case) == ("case1_20260102", "case1")
    assert np.array_equal(scan.read_volume().voxels, patients.scans[0].image)
    assert np.array_equal(scan.read_annotation().masks, patients.scans[0].masks)


def test_only_a_slope_or_only_an_intercept_is_applied(write, clinic, patients):
    def change(dataset, i):
        if i % 2:
            dataset.RescaleSlope, dataset.RescaleIntercept = 3, None
        else:
            dataset.RescaleIntercept = -7

    write().write_series(change=change)
    expected = patients.scans[0].image.astype(int)
    expected[1::2], expected[::2] = expected[1::2] * 3, expected[::2] - 7
    assert np.array_equal(only(clinic).read_volume().voxels, expected)


@pytest.mark.parametrize("date", [b"2026/01/", b"../x", b"20260102\\2026"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_date_is_safe_in_the_id_of_a_scan(write, clinic, date):
    write().write_series(change=raw("StudyDate", date))
    assert set(only(clinic).id) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.")


@pytest.mark.parametrize("name", ["StructureSetLabel", "StructureSetDate", "StructureSetTime", "ApprovalStatus"])
@pytest.mark.parametrize("how", [empty, drop])
def test_a_structure_set_can_lack_what_describes_it(write, clinic, patients, how, name):
    path = write().write_series().write_structures().root / "RS.dcm"
    dataset = pydicom.dcmread(path)
    how(name)(dataset)
    how("SeriesInstanceUID")(dataset)
    dataset.save_as(path)
    assert np.array_equal(only(clinic, structure_set="newest").read_annotation().masks, patients.scans[0].masks)


@pytest.mark.parametrize(
    ("sequence", "name", "value"),
    [
        ("StructureSetROISequence", "ROINumber", b""),
        ("StructureSetROISequence", "ROINumber", b"x "),
        ("StructureSetROISequence", "ROIName", b""),
        ("StructureSetROISequence", "ROIName", b"\0\0"),
        ("ROIContourSequence", "ReferencedROINumber", b""),
        ("ROIContourSequence", "ReferencedROINumber", b"x "),
    ],
)
def test_an_roi_with_an_empty_name_or_number_is_left_out(write, clinic, patients, sequence, name, value):
    path = write().write_series().write_structures().root / "RS.dcm"
    dataset = pydicom.dcmread(path)
    raw(name, value)(dataset[sequence].value[0])
    dataset.save_as(path)
    masks = only(clinic, labels=UWMGI).read_annotation().masks
    assert not masks[0].any() and np.array_equal(masks[1:], patients.scans[0].masks[1:])


@pytest.mark.parametrize("tilt", [15, -7.5])
def test_a_tilted_gantry_is_refused(write, clinic, refusal, tilt):
    """As a scanner stores it: the slices lean, and are stacked along the table."""
    c, s = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))

    def lean(dataset, _):
        dataset.ImageOrientationPatient = [1, 0, 0, 0, round(c, 6), round(s, 6)]
        dataset.GantryDetectorTilt = tilt

    write().write_series(change=lean)
    assert f"shifted sideways (by {abs(tilt):.1f} degrees; a tilted gantry?)" in refusal(read_cohort, clinic)


def test_a_tilt_that_the_positions_do_not_show_is_refused(write, clinic, refusal):
    write().write_series(change=lambda dataset, _: setattr(dataset, "GantryDetectorTilt", 15))
    assert "GantryDetectorTilt is 15 degrees in IM0001, but the slices are not tilted" in refusal(read_cohort, clinic)


def test_leaning_slices_that_are_stacked_along_their_normal_are_read(write, clinic, patients):
    c, s = np.cos(np.radians(15)), np.sin(np.radians(15))

    def lean(dataset, _):
        x, y, z = dataset.ImagePositionPatient
        dataset.ImageOrientationPatient = [1, 0, 0, 0, round(c, 6), round(s, 6)]
        dataset.ImagePositionPatient = [round(v, 6) for v in (x, c * y - s * z, s * y + c * z)]
        dataset.GantryDetectorTilt = 15

    write().write_series(change=lean)
    assert np.array_equal(only(clinic).read_volume().voxels, patients.scans[0].image)
