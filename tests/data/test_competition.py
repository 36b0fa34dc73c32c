from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from gitseg_tf.data.competition import read_png
from gitseg_tf.data.scans import ORGANS, is_cohort, read_cohort, read_image, read_masks

REAL = Path(__file__).parents[3] / "shared" / "data" / "uwmgi_slices"
SMALL = (("case1_day0", (40, 64), range(1, 5)), ("case2_day3", (48, 40), (2, 5, 6, 11)))


@pytest.fixture
def small(draw, tmp_path):
    """Two scans, to be spoilt."""
    return draw(tmp_path / "cohort", SMALL)


@pytest.fixture
def grey_png(tmp_path):
    """A 16-bit slice with noise, as bytes, and the file to write them to."""
    path = tmp_path / "slice_0001_48_40_1.50_1.50.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 60000, (40, 48)).astype(np.uint16))
    return path, path.read_bytes()


def slices_of(cohort, scan_id):
    return sorted((cohort.root / "train" / scan_id.split("_")[0] / scan_id / "scans").iterdir())


def scan_of(root, scan_id):
    return next(scan for scan in read_cohort(root).scans if scan.id == scan_id)


def test_scans_come_in_the_order_of_their_ids(drawn):
    assert [scan.id for scan in read_cohort(drawn.root).scans] == sorted(scan.id for scan in drawn.scans)


def test_the_days_of_a_patient_are_scans_of_one_case(drawn):
    days = [scan.id for scan in read_cohort(drawn.root).scans if scan.case == "case1"]
    assert days == ["case1_day0", "case1_day5"]


def test_a_file_name_says_the_width_before_the_height(drawn):
    scan = scan_of(drawn.root, "case1_day0")
    assert (scan.shape, scan.spacing) == ((8, 40, 64), (3.0, 1.5, 1.25))


def test_slices_keep_their_16_bit_values(drawn):
    for truth in drawn.scans:
        image = read_image(scan_of(drawn.root, truth.id))
        assert image.dtype == np.uint16 and np.array_equal(image, truth.image)


def test_masks_are_those_of_the_table(drawn):
    for truth in drawn.scans:
        masks = read_masks(scan_of(drawn.root, truth.id))
        assert masks.dtype == bool and np.array_equal(masks, truth.masks)


def test_slice_numbers_need_not_be_contiguous(drawn):
    assert scan_of(drawn.root, "case5_day0").numbers == [1, 2, 3, 7, 8, 9, 10]


def test_numbers_without_leading_zeros_are_ordered_as_numbers(draw, tmp_path):
    draw(tmp_path, [("case1_day0", (40, 64), (2, 10, 9))], labelled=False)
    for path in (tmp_path / "train").rglob("*.png"):
        path.rename(path.with_name(path.name.replace("slice_000", "slice_").replace("slice_00", "slice_")))
    assert scan_of(tmp_path, "case1_day0").numbers == [2, 9, 10]


def test_8_bit_slices_keep_their_values(small):
    path = slices_of(small, "case1_day0")[0]
    values = np.arange(40 * 64).reshape(40, 64).astype(np.uint8)
    cv2.imwrite(str(path), values)
    assert np.array_equal(read_image(scan_of(small.root, "case1_day0"))[0], values)


def test_the_highest_16_bit_value_is_kept(small):
    path = slices_of(small, "case1_day0")[0]
    cv2.imwrite(str(path), np.full((40, 64), 65535, np.uint16))
    assert (read_image(scan_of(small.root, "case1_day0"))[0] == 65535).all()


def test_rows_in_any_order_give_the_same_masks(small, rows_of, save_table):
    rows = rows_of(small.scans)
    np.random.default_rng(0).shuffle(rows)
    save_table(small.root, rows)
    assert all(np.array_equal(read_masks(scan_of(small.root, scan.id)), scan.masks) for scan in small.scans)


def test_columns_in_any_order_give_the_same_masks(small):
    table = pd.read_csv(small.root / "train.csv", dtype=str)
    table.assign(note="x")[["segmentation", "note", "class", "id"]].to_csv(small.root / "train.csv", index=False)
    assert all(np.array_equal(read_masks(scan_of(small.root, scan.id)), scan.masks) for scan in small.scans)


def test_organs_without_a_row_are_absent(small, rows_of, save_table):
    save_table(small.root, [row for row in rows_of(small.scans) if row[2]])
    assert all(np.array_equal(read_masks(scan_of(small.root, scan.id)), scan.masks) for scan in small.scans)


def test_a_scan_without_any_row_has_no_organ(small, rows_of, save_table):
    save_table(small.root, rows_of(small.scans[:1]))
    assert not read_masks(scan_of(small.root, "case2_day3")).any()


def test_a_table_without_rows_is_a_cohort_without_organs(small, save_table):
    save_table(small.root, [])
    assert read_cohort(small.root).labelled and not read_masks(scan_of(small.root, "case1_day0")).any()


@pytest.mark.parametrize("folder", ["train", "test", "."])
def test_slices_without_a_table_are_unlabelled(draw, tmp_path, folder):
    truth = draw(tmp_path, SMALL, labelled=False, folder=folder)
    cohort = read_cohort(tmp_path)
    assert not cohort.labelled and np.array_equal(read_image(cohort.scans[0]), truth.scans[0].image)


def test_unlabelled_scans_have_no_masks_to_read(draw, tmp_path, refusal):
    draw(tmp_path, SMALL, labelled=False)
    assert "case1_day0" in refusal(read_masks, scan_of(tmp_path, "case1_day0"))


def test_a_cohort_is_told_from_other_folders(drawn, tmp_path):
    assert is_cohort(drawn.root) and not is_cohort(tmp_path) and not is_cohort(tmp_path / "none")


def test_the_fingerprint_is_the_same_in_another_place(drawn, draw, tmp_path):
    assert read_cohort(draw(tmp_path / "copy").root).fingerprint == read_cohort(drawn.root).fingerprint


def test_the_fingerprint_changes_with_a_row_of_the_table(small, rows_of, save_table):
    before = read_cohort(small.root).fingerprint
    save_table(small.root, rows_of(small.scans)[:-1])
    assert read_cohort(small.root).fingerprint != before


def test_the_fingerprint_changes_with_a_slice(small, rows_of, save_table):
    save_table(small.root, [])
    before = read_cohort(small.root).fingerprint
    slices_of(small, "case1_day0")[0].unlink()
    assert read_cohort(small.root).fingerprint != before


def test_a_folder_that_is_not_there_is_named(tmp_path, refusal):
    assert f"{tmp_path / 'none'}: no such folder" in refusal(read_cohort, tmp_path / "none")


def test_a_file_instead_of_a_folder_is_named(tmp_path, refusal):
    (tmp_path / "train.zip").write_bytes(b"PK")
    assert f"{tmp_path / 'train.zip'}: no such folder" in refusal(read_cohort, tmp_path / "train.zip")


def test_a_folder_without_slices_is_named(tmp_path, refusal):
    (tmp_path / "train").mkdir()
    assert f"{tmp_path}: no slices" in refusal(read_cohort, tmp_path)


@pytest.mark.parametrize("keep", [0, 4])
def test_a_file_without_the_start_of_a_png_is_no_png(grey_png, refusal, keep):
    path, data = grey_png
    path.write_bytes(data[:keep])
    assert f"{path}: is no PNG" in refusal(read_png, path)


@pytest.mark.parametrize("keep", [8, 20, 33, 40, 500, 1500, -16, -12, -5, -1])
def test_a_png_cut_anywhere_is_truncated(grey_png, refusal, keep):
    path, data = grey_png
    path.write_bytes(data[:keep])
    assert f"{path}: the PNG is truncated" in refusal(read_png, path)


@pytest.mark.parametrize("at", [18, 26, 41, 100, 1000, -18, -2])
def test_a_png_with_one_changed_byte_is_damaged(grey_png, refusal, at):
    path, data = grey_png
    spoilt = bytearray(data)
    spoilt[at] ^= 0x10
    path.write_bytes(spoilt)
    assert f"{path}: the PNG is damaged" in refusal(read_png, path)


def test_damaged_pngs_leave_no_other_noise(grey_png, refusal, capfd):
    path, data = grey_png
    path.write_bytes(data[:1000] + b"????" + data[1004:])
    refusal(read_png, path)
    assert capfd.readouterr() == ("", "")


def test_zeros_after_the_end_of_a_png_do_no_harm(grey_png):
    path, data = grey_png
    whole = read_png(path)
    path.write_bytes(data + bytes(512))
    assert np.array_equal(read_png(path), whole)


def test_a_folder_in_the_place_of_a_slice_is_named(small, refusal):
    path = slices_of(small, "case1_day0")[0]
    path.unlink()
    path.mkdir()
    assert f"{path}: cannot be read" in refusal(read_image, scan_of(small.root, "case1_day0"))


def test_a_broken_slice_is_named_by_its_path(small, refusal):
    path = slices_of(small, "case2_day3")[2]
    path.write_bytes(path.read_bytes()[:-12])
    assert str(path) in refusal(read_image, scan_of(small.root, "case2_day3"))


def test_a_size_that_contradicts_the_name_is_told_both_ways(small, refusal):
    path = slices_of(small, "case1_day0")[1]
    cv2.imwrite(str(path), np.zeros((64, 40), np.uint16))
    said = refusal(read_image, scan_of(small.root, "case1_day0"))
    assert str(path) in said and "40 wide and 64 high" in said and "64 wide and 40 high" in said


@pytest.mark.parametrize("channels", [3, 4])
def test_a_colour_png_is_refused(small, refusal, channels):
    path = slices_of(small, "case1_day0")[0]
    cv2.imwrite(str(path), np.zeros((40, 64, channels), np.uint8))
    assert f"{path}: has {channels} channels" in refusal(read_image, scan_of(small.root, "case1_day0"))


@pytest.mark.parametrize(
    "name",
    ["slice_0009.png", "slice_0009_64_40_1.50.png", "slice_x_64_40_1.25_1.50.png", "0009_64_40_1.25_1.50.png"],
)
def test_a_name_that_says_no_geometry_is_refused(small, refusal, name):
    path = slices_of(small, "case1_day0")[0]
    path.rename(path.with_name(name))
    assert str(path.with_name(name)) in refusal(read_cohort, small.root)


def test_a_name_with_a_pixel_size_of_zero_is_refused(draw, tmp_path, refusal):
    draw(tmp_path, SMALL[:1], labelled=False)
    for path in (tmp_path / "train").rglob("*.png"):
        path.rename(path.with_name(path.name.replace("_1.50.png", "_0.00.png")))
    assert "pixel size of 0" in refusal(read_cohort, tmp_path)


def test_two_geometries_in_a_scan_are_refused(small, refusal):
    path = slices_of(small, "case1_day0")[0]
    path.rename(path.with_name("slice_0001_64_40_1.63_1.63.png"))
    said = refusal(read_cohort, small.root)
    assert str(path.parent) in said and "one geometry" in said


def test_a_slice_number_given_twice_is_refused(small, refusal):
    path = slices_of(small, "case1_day0")[0]
    path.with_name(path.name.replace("0001", "001")).write_bytes(path.read_bytes())
    assert "slice 1 is there twice" in refusal(read_cohort, small.root)


def test_a_scan_in_two_folders_is_refused(draw, tmp_path, refusal):
    draw(tmp_path, SMALL, labelled=False, folder="train/a")
    draw(tmp_path, SMALL, labelled=False, folder="train/b")
    assert "case1_day0 is there in two folders" in refusal(read_cohort, tmp_path)


def test_a_row_without_image_is_named(small, refusal, rows_of, save_table):
    save_table(small.root, [*rows_of(small.scans), ("case1_day0_slice_0077", "stomach", "1 2")])
    assert "train.csv: case1_day0_slice_0077 has no image" in refusal(read_cohort, small.root)


def test_a_row_of_a_scan_that_is_not_there_is_named(small, refusal, rows_of, save_table):
    save_table(small.root, [*rows_of(small.scans), ("case9_day0_slice_0001", "stomach", "")])
    assert "train.csv: case9_day0_slice_0001 has no image" in refusal(read_cohort, small.root)


def test_rows_without_image_are_listed_on_demand(small, rows_of, save_table):
    orphans = ("case9_day0_slice_0001", "case1_day0_slice_0077")
    save_table(
        small.root, rows_of(small.scans) + [(i, organ, "1 2") for i in orphans for organ in ("stomach", "small_bowel")]
    )
    cohort = read_cohort(small.root, list_orphans=True)
    assert sorted(cohort.orphans) == sorted(orphans)
    assert {scan.id for scan in cohort.scans} == {scan.id for scan in small.scans}


def test_a_row_given_twice_is_named(small, refusal, rows_of, save_table):
    rows = rows_of(small.scans)
    save_table(small.root, [*rows, rows[4]])
    said = refusal(read_cohort, small.root)
    assert f"train.csv: {rows[4][0]}, {rows[4][1]} is there twice" in said


def test_an_unknown_class_is_told_with_the_known_ones(small, refusal, rows_of, save_table):
    save_table(small.root, [*rows_of(small.scans), ("case1_day0_slice_0001", "liver", "")])
    said = refusal(read_cohort, small.root)
    assert "train.csv: unknown class 'liver'" in said and all(organ in said for organ in ORGANS)


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
def test_a_table_that_is_no_csv_is_refused(small, refusal, content):
    (small.root / "train.csv").write_bytes(content)
    assert "train.csv: cannot be read as CSV" in refusal(read_cohort, small.root)


def test_blank_lines_are_passed_over_and_a_row_of_another_width_is_named(small, refusal):
    table = small.root / "train.csv"
    before = read_cohort(small.root).scans
    table.write_text("\n" + table.read_text().replace("\n", "\n\n"))
    assert read_cohort(small.root).scans == before
    table.write_text("id,class,segmentation\ncase1_day0_slice_0001,stomach,1 2,7\n")
    assert "train.csv: line 2 has 4 cells, the header 3" in refusal(read_cohort, small.root)


@pytest.mark.parametrize("rle", ["2550 20", "3 x", "7", "0 2", "5 5 6 2"])
def test_a_wrong_run_length_string_is_named_by_slice_and_organ(small, refusal, rows_of, save_table, rle):
    rows = [row for row in rows_of(small.scans) if row[:2] != ("case1_day0_slice_0003", "small_bowel")]
    save_table(small.root, [*rows, ("case1_day0_slice_0003", "small_bowel", rle)])
    said = refusal(read_masks, scan_of(small.root, "case1_day0"))
    assert "train.csv, case1_day0_slice_0003, small_bowel: " in said and repr(rle) in said


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real slices at {REAL.name} beside the project")
def test_real_slices_and_contours_are_read():
    cohort = read_cohort(REAL)
    table = pd.read_csv(REAL / "train.csv", keep_default_na=False)
    inside = sum(sum(map(int, rle.split()[1::2])) for rle in table["segmentation"])
    assert sum(scan.shape[0] for scan in cohort.scans) == table["id"].nunique()
    assert sum(int(read_masks(scan).sum()) for scan in cohort.scans) == inside
    for scan in cohort.scans:
        stored = [cv2.imread(str(item.path), cv2.IMREAD_UNCHANGED) for item in scan.source.slices]
        assert np.array_equal(read_image(scan), stored)
