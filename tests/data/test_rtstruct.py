import numpy as np
import pytest

from gitseg_tf.data.scans import read_cohort, read_image, read_masks

SHAPE = (40, 64)


def only(root, **options):
    (scan,) = read_cohort(root, **options).scans
    return scan


def test_a_contour_in_another_one_is_a_hole(write, clinic):
    writer = write().write_series()
    mask = np.zeros(SHAPE, bool)
    mask[5:30, 10:50] = True
    mask[12:20, 20:30] = False
    mask[15:17, 23:26] = True
    assert len(writer.outline(mask, 4)) == 3
    writer.write_structures({"Stomach": writer.outline(mask, 4)})
    masks = read_masks(only(clinic))
    assert np.array_equal(masks[2, 4], mask) and masks.sum() == mask.sum()


def test_a_keyhole_is_a_hole(write, clinic):
    writer = write().write_series()
    outer, inner = [(9.5, 4.5), (49.5, 4.5), (49.5, 29.5), (9.5, 29.5)], [(20, 12), (20, 20), (30, 20), (30, 12)]
    keyhole = np.array([*outer, outer[0], *inner, inner[0], outer[0]]) - [0, 0.25]
    writer.write_structures({"Stomach": [writer.to_patient(keyhole, 4)]})
    expected = np.zeros(SHAPE, bool)
    expected[5:30, 10:50] = True
    expected[12:20, 21:30] = False
    mask = read_masks(only(clinic))[2, 4]
    on_edge = np.zeros(SHAPE, bool)
    on_edge[12:20, [20, 30]] = True
    assert np.array_equal(mask[~on_edge], expected[~on_edge])


def test_a_voxel_is_inside_when_its_centre_is(write, clinic):
    writer = write().write_series()
    triangle = np.array([(10.3, 5.2), (40.7, 9.6), (18.1, 30.4)])
    writer.write_structures({"colon": [writer.to_patient(triangle, 3)]})
    columns, rows = np.meshgrid(np.arange(64), np.arange(40))
    sides = []
    for (x0, y0), (x1, y1) in zip(triangle, np.roll(triangle, -1, 0), strict=True):
        sides.append((x1 - x0) * (rows - y0) - (y1 - y0) * (columns - x0) > 0)
    assert np.array_equal(read_masks(only(clinic))[0, 3], np.all(sides, 0))


def test_a_contour_that_leaves_the_image_is_cut(write, clinic):
    writer = write().write_series()
    writer.write_structures({"colon": [writer.to_patient(np.array([(-9, -9), (4.5, -9), (4.5, 99), (-9, 99)]), 3)]})
    mask = read_masks(only(clinic))[0, 3]
    assert mask[:, :5].all() and not mask[:, 5:].any()


@pytest.mark.parametrize("names", [("Bowel_Large", "bowel small", "STOMACH"), ("Colon", "Small Bowel", "stomach")])
def test_roi_names_are_matched_to_organs(write, clinic, patients, names):
    writer = write().write_series()
    lines = dict(zip(names, writer.polygons().values(), strict=True))
    writer.write_structures(lines | {"PTV_5000": [writer.outline(patients.scans[0].masks[0, 3], 3)]})
    cohort = read_cohort(clinic)
    assert np.array_equal(read_masks(cohort.scans[0]), patients.scans[0].masks)
    assert f"ROI {names[0]!r} is large_bowel (1 of 1 scans)" in cohort.labels
    assert any("'PTV_5000'" in line for line in cohort.ignored)


def test_an_organ_without_roi_is_absent(write, clinic, patients):
    writer = write().write_series()
    writer.write_structures({"stomach": writer.polygons()["stomach"], "colon": []})
    masks = read_masks(only(clinic))
    assert not masks[:2].any() and np.array_equal(masks[2], patients.scans[0].masks[2])


def test_organs_may_stand_in_two_structure_sets(write, clinic, patients):
    writer = write().write_series()
    lines = writer.polygons()
    writer.write_structures({"stomach": lines.pop("stomach")}, "RS1.dcm").write_structures(lines, "RS2.dcm")
    assert np.array_equal(read_masks(only(clinic)), patients.scans[0].masks)


def test_a_structure_set_may_refer_to_the_frame_of_reference(write, clinic, patients):
    write().write_series().write_structures(by_frame=True)
    assert np.array_equal(read_masks(only(clinic)), patients.scans[0].masks)


@pytest.mark.parametrize("table", [True, False])
def test_a_structure_set_tells_which_series_is_meant(write, clinic, patients, table):
    write().write_series().write_structures()
    other = write()
    other.root, other.series = other.root / "localizers", other.uid("another series")
    other.root.mkdir()
    other.write_series(change=lambda dataset, i: setattr(dataset, "SOPInstanceUID", other.uid("other", i)))
    scan = only(clinic, table=table)
    assert scan.source.series_uid == write().series and scan.labelled == table


def test_a_study_without_structures_among_others_is_refused(write, clinic, refusal):
    write(0).write_series().write_structures()
    write(2).write_series()
    line = refusal(read_cohort, clinic)
    assert "patient case2" in line and "no RTSTRUCT refers to it" in line


def test_a_structure_set_without_its_series_is_refused(write, clinic, refusal, patients):
    write().write_series().write_structures(series="1.2.3.4")
    assert "RS.dcm: refers to a series that is not there" in refusal(read_cohort, clinic)
    assert np.array_equal(read_image(only(clinic, table=False)), patients.scans[0].image)


def test_a_structure_set_without_an_organ_is_refused_with_its_rois(write, clinic, refusal, patients):
    writer = write().write_series()
    writer.write_structures({"PTV": writer.outline(patients.scans[0].masks[0, 3], 3)})
    line = refusal(read_cohort, clinic)
    assert "RS.dcm: no ROI is an organ" in line and "'PTV'" in line


def test_two_rois_of_an_organ_are_refused(write, clinic, refusal):
    writer = write().write_series()
    lines = writer.polygons()
    writer.write_structures(lines | {"colon": lines["large_bowel"]})
    assert "ROIs 'large_bowel' and 'colon' are both large_bowel" in refusal(read_cohort, clinic)


@pytest.mark.parametrize("offset", [30.0, -300.0, 1.5])
def test_a_contour_without_slice_is_named(write, clinic, refusal, patients, offset):
    writer = write().write_series()
    writer.write_structures(
        {"stomach": [line + np.array([0, 0, offset]) for line in writer.outline(patients.scans[0].masks[0, 3], 3)]}
    )
    line = refusal(read_masks, only(clinic))
    assert "RS.dcm: ROI 'stomach' has a contour at (" in line and "its series has no slice" in line


def test_an_open_contour_is_refused(write, clinic, refusal):
    write().write_series().write_structures(kind="OPEN_PLANAR")
    assert "has a contour of type OPEN_PLANAR" in refusal(read_masks, only(clinic))


def test_points_that_cannot_be_read_are_named(write, clinic, refusal):
    writer = write().write_series()
    writer.write_structures({"stomach": [np.array([(1.5, 2), (3, 4)])]})
    path = writer.root / "RS.dcm"
    path.write_bytes(path.read_bytes().replace(b"1.5\\2\\3\\4", b"1.5\\2\\3\\x"))
    assert f"{path}: ROI 'stomach' has a contour whose points cannot be read" in refusal(read_masks, only(clinic))


def test_a_line_of_two_points_has_no_area(write, clinic):
    writer = write().write_series()
    writer.write_structures({"stomach": [writer.to_patient(np.array([(5, 5), (9, 9)]), 3)]})
    assert not read_masks(only(clinic)).any()


def test_points_that_were_clicked_are_no_organ(write, clinic):
    write().write_series().write_structures(kind="POINT")
    assert not read_masks(only(clinic)).any()
