"""The phantom cohort: its layout, its determinism, and its resemblance to abdominal MR."""

import hashlib
import re

import cv2
import numpy as np
import pandas as pd
import pytest

from gitseg_tf.data.readers.rle import rle_to_mask
from gitseg_tf.errors import GitsegError
from gitseg_tf.labels import UWMGI
from gitseg_tf.phantom import make_phantom, render_scan

CASES, DAYS, SLICES, SEED = 2, 2, 24, 3
SIZE = {"cases": CASES, "days": DAYS, "slices": SLICES, "seed": SEED}
NAME = re.compile(r"train/case(\d+)/case\1_day(\d+)/scans/slice_(\d{4})_(\d+)_(\d+)_1\.50_1\.50\.png")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_phantom(tmp_path_factory.mktemp("phantom") / "cohort", **SIZE, workers=2)


@pytest.fixture(scope="module")
def table(cohort):
    return pd.read_csv(cohort / "train.csv", keep_default_na=False)


@pytest.fixture(scope="module")
def scans():
    return {(case, day): render_scan(case, day, SLICES, SEED) for case in (1, 2) for day in (0, 1)}


@pytest.fixture(scope="module")
def full_scan():
    return render_scan(1, 0)


def pngs(cohort):
    return sorted(path for path in cohort.glob("train/**/*") if path.is_file())


def digests(cohort):
    return {
        str(path.relative_to(cohort)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in cohort.rglob("*")
        if path.is_file()
    }


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_files_are_named_as_in_the_competition(cohort):
    found = [NAME.fullmatch(path.relative_to(cohort).as_posix()) for path in pngs(cohort)]
    assert all(found)
    keys = {(int(m[1]), int(m[2]), int(m[3])) for m in found}
    assert keys == {(c, d, n) for c in (1, 2) for d in range(DAYS) for n in range(1, SLICES + 1)}


def test_slices_are_16_bit_with_the_size_in_their_names(cohort):
    for path in pngs(cohort)[:: SLICES // 4]:
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        _, _, width, height, _, _ = path.stem.split("_")
        assert image.dtype == np.uint16
        assert image.shape == (int(height), int(width))


def test_both_geometries_occur(cohort):
    assert {tuple(path.stem.split("_")[2:4]) for path in pngs(cohort)} == {("266", "266"), ("360", "310")}


def test_the_table_has_three_rows_per_slice_in_the_order_of_the_competition(table):
    assert list(table.columns) == ["id", "class", "segmentation"]
    ids = [f"case{c}_day{d}_slice_{n:04d}" for c in (1, 2) for d in range(DAYS) for n in range(1, SLICES + 1)]
    assert table["id"].tolist() == [name for name in ids for _ in UWMGI]
    assert table["class"].tolist() == list(UWMGI.names) * len(ids)


def test_run_lengths_decode_to_the_masks(table, scans):
    for (case, day), scan in scans.items():
        rows = table[table.id.str.startswith(f"case{case}_day{day}_")].segmentation
        size = scan.image.shape[1:]
        masks = np.stack([rle_to_mask(rle, size) for rle in rows]).reshape(SLICES, 3, *size)
        np.testing.assert_array_equal(masks.swapaxes(0, 1), scan.masks)


def test_files_contain_the_rendered_image(cohort, scans):
    path = next(cohort.glob("train/case2/case2_day1/scans/slice_0012_*.png"))
    np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), scans[2, 1].image[11])


def test_the_number_of_workers_does_not_change_the_bytes(cohort, tmp_path):
    assert digests(make_phantom(tmp_path / "again", **SIZE, workers=1)) == digests(cohort)


def test_a_different_seed_gives_a_different_cohort(scans):
    assert dice(render_scan(1, 0, SLICES, SEED + 1).masks, scans[1, 0].masks) < 0.95


def test_patients_differ():
    # The same geometry, so that the masks can be compared.
    assert dice(render_scan(1, 0, SLICES, SEED).masks, render_scan(3, 0, SLICES, SEED).masks) < 0.9


@pytest.mark.parametrize("case", [1, 2])
def test_days_of_a_patient_are_similar_but_not_equal(scans, case):
    overlap = dice(scans[case, 0].masks.any(axis=0), scans[case, 1].masks.any(axis=0))
    assert 0.3 < overlap < 0.98


def test_labels_are_present_in_every_scan_but_not_on_end_slices(scans):
    for scan in scans.values():
        assert scan.masks.any(axis=(1, 2, 3)).all()
        assert not scan.masks[:, [0, -1]].any()


def test_stomach_lies_above_the_small_bowel_on_the_patients_left(full_scan):
    center = {name: np.argwhere(mask).mean(axis=0) for name, mask in zip(UWMGI.names, full_scan.masks, strict=True)}
    assert center["stomach"][0] < center["small_bowel"][0] - 10
    assert center["stomach"][2] > full_scan.image.shape[2] / 2


def test_label_volumes_are_anatomically_plausible(full_scan):
    milliliters = full_scan.masks.sum(axis=(1, 2, 3)) * np.prod(full_scan.spacing) / 1000
    for volume, (low, high) in zip(milliliters, ((350, 1400), (300, 1100), (150, 950)), strict=True):
        assert low < volume < high


def test_labels_have_no_slivers(full_scan):
    # An independent measure of thickness: the masks must survive an opening 3 pixels wide almost unchanged.
    square = np.ones((3, 3), np.uint8)
    for mask in full_scan.masks:
        opened = [cv2.morphologyEx(plane.view(np.uint8), cv2.MORPH_OPEN, square) for plane in mask]
        assert np.sum(opened) > 0.995 * mask.sum()


def test_air_is_rayleigh_distributed(full_scan):
    corner = full_scan.image[:, :24, :24].astype(float)
    # A Rayleigh distribution's mean is sigma sqrt(pi / 2), its standard deviation sigma sqrt(2 - pi / 2).
    assert corner.mean() / corner.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.03)


def test_gas_is_darkest_and_fat_is_brightest(full_scan):
    image, (colon, bowel, stomach) = full_scan.image.astype(float), full_scan.masks
    air = image[:, :24, :24].mean()
    assert np.percentile(image[colon], 5) < 3 * air
    assert np.median(image[bowel]) > 2 * np.percentile(image[colon], 25)
    assert np.percentile(image[stomach], 2) < 0.4 * np.median(image[stomach])
    outside = np.percentile(image[~full_scan.masks.any(axis=0)], 95)
    assert outside > 1.4 * np.median(image[bowel])


def test_the_preview_is_an_8_bit_picture_of_moderate_size(cohort):
    picture = cv2.imread(str(cohort / "preview.png"), cv2.IMREAD_UNCHANGED)
    assert picture.dtype == np.uint8
    assert 1500 < picture.shape[1] < 1700
    assert (cohort / "preview.png").stat().st_size < 700_000


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(GitsegError, match=r"exists and is not an empty folder") as error:
        make_phantom(tmp_path, cases=1, days=1, slices=SLICES)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert not tmp_path.with_name(tmp_path.name + ".partial").exists()


def test_leftovers_are_replaced_and_a_smaller_cohort_has_the_same_patients(cohort, tmp_path):
    (tmp_path / "cohort.partial" / "train").mkdir(parents=True)
    (tmp_path / "cohort.partial" / "train" / "old.txt").write_text("half")
    (tmp_path / "cohort").mkdir()
    out = make_phantom(tmp_path / "cohort", **SIZE | {"cases": 1, "days": 1}, workers=1)
    assert sorted(path.name for path in out.iterdir()) == ["preview.png", "train", "train.csv"]
    assert not (out / "train" / "old.txt").exists()
    assert not (tmp_path / "cohort.partial").exists()
    known = digests(cohort)
    small = {name: digest for name, digest in digests(out).items() if name.startswith("train/")}
    assert len(small) == SLICES
    assert small == {name: known[name] for name in small}


@pytest.mark.parametrize("wrong", [{"cases": 0}, {"days": 0}, {"slices": 23}, {"seed": -1}, {"workers": 0}])
def test_out_of_range_arguments_are_a_one_line_error(tmp_path, wrong):
    with pytest.raises(GitsegError, match=next(iter(wrong))) as error:
        make_phantom(tmp_path / "cohort", **wrong)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
