import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from gitseg_tf.data.readers.png import read_png
from gitseg_tf.data.readers.registry import is_cohort, read_cohort
from gitseg_tf.labels import UWMGI, LabelSet

REAL = Path(__file__).parents[4] / "shared" / "data" / "uwmgi_slices"
SMALL = (("case1_day0", (40, 64), range(1, 5)), ("case2_day3", (48, 40), (2, 5, 6, 11)))


@pytest.fixture
def small(make_cohort, tmp_path):
    """Two scans, to be corrupted."""
    return make_cohort(tmp_path / "cohort", SMALL)


@pytest.fixture
def gray_png(tmp_path):
    """The path and the bytes of a 16-bit slice of noise."""
    path = tmp_path / "slice_0001_48_40_1.50_1.50.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 60000, (40, 48)).astype(np.uint16))
    return path, path.read_bytes()


def slices_of(cohort, scan_id):
    return sorted((cohort.root / "train" / scan_id.split("_")[0] / scan_id / "scans").iterdir())


def scan_of(root, scan_id):
    return next(scan for scan in read_cohort(root).scans if scan.id == scan_id)


def test_scans_are_sorted_by_id(tiny_cohort):
    assert [scan.id for scan in read_cohort(tiny_cohort.root).scans] == sorted(scan.id for scan in tiny_cohort.scans)


def test_the_days_of_a_patient_are_scans_of_one_case(tiny_cohort):
    days = [scan.id for scan in read_cohort(tiny_cohort.root).scans if scan.case == "case1"]
    assert days == ["case1_day0", "case1_day5"]


def test_file_names_give_the_width_before_the_height(tiny_cohort):
    scan = scan_of(tiny_cohort.root, "case1_day0")
    assert (scan.shape, scan.spacing) == ((8, 40, 64), (3.0, 1.5, 1.25))


def test_slices_keep_their_16_bit_values(tiny_cohort):
    for truth in tiny_cohort.scans:
        image = scan_of(tiny_cohort.root, truth.id).read_volume().voxels
        assert image.dtype == np.uint16 and np.array_equal(image, truth.image)


def test_masks_match_the_table(tiny_cohort):
    for truth in tiny_cohort.scans:
        masks = scan_of(tiny_cohort.root, truth.id).read_annotation().masks
        assert masks.dtype == bool and np.array_equal(masks, truth.masks)


def test_slice_numbers_need_not_be_contiguous(tiny_cohort):
    assert scan_of(tiny_cohort.root, "case5_day0").numbers == [1, 2, 3, 7, 8, 9, 10]


def test_slice_numbers_without_leading_zeros_are_sorted_numerically(make_cohort, tmp_path):
    make_cohort(tmp_path, [("case1_day0", (40, 64), (2, 10, 9))], labeled=False)
    for path in (tmp_path / "train").rglob("*.png"):
        path.rename(path.with_name(path.name.replace("slice_000", "slice_").replace("slice_00", "slice_")))
    assert scan_of(tmp_path, "case1_day0").numbers == [2, 9, 10]


def test_8_bit_slices_keep_their_values(small):
    path = slices_of(small, "case1_day0")[0]
    values = np.arange(40 * 64).reshape(40, 64).astype(np.uint8)
    cv2.imwrite(str(path), values)
    assert np.array_equal(scan_of(small.root, "case1_day0").read_volume().voxels[0], values)


def test_the_highest_16_bit_value_is_kept(small):
    path = slices_of(small, "case1_day0")[0]
    cv2.imwrite(str(path), np.full((40, 64), 65535, np.uint16))
    assert (scan_of(small.root, "case1_day0").read_volume().voxels[0] == 65535).all()


def test_row_order_does_not_matter(small, rows_of, save_table):
    rows = rows_of(small.scans)
    np.random.default_rng(0).shuffle(rows)
    save_table(small.root, rows)
    assert all(np.array_equal(scan_of(small.root, scan.id).read_annotation().masks, scan.masks) for scan in small.scans)


def test_column_order_does_not_matter(small):
    table = pd.read_csv(small.root / "train.csv", dtype=str)
    table.assign(note="x")[["segmentation", "note", "class", "id"]].to_csv(small.root / "train.csv", index=False)
    assert all(np.array_equal(scan_of(small.root, scan.id).read_annotation().masks, scan.masks) for scan in small.scans)


def test_slices_without_rows_have_empty_masks(small, rows_of, save_table):
    save_table(small.root, [row for row in rows_of(small.scans) if row[2]])
    assert all(np.array_equal(scan_of(small.root, scan.id).read_annotation().masks, scan.masks) for scan in small.scans)


def test_a_scan_without_any_row_has_no_annotation(small, rows_of, save_table):
    save_table(small.root, rows_of(small.scans[:1]))
    assert scan_of(small.root, "case2_day3").read_annotation() is None
    assert "1 of 2 scans has no annotation" in read_cohort(small.root).label_notes


@pytest.mark.parametrize(("missing", "annotated"), [("unannotated", [1, 1, 0]), ("absent", [1, 1, 1])])
def test_a_class_without_rows_is_unannotated_and_empty_rows_are_absent(small, rows_of, save_table, missing, annotated):
    rows = [(i, name, "" if name == "small_bowel" else rle) for i, name, rle in rows_of(small.scans)]
    save_table(small.root, [row for row in rows if row[1] != "stomach" or row[0].startswith("case2")])
    cohort = read_cohort(small.root, missing=missing)
    annotation = cohort.scans[0].read_annotation()
    assert annotation.annotated.tolist() == annotated and not annotation.masks[1:].any()
    assert np.array_equal(annotation.masks[0], small.scans[0].masks[0])
    assert f"stomach: has a mask in 1 of 2 annotated scans, read as {missing} in case1_day0" in cohort.label_notes


def test_a_table_without_rows_is_a_cohort_without_annotations(small, save_table):
    save_table(small.root, [])
    cohort = read_cohort(small.root)
    assert not cohort.labeled and len(cohort.labels) == 0 and cohort.scans[0].read_annotation() is None


def test_competition_labels_keep_their_order(small):
    assert read_cohort(small.root).labels == UWMGI


def test_other_classes_become_labels(small, rows_of, save_table):
    renamed = {"large_bowel": "Liver", "small_bowel": "stomach", "stomach": "left kidney"}
    save_table(small.root, [(slice_id, renamed[name], rle) for slice_id, name, rle in rows_of(small.scans)])
    cohort = read_cohort(small.root)
    assert cohort.labels.names == ("Liver", "left_kidney", "stomach")
    for scan, truth in zip(cohort.scans, small.scans, strict=True):
        assert np.array_equal(scan.read_annotation().masks, truth.masks[[0, 2, 1]])
        strata = truth.masks[[0, 2, 1]].any((2, 3)).T @ [1, 2, 4]
        assert scan.slice_strata() == strata.tolist()


def test_two_classes_of_the_same_label_are_refused(small, refusal, rows_of, save_table):
    save_table(small.root, [*rows_of(small.scans), ("case1_day0_slice_0001", "colon", "1 2")])
    message = refusal(read_cohort, small.root, labels=UWMGI)
    assert "train.csv: case1_day0 has the classes 'large_bowel' and 'colon', which are both large_bowel" in message


def test_only_the_given_labels_are_read(small):
    cohort = read_cohort(small.root, labels=LabelSet.of("stomach"))
    assert np.array_equal(cohort.scans[0].read_annotation().masks, small.scans[0].masks[2:])
    assert "class 'large_bowel' matches no label (2 of 2 scans)" in cohort.left_over


@pytest.mark.parametrize("folder", ["train", "test", "."])
def test_slices_without_a_table_have_no_annotation(make_cohort, tmp_path, folder):
    truth = make_cohort(tmp_path, SMALL, labeled=False, folder=folder)
    cohort = read_cohort(tmp_path)
    assert not cohort.labeled and np.array_equal(cohort.scans[0].read_volume().voxels, truth.scans[0].image)


def test_scans_without_a_table_have_no_masks_to_read(make_cohort, tmp_path):
    make_cohort(tmp_path, SMALL, labeled=False)
    scan = scan_of(tmp_path, "case1_day0")
    assert scan.read_annotation() is None and scan.slice_strata() == [0] * 4


def test_a_cohort_is_recognized(tiny_cohort, tmp_path):
    assert is_cohort(tiny_cohort.root) and not is_cohort(tmp_path) and not is_cohort(tmp_path / "none")


def test_the_fingerprint_does_not_depend_on_the_folder(tiny_cohort, make_cohort, tmp_path):
    assert read_cohort(make_cohort(tmp_path / "copy").root).fingerprint == read_cohort(tiny_cohort.root).fingerprint


def test_the_fingerprint_changes_with_a_row_of_the_table(small, rows_of, save_table):
    before = read_cohort(small.root).fingerprint
    save_table(small.root, rows_of(small.scans)[:-1])
    assert read_cohort(small.root).fingerprint != before


def test_the_fingerprint_changes_with_a_slice(small, rows_of, save_table):
    save_table(small.root, [])
    before = read_cohort(small.root).fingerprint
    slices_of(small, "case1_day0")[0].unlink()
    assert read_cohort(small.root).fingerprint != before


def test_a_missing_folder_is_named(tmp_path, refusal):
    assert f"{tmp_path / 'none'}: no such folder" in refusal(read_cohort, tmp_path / "none")


def test_a_file_instead_of_a_folder_is_named(tmp_path, refusal):
    (tmp_path / "train.zip").write_bytes(b"PK")
    assert f"{tmp_path / 'train.zip'}: no such folder" in refusal(read_cohort, tmp_path / "train.zip")


def test_a_folder_without_slices_is_named(tmp_path, refusal):
    (tmp_path / "train").mkdir()
    assert f"{tmp_path}: no slices" in refusal(read_cohort, tmp_path)


@pytest.mark.parametrize("keep", [0, 4])
def test_a_file_without_the_png_signature_is_refused(gray_png, refusal, keep):
    path, data = gray_png
    path.write_bytes(data[:keep])
    assert f"{path}: is not a PNG" in refusal(read_png, path)


@pytest.mark.parametrize("keep", [8, 20, 33, 40, 500, 1500, -16, -12, -5, -1])
def test_a_png_cut_anywhere_is_reported_as_truncated(gray_png, refusal, keep):
    path, data = gray_png
    path.write_bytes(data[:keep])
    assert f"{path}: the PNG is truncated" in refusal(read_png, path)


@pytest.mark.parametrize("at", [18, 26, 41, 100, 1000, -18, -2])
def test_a_png_with_one_changed_byte_is_reported_as_damaged(gray_png, refusal, at):
    path, data = gray_png
    corrupted = bytearray(data)
    corrupted[at] ^= 0x10
    path.write_bytes(corrupted)
    assert f"{path}: the PNG is damaged" in refusal(read_png, path)


def test_damaged_pngs_print_nothing_else(gray_png, refusal, capfd):
    path, data = gray_png
    path.write_bytes(data[:1000] + b"????" + data[1004:])
    refusal(read_png, path)
    assert capfd.readouterr() == ("", "")


def test_zeros_after_the_end_of_a_png_are_ignored(gray_png):
    path, data = gray_png
    whole = read_png(path)
    path.write_bytes(data + bytes(512))
    assert np.array_equal(read_png(path), whole)


def test_a_folder_in_place_of_a_slice_is_named(small, refusal):
    path = slices_of(small, "case1_day0")[0]
    path.unlink()
    path.mkdir()
    assert f"{path}: cannot be read" in refusal(scan_of(small.root, "case1_day0").read_volume)


def test_a_truncated_slice_is_named_by_its_path(small, refusal):
    path = slices_of(small, "case2_day3")[2]
    path.write_bytes(path.read_bytes()[:-12])
    assert str(path) in refusal(scan_of(small.root, "case2_day3").read_volume)


def test_a_size_that_contradicts_the_file_name_is_refused_with_both_sizes(small, refusal):
    path = slices_of(small, "case1_day0")[1]
    cv2.imwrite(str(path), np.zeros((64, 40), np.uint16))
    message = refusal(scan_of(small.root, "case1_day0").read_volume)
    assert str(path) in message and "40 wide and 64 high" in message and "64 wide and 40 high" in message


@pytest.mark.parametrize("channels", [3, 4])
def test_a_color_png_is_refused(small, refusal, channels):
    path = slices_of(small, "case1_day0")[0]
    cv2.imwrite(str(path), np.zeros((40, 64, channels), np.uint8))
    assert f"{path}: has {channels} channels" in refusal(scan_of(small.root, "case1_day0").read_volume)


@pytest.mark.parametrize(
    "name",
    ["slice_0009.png", "slice_0009_64_40_1.50.png", "slice_x_64_40_1.25_1.50.png", "0009_64_40_1.25_1.50.png"],
)
def test_a_file_name_without_geometry_is_refused(small, refusal, name):
    path = slices_of(small, "case1_day0")[0]
    path.rename(path.with_name(name))
    assert str(path.with_name(name)) in refusal(read_cohort, small.root)


def test_a_pixel_size_of_zero_is_refused(make_cohort, tmp_path, refusal):
    make_cohort(tmp_path, SMALL[:1], labeled=False)
    for path in (tmp_path / "train").rglob("*.png"):
        path.rename(path.with_name(path.name.replace("_1.50.png", "_0.00.png")))
    assert "pixel size of 0" in refusal(read_cohort, tmp_path)


def test_two_geometries_in_a_scan_are_refused(small, refusal):
    path = slices_of(small, "case1_day0")[0]
    path.rename(path.with_name("slice_0001_64_40_1.63_1.63.png"))
    message = refusal(read_cohort, small.root)
    assert str(path.parent) in message and "make them match" in message


def test_a_duplicate_slice_number_is_refused(small, refusal):
    path = slices_of(small, "case1_day0")[0]
    path.with_name(path.name.replace("0001", "001")).write_bytes(path.read_bytes())
    assert "slice 1 exists twice" in refusal(read_cohort, small.root)


def test_a_scan_in_two_folders_is_refused(make_cohort, tmp_path, refusal):
    make_cohort(tmp_path, SMALL, labeled=False, folder="train/a")
    make_cohort(tmp_path, SMALL, labeled=False, folder="train/b")
    assert "case1_day0 exists in two folders" in refusal(read_cohort, tmp_path)


def test_a_row_without_an_image_is_named(small, refusal, rows_of, save_table):
    save_table(small.root, [*rows_of(small.scans), ("case1_day0_slice_0077", "stomach", "1 2")])
    assert "train.csv: case1_day0_slice_0077 has no image" in refusal(read_cohort, small.root)


def test_a_row_of_an_unknown_scan_is_named(small, refusal, rows_of, save_table):
    save_table(small.root, [*rows_of(small.scans), ("case9_day0_slice_0001", "stomach", "")])
    assert "train.csv: case9_day0_slice_0001 has no image" in refusal(read_cohort, small.root)


def test_rows_without_an_image_are_listed_on_request(small, rows_of, save_table):
    orphans = ("case9_day0_slice_0001", "case1_day0_slice_0077")
    save_table(
        small.root, rows_of(small.scans) + [(i, name, "1 2") for i in orphans for name in ("stomach", "small_bowel")]
    )
    cohort = read_cohort(small.root, list_orphans=True)
    assert sorted(cohort.orphans) == sorted(orphans)
    assert {scan.id for scan in cohort.scans} == {scan.id for scan in small.scans}


def test_a_duplicate_row_is_named(small, refusal, rows_of, save_table):
    rows = rows_of(small.scans)
    save_table(small.root, [*rows, rows[4]])
    message = refusal(read_cohort, small.root)
    assert f"train.csv: {rows[4][0]}, {rows[4][1]} has two rows" in message


def test_a_class_that_matches_no_given_label_is_listed_as_ignored(small, rows_of, save_table):
    save_table(small.root, [*rows_of(small.scans), ("case1_day0_slice_0001", "liver", "")])
    assert "class 'liver' matches no label (1 of 2 scans)" in read_cohort(small.root, labels=UWMGI).left_over
    assert read_cohort(small.root).labels.names == ("large_bowel", "liver", "small_bowel", "stomach")


def test_a_table_without_any_matching_class_is_refused(small, refusal):
    message = refusal(read_cohort, small.root, labels=LabelSet.of("liver", "spleen"))
    assert "train.csv: none of the names (large_bowel, small_bowel, stomach) matches a label (liver, spleen)" in message


def test_a_row_without_a_class_is_named(small, refusal, rows_of, save_table):
    save_table(small.root, [*rows_of(small.scans), ("case1_day0_slice_0001", " ", "")])
    assert "train.csv: case1_day0_slice_0001 has a row without a class" in refusal(read_cohort, small.root)


@pytest.mark.parametrize("column", ["id", "class", "segmentation"])
def test_a_missing_column_is_named(small, refusal, column):
    table = pd.read_csv(small.root / "train.csv")
    table.drop(columns=column).to_csv(small.root / "train.csv", index=False)
    assert f"train.csv: column {column} is missing" in refusal(read_cohort, small.root)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"\xff\xfe\x00\x01", b'id,class,segmentation\ncase1_day0_slice_0001,"stomach,1 2\n'],
    ids=["empty", "blank", "no text", "open quote"],
)
def test_a_table_that_is_not_csv_is_refused(small, refusal, content):
    (small.root / "train.csv").write_bytes(content)
    assert "train.csv: cannot be read as CSV" in refusal(read_cohort, small.root)


def test_blank_lines_are_skipped_and_a_row_with_extra_cells_is_named(small, refusal):
    table = small.root / "train.csv"
    before = read_cohort(small.root).scans
    table.write_text("\n" + table.read_text().replace("\n", "\n\n"))
    assert read_cohort(small.root).scans == before
    table.write_text("id,class,segmentation\ncase1_day0_slice_0001,stomach,1 2,7\n")
    assert "train.csv: line 2 has 4 cells, but the header has 3" in refusal(read_cohort, small.root)


@pytest.mark.parametrize("rle", ["2550 20", "3 x", "7", "0 2", "5 5 6 2"])
def test_an_invalid_rle_string_is_named_by_slice_and_class(small, refusal, rows_of, save_table, rle):
    rows = [row for row in rows_of(small.scans) if row[:2] != ("case1_day0_slice_0003", "small_bowel")]
    save_table(small.root, [*rows, ("case1_day0_slice_0003", "small_bowel", rle)])
    message = refusal(scan_of(small.root, "case1_day0").read_annotation)
    assert "train.csv, case1_day0_slice_0003, small_bowel: " in message and repr(rle) in message


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real slices at {REAL.name} next to the project")
def test_real_slices_and_contours_are_read():
    cohort = read_cohort(REAL)
    table = pd.read_csv(REAL / "train.csv", keep_default_na=False)
    inside = sum(sum(map(int, rle.split()[1::2])) for rle in table["segmentation"])
    assert sum(scan.shape[0] for scan in cohort.scans) == table["id"].nunique()
    assert sum(int(scan.read_annotation().masks.sum()) for scan in cohort.scans) == inside
    for scan in cohort.scans:
        stored = [cv2.imread(str(item.path), cv2.IMREAD_UNCHANGED) for item in scan.source.slices]
        assert np.array_equal(scan.read_volume().voxels, stored)


@pytest.mark.parametrize("names", [("case{0}", "case{0}-day{1}"), ("pat_{0:03d}", "pat_{0:03d}_day{1}")])
def test_the_patient_is_the_case_folder(make_cohort, tmp_path, names):
    small = make_cohort(tmp_path / "drawn", [("case1_day0", (40, 64), range(1, 4))])
    scans = next((small.root / "train").rglob("scans"))
    for case in range(1, 4):
        for day in range(2):
            folder = tmp_path / "cohort" / "train" / names[0].format(case) / names[1].format(case, day) / "scans"
            shutil.copytree(scans, folder)
    cases = [names[0].format(case) for case in range(1, 4)]
    assert [scan.case for scan in read_cohort(tmp_path / "cohort").scans] == [case for case in cases for _ in range(2)]


def test_without_case_folders_the_patient_is_the_start_of_the_scans_name(make_cohort, tmp_path):
    small = make_cohort(tmp_path / "drawn", [("case1_day0", (40, 64), range(1, 4))])
    shutil.copytree(next((small.root / "train").rglob("scans")), tmp_path / "cohort" / "train" / "case7_day3" / "scans")
    (scan,) = read_cohort(tmp_path / "cohort").scans
    assert (scan.id, scan.case) == ("case7_day3", "case7")


def test_an_empty_test_folder_is_not_read_as_a_test_set(make_cohort, tmp_path):
    small = make_cohort(tmp_path / "cohort", [("case1_day0", (40, 64), range(1, 4))])
    (small.root / "test").mkdir()
    cohort = read_cohort(small.root, table=False)
    assert [scan.id for scan in cohort.scans] == ["case1_day0"]
    assert cohort.notes == (
        f"{small.root / 'test'}: contains no slices, so the scans in {small.root / 'train'} are read",
    )


def test_the_top_level_folder_of_an_archive_is_entered(make_cohort, tmp_path):
    small = make_cohort(tmp_path / "download" / "competition", [("case1_day0", (40, 64), range(1, 4))])
    cohort = read_cohort(tmp_path / "download")
    assert cohort.root == small.root and cohort.labels == UWMGI and "is read" in cohort.notes[0]


def test_a_table_in_another_folder_is_refused(make_cohort, tmp_path, refusal):
    small = make_cohort(tmp_path / "cohort", [("case1_day0", (40, 64), range(1, 4))])
    shutil.move(small.root / "train.csv", small.root / "train" / "train.csv")
    line = refusal(read_cohort, small.root)
    assert f"{small.root / 'train' / 'train.csv'}: is not next to the images; move it to {small.root}" in line
