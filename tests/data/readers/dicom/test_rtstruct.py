import numpy as np
import pydicom
import pytest

from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.data.tfrecords.shards import encode_scan
from gitseg_tf.inspection import inspect_data
from gitseg_tf.labels import UWMGI

SHAPE = (40, 64)


def only(root, **options):
    (scan,) = read_cohort(root, **options).scans
    return scan


def test_a_contour_inside_another_is_a_hole(write, clinic):
    writer = write().write_series()
    mask = np.zeros(SHAPE, bool)
    mask[5:30, 10:50] = True
    mask[12:20, 20:30] = False
    mask[15:17, 23:26] = True
    assert len(writer.outline(mask, 4)) == 3
    writer.write_structures({"Stomach": writer.outline(mask, 4)})
    masks = only(clinic, labels=UWMGI).read_annotation().masks
    assert np.array_equal(masks[2, 4], mask) and masks.sum() == mask.sum()


def test_a_keyhole_contour_makes_a_hole(write, clinic):
    writer = write().write_series()
    outer, inner = [(9.5, 4.5), (49.5, 4.5), (49.5, 29.5), (9.5, 29.5)], [(20, 12), (20, 20), (30, 20), (30, 12)]
    keyhole = np.array([*outer, outer[0], *inner, inner[0], outer[0]]) - [0, 0.25]
    writer.write_structures({"Stomach": [writer.to_patient(keyhole, 4)]})
    expected = np.zeros(SHAPE, bool)
    expected[5:30, 10:50] = True
    expected[12:20, 21:30] = False
    mask = only(clinic, labels=UWMGI).read_annotation().masks[2, 4]
    on_edge = np.zeros(SHAPE, bool)
    on_edge[12:20, [20, 30]] = True
    assert np.array_equal(mask[~on_edge], expected[~on_edge])


def test_a_voxel_is_inside_if_its_center_is(write, clinic):
    writer = write().write_series()
    triangle = np.array([(10.3, 5.2), (40.7, 9.6), (18.1, 30.4)])
    writer.write_structures({"colon": [writer.to_patient(triangle, 3)]})
    columns, rows = np.meshgrid(np.arange(64), np.arange(40))
    sides = []
    for (x0, y0), (x1, y1) in zip(triangle, np.roll(triangle, -1, 0), strict=True):
        sides.append((x1 - x0) * (rows - y0) - (y1 - y0) * (columns - x0) > 0)
    assert np.array_equal(only(clinic).read_annotation().masks[0, 3], np.all(sides, 0))


def test_a_contour_that_leaves_the_image_is_clipped(write, clinic):
    writer = write().write_series()
    writer.write_structures({"colon": [writer.to_patient(np.array([(-9, -9), (4.5, -9), (4.5, 99), (-9, 99)]), 3)]})
    mask = only(clinic).read_annotation().masks[0, 3]
    assert mask[:, :5].all() and not mask[:, 5:].any()


@pytest.mark.parametrize("names", [("Bowel_Large", "bowel small", "STOMACH"), ("Colon", "Small Bowel", "stomach")])
def test_roi_names_are_matched_to_labels(write, clinic, patients, names):
    writer = write().write_series()
    lines = dict(zip(names, writer.polygons().values(), strict=True))
    writer.write_structures(lines | {"PTV_5000": [writer.outline(patients.scans[0].masks[0, 3], 3)]})
    cohort = read_cohort(clinic, labels=UWMGI)
    assert np.array_equal(cohort.scans[0].read_annotation().masks, patients.scans[0].masks)
    assert f"ROI {names[0]!r} is read as large_bowel (1 of 1 scan)" in cohort.label_notes
    assert any("'PTV_5000'" in line for line in cohort.left_over)


@pytest.mark.parametrize(("missing", "annotated"), [("unannotated", [1, 0, 1]), ("absent", [1, 1, 1])])
def test_an_roi_without_contours_is_absent_and_a_missing_roi_unannotated(write, clinic, patients, missing, annotated):
    writer = write().write_series()
    writer.write_structures({"stomach": writer.polygons()["stomach"], "colon": []})
    cohort = read_cohort(clinic, labels=UWMGI, missing=missing)
    annotation = cohort.scans[0].read_annotation()
    assert annotation.annotated.tolist() == annotated
    assert not annotation.masks[:2].any() and np.array_equal(annotation.masks[2], patients.scans[0].masks[2])
    assert (
        f"small_bowel: has a mask in 0 of 1 annotated scans, read as {missing} in case1_20260102" in cohort.label_notes
    )


def test_labels_are_the_roi_names_unless_labels_are_given(write, clinic, patients):
    writer = write().write_series()
    lines = writer.polygons()
    writer.write_structures({"Liver": lines["large_bowel"], "PTV 50/2": lines["stomach"]})
    cohort = read_cohort(clinic)
    assert cohort.labels.names == ("Liver", "PTV_50_2") and cohort.labels[1].roi_name == "PTV 50/2"
    assert np.array_equal(cohort.scans[0].read_annotation().masks, patients.scans[0].masks[[0, 2]])


def test_a_structure_set_can_refer_to_the_frame_of_reference(write, clinic, patients):
    write().write_series().write_structures(by_frame=True)
    assert np.array_equal(only(clinic).read_annotation().masks, patients.scans[0].masks)


@pytest.mark.parametrize("table", [True, False])
def test_a_structure_set_selects_its_series(write, clinic, patients, table):
    write().write_series().write_structures()
    other = write()
    other.root, other.series = other.root / "localizers", other.uid("another series")
    other.root.mkdir()
    other.write_series(change=lambda dataset, i: setattr(dataset, "SOPInstanceUID", other.uid("other", i)))
    scan = only(clinic, table=table)
    assert scan.source.series_uid == write().series and scan.labeled == table


def test_a_study_without_a_structure_set_among_annotated_ones_is_refused(write, clinic, refusal):
    write(0).write_series().write_structures()
    write(2).write_series()
    line = refusal(read_cohort, clinic)
    assert "patient case2" in line and "no RTSTRUCT refers to it" in line


def test_a_structure_set_without_a_matching_roi_is_refused_with_its_roi_names(write, clinic, refusal, patients):
    writer = write().write_series()
    writer.write_structures({"PTV": writer.outline(patients.scans[0].masks[0, 3], 3)})
    line = refusal(read_cohort, clinic, labels=UWMGI)
    assert f"{clinic}: none of the names (PTV) matches a label (large_bowel, small_bowel, stomach)" in line


def test_two_rois_of_the_same_label_are_refused(write, clinic, refusal):
    writer = write().write_series()
    lines = writer.polygons()
    writer.write_structures(lines | {"colon": lines["large_bowel"]})
    assert "ROIs 'large_bowel' and 'colon' are both large_bowel" in refusal(read_cohort, clinic, labels=UWMGI)


@pytest.mark.parametrize("offset", [30.0, -300.0, 1.5])
def test_a_structure_set_without_any_slice_is_refused(write, clinic, refusal, patients, offset):
    writer = write().write_series()
    writer.write_structures(
        {"stomach": [line + np.array([0, 0, offset]) for line in writer.outline(patients.scans[0].masks[0, 3], 3)]}
    )
    line = refusal(only(clinic).read_annotation)
    assert "RS.dcm: no contour lies on a slice of the series, for example ROI 'stomach' at (" in line


def test_contours_without_a_slice_are_skipped_and_counted(write, clinic, patients, caplog):
    writer = write().write_series()
    writer.write_structures()
    (writer.root / "IM0004").unlink()
    scan = only(clinic, labels=UWMGI)
    annotation, truth = scan.read_annotation(), patients.scans[0].masks
    missing = (set(patients.scans[0].numbers) - set(scan.numbers)).pop() - 1
    assert np.array_equal(annotation.masks, np.delete(truth, missing, 1))
    lost = [name for name, mask in zip(UWMGI.names, truth, strict=True) if mask[missing].any()]
    assert len(annotation.notes) == len(lost) > 0
    assert all("RS.dcm: 1 contour of ROI " in note and "the series has no slice" in note for note in annotation.notes)
    caplog.set_level("WARNING", "gitseg_tf")
    encode_scan(scan)
    assert caplog.messages == [f"{scan.id}: {note}" for note in annotation.notes]
    found = [finding for finding in inspect_data(clinic).findings if finding.check == "contours not read"]
    assert {finding.severity for finding in found} == {"warning"} and len(found) == len(lost)


def test_an_interpolated_contour_is_filled(write, clinic, patients):
    write().write_series().write_structures(kind="INTERPOLATED_PLANAR")
    assert np.array_equal(only(clinic, labels=UWMGI).read_annotation().masks, patients.scans[0].masks)


def test_an_open_contour_is_refused(write, clinic, refusal):
    write().write_series().write_structures(kind="OPEN_PLANAR")
    assert "has a contour of type OPEN_PLANAR" in refusal(only(clinic).read_annotation)


def test_unreadable_contour_points_are_named(write, clinic, refusal):
    writer = write().write_series()
    writer.write_structures({"stomach": [np.array([(1.5, 2), (3, 4)])]})
    path = writer.root / "RS.dcm"
    path.write_bytes(path.read_bytes().replace(b"1.5\\2\\3\\4", b"1.5\\2\\3\\x"))
    assert f"{path}: ROI 'stomach' has a contour with unreadable points" in refusal(only(clinic).read_annotation)


def test_a_line_of_two_points_has_no_area(write, clinic):
    writer = write().write_series()
    writer.write_structures({"stomach": [writer.to_patient(np.array([(5, 5), (9, 9)]), 3)]})
    assert not only(clinic).read_annotation().masks.any()


def test_single_points_are_not_filled(write, clinic):
    write().write_series().write_structures(kind="POINT")
    assert not only(clinic).read_annotation().masks.any()


def drop(sequence, index, name):
    def change(dataset):
        delattr(dataset[sequence].value[index], name)

    return change


@pytest.mark.parametrize(
    "change",
    [
        drop("StructureSetROISequence", 0, "ROINumber"),
        drop("StructureSetROISequence", 0, "ROIName"),
        drop("ROIContourSequence", 1, "ReferencedROINumber"),
    ],
)
def test_an_roi_without_a_name_or_a_number_is_left_out(write, clinic, patients, change):
    writer = write().write_series().write_structures()
    dataset = pydicom.dcmread(writer.root / "RS.dcm")
    change(dataset)
    dataset.save_as(writer.root / "RS.dcm")
    masks = only(clinic, labels=UWMGI).read_annotation().masks
    assert np.array_equal(masks[2], patients.scans[0].masks[2])
    assert sum(mask.any() for mask in masks) == 2
