"""Findings of the dataset check for good scans, for scans with known defects, and for damaged files."""

import base64
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from gitseg_tf.cli import main
from gitseg_tf.data.readers.base import Cohort
from gitseg_tf.data.volume import Annotation, LoadedScan, Volume
from gitseg_tf.inspection import contour_checks, inspect_data, page, summary_lines, write_page
from gitseg_tf.inspection import inspect as inspection
from gitseg_tf.inspection.contour_fit import contour_fits
from gitseg_tf.inspection.findings import ranges, robust_z
from gitseg_tf.inspection.measurements import body_mask, body_threshold, measure
from gitseg_tf.labels import UWMGI, LabelSet

LARGE, SMALL, STOMACH = range(3)
DEPTH, SIZE = 30, 96
SPACING = (3.0, 2.0, 1.5)


def ellipse(shape, center, radii):
    y, x = np.ogrid[: shape[0], : shape[1]]
    return ((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 < 1


def synthetic_abdomen(seed):
    """Image and masks of an abdomen in a gray body, with the stomach on the right of the picture, above the bowels."""
    random = np.random.default_rng(seed)
    y, x = random.uniform(-2, 2, 2)
    size = random.uniform(0.93, 1.07)
    masks = np.zeros((3, DEPTH, SIZE, SIZE), bool)
    for z in range(DEPTH):
        grow = z / 12
        if 3 <= z < 14:
            masks[STOMACH, z] = ellipse((SIZE, SIZE), (40 + y + grow, 63 + x), (9 * size, 8 + grow))
        if 9 <= z < 28:
            masks[LARGE, z] = ellipse((SIZE, SIZE), (44 + y, 26 + x + grow), (10 * size, 7 + grow))
        if 12 <= z < 28:
            masks[SMALL, z] = ellipse((SIZE, SIZE), (55 + y + 2 * grow, 50 + x), (7 * size, 10 + grow))
    body = ellipse((SIZE, SIZE), (48 + y, 47 + x), (32, 42))
    image = np.where(body, 300.0, 0.0) + np.zeros((DEPTH, 1, 1))
    for label, value in ((LARGE, 40), (SMALL, 520), (STOMACH, 130)):
        image[masks[label]] = value
    image = cv2.GaussianBlur(image.transpose(1, 2, 0), (0, 0), 0.8).transpose(2, 0, 1)
    noise = random.normal(0, 12, image.shape)
    return np.abs(image + noise).astype(np.uint16), masks


@pytest.fixture(scope="module")
def cohort():
    """Six good scans of three patients."""
    scans = []
    for seed in range(6):
        image, masks = synthetic_abdomen(seed)
        case = f"case{seed // 2}"
        volume, annotation = Volume(image, SPACING), Annotation.complete(masks)
        scans.append(LoadedScan(f"{case}_day{seed}", case, volume, annotation))
    return scans


def find(facts, labels=UWMGI):
    return inspection.find(facts, labels)


def with_masks(scan, masks):
    return replace(scan, annotation=Annotation.complete(masks))


@pytest.fixture(scope="module")
def facts(cohort):
    return [measure(scan) for scan in cohort]


@pytest.fixture
def damaged(cohort, facts):
    """damaged(change) alters or replaces the masks of the third scan and returns the findings in the cohort."""

    def apply(change):
        masks = cohort[2].annotation.masks.copy()
        changed = change(masks)
        masks = masks if changed is None else np.ascontiguousarray(changed)
        return list(find([*facts[:2], measure(with_masks(cohort[2], masks)), *facts[3:]]))

    return apply


def found(findings, check):
    return [finding for finding in findings if finding.check == check]


def moved(masks, dy, dx):
    return np.roll(masks, (dy, dx), (-2, -1))


def test_a_good_cohort_has_no_findings(facts):
    assert list(find(facts)) == []


def test_contours_shifted_in_all_slices_are_found_with_the_correction(damaged):
    (finding,) = found(damaged(lambda masks: moved(masks, 0, 9)), "shifted")
    assert finding.severity == "error" and finding.scan == "case1_day2"
    assert "9 pixels left" in finding.text and " up" not in finding.text and " down" not in finding.text
    assert finding.slices == tuple(range(4, 29))


def test_contours_shifted_in_a_block_of_slices_are_found_at_its_ends(damaged):
    def shift(masks):
        masks[:, 16:22] = moved(masks[:, 16:22], 0, 6)

    jumps = found(damaged(shift), "jump")
    assert [finding.slices for finding in jumps] == [(16, 17), (22, 23)]
    assert all("shift by 9 mm" in finding.text for finding in jumps)


def test_contours_shifted_in_one_slice_are_found(damaged):
    def shift(masks):
        masks[:, 20] = moved(masks[:, 20], 6, 0)

    assert [finding.slices for finding in found(damaged(shift), "jump")] == [(20, 21), (21, 22)]


def test_slices_across_a_gap_are_not_compared(cohort, facts):
    def shift(masks):
        return np.concatenate([masks[:, :20], moved(masks[:, 20:], 0, 6)], axis=1)

    numbers = (*range(1, 21), *range(31, 41))
    shifted = with_masks(cohort[2], shift(cohort[2].annotation.masks))
    assert found(find([*facts[:2], measure(shifted)]), "jump")
    assert not found(
        find([*facts[:2], measure(replace(shifted, volume=replace(shifted.volume, numbers=numbers)))]), "jump"
    )


def test_contours_offset_along_z_are_found_with_the_correction(damaged):
    (finding,) = found(damaged(lambda masks: np.roll(masks, 2, 1)), "offset along z")
    assert "2 slices lower" in finding.text


def test_mirrored_contours_are_found(damaged):
    findings = damaged(lambda masks: masks[..., ::-1])
    assert found(findings, "mirrored") and (found(findings, "poor fit") or found(findings, "shifted"))


def test_upside_down_contours_are_found(damaged):
    findings = damaged(lambda masks: masks[..., ::-1, :])
    assert found(findings, "poor fit") or found(findings, "shifted")


def test_contours_in_reverse_slice_order_are_found(damaged):
    (finding,) = found(damaged(lambda masks: masks[:, ::-1]), "wrong order")
    assert finding.scan == "case1_day2"


def test_stomach_and_bowel_swapped_in_the_whole_scan_are_found(damaged):
    assert found(damaged(lambda masks: masks[[STOMACH, SMALL, LARGE]]), "wrong order")


def test_labels_swapped_on_some_slices_are_found_at_both_ends(damaged):
    def exchange(masks):
        masks[:, 18:22] = masks[[SMALL, LARGE, STOMACH], 18:22]

    findings = found(damaged(exchange), "swapped")
    assert [finding.slices for finding in findings] == [(18, 19), (22, 23)]
    assert all("large bowel and small bowel are swapped" in finding.text for finding in findings)


def test_contours_copied_from_another_scan_are_found(damaged, cohort):
    findings = damaged(lambda masks: cohort[5].annotation.masks)
    (copied,) = [finding for finding in found(findings, "repeated contour") if finding.severity == "error"]
    assert {"case1_day2", "case2_day5"} <= set(re.findall(r"case\d_day\d", copied.scan + copied.text))


def test_a_few_contours_copied_from_another_scan_are_a_warning(damaged, cohort):
    def copy(masks):
        masks[SMALL, 20:23] = cohort[0].annotation.masks[SMALL, 20:23]

    (finding,) = found(damaged(copy), "repeated contour")
    assert (finding.severity, finding.scan, finding.slices) == ("warning", "case1_day2", (21, 22, 23))


def test_contours_of_a_duplicated_scan_are_not_reported_separately(cohort, facts):
    masks = cohort[0].annotation.masks.copy()
    masks[:, 17] = masks[:, 16]
    twice = [measure(replace(with_masks(cohort[0], masks), id=name)) for name in ("case0_day0", "case0_day9")]
    findings = list(find([*twice, *facts[1:]]))
    assert not found(findings, "repeated contour") and len(found(findings, "repeated image")) == 1


def test_a_contour_repeated_on_several_slices_is_found(damaged):
    def repeat(masks):
        masks[SMALL, 15:19] = masks[SMALL, 15]

    (finding,) = found(damaged(repeat), "repeated contour")
    assert finding.slices == (16, 17, 18, 19) and "small bowel" in finding.text


def test_one_contour_on_two_adjacent_slices_is_accepted(damaged):
    def repeat(masks):
        masks[SMALL, 16] = masks[SMALL, 15]

    assert damaged(repeat) == []


def test_an_identical_contour_for_two_labels_is_found(damaged):
    def repeat(masks):
        masks[SMALL, 15] = masks[LARGE, 15]

    (finding,) = found(damaged(repeat), "repeated contour")
    assert finding.slices == (16,) and "two labels" in finding.text


def test_a_label_missing_on_slices_in_between_is_found(damaged):
    def interrupt(masks):
        masks[LARGE, 17:20] = False

    (finding,) = damaged(interrupt)
    assert (finding.check, finding.slices) == ("interrupted", (18, 19, 20)) and "large bowel" in finding.text


def test_an_isolated_labeled_slice_is_found(damaged):
    def isolate(masks):
        masks[STOMACH, 25] = ellipse((SIZE, SIZE), (50, 60), (5, 5))

    (finding,) = found(damaged(isolate), "isolated slices")
    assert finding.slices == (26,) and "stomach" in finding.text


def test_contours_in_air_are_found(damaged):
    def into_air(masks):
        masks[SMALL, 20] = ellipse((SIZE, SIZE), (8, 8), (6, 6))

    (finding,) = found(damaged(into_air), "outside body")
    assert finding.slices == (21,) and "small bowel" in finding.text


def test_a_label_with_an_unusual_volume_is_found(damaged):
    def shrink(masks):
        masks[SMALL] &= ellipse((SIZE, SIZE), (55, 50), (2, 3))

    (finding,) = found(damaged(shrink), "unusual volume")
    assert "small bowel" in finding.text


def test_a_missing_label_is_found(damaged):
    def lose(masks):
        masks[STOMACH] = False

    (finding,) = damaged(lose)
    assert (finding.check, finding.scan) == ("missing label", "case1_day2") and "stomach is absent" in finding.text


def test_a_mirrored_scan_is_found_even_if_its_contours_fit(cohort, facts):
    volume = replace(cohort[2].volume, voxels=cohort[2].volume.voxels[..., ::-1].copy())
    mirrored = replace(with_masks(cohort[2], cohort[2].annotation.masks[..., ::-1].copy()), volume=volume)
    findings = list(find([*facts[:2], measure(mirrored), *facts[3:]]))
    assert found(findings, "mirrored") and not found(findings, "poor fit")


def test_contours_on_small_slices_are_not_compared_with_the_image(cohort):
    """Most shifted copies would lie outside the image, where nothing can be compared."""
    small = []
    for scan in cohort:
        volume = replace(scan.volume, voxels=np.ascontiguousarray(scan.volume.voxels[..., 24:80]))
        masks = np.ascontiguousarray(np.roll(scan.annotation.masks, 12, 2)[..., 24:80])
        small.append(measure(replace(with_masks(scan, masks), volume=volume)))
    assert all(scan.contours.fits == [] for scan in small)
    (finding,) = found(find(small), "small slices")
    assert finding.severity == "note" and finding.text.startswith("6 scans have slices less than 96 pixels")


def test_a_small_cohort_is_not_compared_and_a_note_says_so(facts):
    (finding,) = find(facts[:3])
    assert (finding.severity, finding.check) == ("note", "small cohort") and finding.text.startswith(
        "3 scans with contours have 20 slices"
    )


def test_partial_scans_are_not_compared_with_each_other(cohort):
    pieces = [
        replace(
            with_masks(scan, scan.annotation.masks[:, at : at + 3]),
            volume=Volume(scan.volume.voxels[at : at + 3], SPACING),
        )
        for scan, at in zip(cohort, (0, 5, 10, 15, 20, 25), strict=True)
    ]
    assert [finding for finding in find([measure(piece) for piece in pieces]) if finding.severity != "note"] == []


def test_contour_fits_find_a_known_shift(cohort):
    """One outline with one known shift: the gradient under the outline relative to that under its copies."""
    image = np.zeros((9, 100, 100), np.uint16)
    image[:, 30:50, 30:50] = 1000
    masks = np.zeros((3, 9, 100, 100), bool)
    masks[0, :, 30:50, 39:59] = True
    whole = contour_fits(image, masks)[0]
    assert whole.shift == (0, -9) and whole.slices == 9 and (whole.first, whole.last) == (0, 8)
    assert whole.gain > 1.5
    fitting = np.roll(masks, -9, 3)
    assert contour_fits(image, fitting)[0].gain == 1.0
    assert contour_fits(image, fitting)[0].contrast > 4


def test_contours_on_a_flat_image_have_contrast_one(cohort):
    flat = np.full_like(cohort[0].volume.voxels, 100)
    assert contour_fits(flat, cohort[0].annotation.masks)[0].contrast == 1.0
    assert contour_fits(flat, np.zeros_like(cohort[0].annotation.masks)) == []


def test_the_body_mask_includes_dark_bowel_and_excludes_air(cohort):
    image, masks = cohort[0].volume.voxels, cohort[0].annotation.masks
    body = body_mask(image[20], body_threshold(cohort[0].volume.percentiles[0]))
    inside, outside = ellipse((SIZE, SIZE), (48, 47), (27, 37)), ellipse((SIZE, SIZE), (48, 47), (39, 52))
    assert body[inside].all() and body[masks[LARGE, 20]].all() and not body[~outside].any()


def test_volumes_and_centers_match_numpy(cohort, facts):
    for label, volume in enumerate(facts[0].volumes_ml):
        mask = cohort[0].annotation.masks[label]
        assert volume == pytest.approx(mask.sum() * 3 * 2 * 1.5 / 1000)
        assert facts[0].contours.centers[label, 0] == pytest.approx(np.nonzero(mask)[0].mean() * 3)


def test_robust_z_is_median_and_scaled_deviation():
    values = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
    assert robust_z(values, 0.1)[4] == pytest.approx((100 - 3) / 1.4826)
    assert robust_z(np.array([1.0, 1.0, 1.0, 2.0]), 0.5)[3] == 2.0
    assert np.isnan(robust_z(np.array([1.0, np.nan]), 1.0)[1])


@pytest.mark.parametrize(("numbers", "text"), [((), ""), ((4,), "4"), ((9, 3, 4, 5), "3-5, 9")])
def test_numbers_are_written_as_ranges(numbers, text):
    assert ranges(numbers) == text


def pngs(root, scan):
    return sorted((root / "train" / scan.split("_")[0] / scan / "scans").glob("*.png"))


@pytest.fixture
def files(tiny_cohort, tmp_path):
    """A copy of the synthetic cohort, to be damaged."""
    shutil.copytree(tiny_cohort.root, tmp_path / "cohort")
    return tmp_path / "cohort"


def test_rows_without_an_image_are_findings(files, tiny_cohort, rows_of, save_table):
    save_table(files, [*rows_of(tiny_cohort.scans), ("case1_day0_slice_0077", "stomach", "1 2")])
    inspection = inspect_data(files)
    (finding,) = found(inspection.findings, "row without image")
    assert (finding.severity, finding.scan, finding.slices) == ("error", "case1_day0", (77,))
    assert len(inspection.scans) == len(tiny_cohort.scans)


def test_a_damaged_image_and_a_damaged_contour_are_findings(files, tiny_cohort, rows_of, save_table):
    path = pngs(files, "case2_day0")[3]
    path.write_bytes(path.read_bytes()[:-20])
    rows = [
        (i, o, "1 2 3" if (i, o) == ("case3_day0_slice_0002", "stomach") else r)
        for i, o, r in rows_of(tiny_cohort.scans)
    ]
    save_table(files, rows)
    inspection = inspect_data(files)
    broken = found(inspection.findings, "unreadable")
    assert [(finding.severity, finding.scan) for finding in broken] == [
        ("error", "case2_day0"),
        ("error", "case3_day0"),
    ]
    assert path.name in broken[0].text and "case3_day0_slice_0002" in broken[1].text
    assert len(inspection.scans) == len(tiny_cohort.scans) - 2


def test_an_invalid_scan_is_a_finding_and_the_others_are_inspected(files, tiny_cohort, tmp_path, capsys):
    path = pngs(files, "case2_day0")[3]
    path.rename(path.with_name("slice_4.png"))
    inspection = inspect_data(files)
    (broken,) = found(inspection.findings, "unreadable")
    assert (broken.severity, broken.scan) == ("error", "case2_day0") and "slice_4.png" in broken.text
    assert not found(inspection.findings, "row without image")
    assert len(inspection.scans) == len(tiny_cohort.scans) - 1
    page = tmp_path / "page.html"
    assert main(["inspect", str(files), "--out", str(page)]) == 0
    assert "slice_4.png" in capsys.readouterr().out and "slice_4.png" in page.read_text()
    assert main(["inspect", str(files), "--out", str(page), "--strict"]) == 1


def test_a_damaged_dicom_file_is_a_finding_and_the_other_series_are_inspected(patients, write, clinic):
    for index in range(2):
        write(index).write_series().write_structures()
    (clinic / patients.scans[1].id / "IM0099.dcm").write_bytes(b"no")
    inspection = inspect_data(clinic)
    broken = [finding for finding in inspection.findings if finding.check == "unreadable"]
    assert len(broken) == 1 and "IM0099.dcm: is not a DICOM file" in broken[0].text
    (scan,) = inspection.scans
    assert scan.case == patients.scans[0].case and scan.contours.areas.any()


def test_repeated_and_blank_images_are_findings(files):
    first, second = pngs(files, "case6_day0")[:2]
    shutil.copy(first, second)
    blank = pngs(files, "case4_day0")[2]
    cv2.imwrite(str(blank), np.full((40, 64), 7, np.uint16))
    findings = inspect_data(files).findings
    (repeated,), (empty,) = found(findings, "repeated image"), found(findings, "blank image")
    assert (repeated.scan, repeated.slices) == ("case6_day0", (1, 2))
    assert (empty.scan, empty.slices) == ("case4_day0", (3,))


def test_images_repeated_across_scans_are_errors(files):
    for source, target in zip(pngs(files, "case3_day0"), pngs(files, "case3_day7"), strict=True):
        shutil.copy(source, target)
    (same,) = found(inspect_data(files).findings, "repeated image")
    assert (
        same.severity == "error"
        and "all slices are identical to those of case3_day7" in same.text
        and "patient" not in same.text
    )
    shutil.copy(pngs(files, "case1_day0")[4], pngs(files, "case6_day0")[7])
    (other,) = [f for f in found(inspect_data(files).findings, "repeated image") if f.scan == "case1_day0"]
    assert (
        other.severity == "error"
        and other.slices == (5,)
        and "case6_day0, which belongs to another patient" in other.text
    )


def test_gaps_in_the_slice_numbers_are_notes(tiny_cohort):
    (finding,) = found(inspect_data(tiny_cohort.root).findings, "missing slices")
    assert (finding.severity, finding.scan, finding.slices) == ("note", "case5_day0", (4, 5, 6))


def test_a_cohort_without_contours_is_inspected(make_cohort, tmp_path):
    make_cohort(tmp_path / "cohort", labeled=False)
    inspection = inspect_data(tmp_path / "cohort")
    assert {finding.check for finding in inspection.findings} == {"missing slices"}
    write_page(inspection, tmp_path / "page.html")
    assert "0 with contours" in (tmp_path / "page.html").read_text()


def test_a_dataset_gives_the_findings_of_its_cohort_and_lists_folds(tiny_cohort, tiny_dataset):
    cohort, dataset = inspect_data(tiny_cohort.root), inspect_data(tiny_dataset.root)
    by_id = {scan.id: scan for scan in dataset.scans}
    for scan in cohort.scans:
        other = by_id[scan.id]
        assert (other.case, other.numbers, other.shape) == (scan.case, scan.numbers, scan.shape)
        assert other.spacing == scan.spacing and other.image_digests == scan.image_digests
        assert other.contours.digests == scan.contours.digests
    assert sorted(map(str, cohort.findings)) == sorted(map(str, dataset.findings))
    lines = summary_lines(dataset)
    assert sum(line.startswith("fold ") for line in lines) == 3 and not any("fold" in s for s in summary_lines(cohort))
    assert f"{len({s.case for s in tiny_cohort.scans})} patients, {len(tiny_cohort.scans)} scans" in lines[0]


def test_nifti_and_the_competition_layout_give_the_same_measurements(tiny_cohort, tmp_path, nifti):
    for scan in tiny_cohort.scans[:2]:
        affine = nifti.affine_of(scan, "RAS")
        nifti.save(tmp_path / scan.id / "image.nii.gz", nifti.stored_as(scan.image, "RAS"), affine)
        for label, mask in zip(UWMGI.names, scan.masks, strict=True):
            nifti.save(tmp_path / scan.id / f"{label}.nii.gz", nifti.stored_as(mask, "RAS"), affine, np.uint8)
    expected = {scan.id: scan for scan in inspect_data(tiny_cohort.root).scans}
    scans = inspect_data(tmp_path).scans
    assert [scan.id for scan in scans] == ["case1_day0", "case1_day5"]
    for scan in scans:
        assert scan.image_digests == expected[scan.id].image_digests
        assert scan.volumes_ml == pytest.approx(expected[scan.id].volumes_ml)
        assert scan.contours.digests == expected[scan.id].contours.digests


class Page(HTMLParser):
    """The URLs and pictures of a page."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.pictures = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") and not value.startswith("#"):
                self.addresses.append(value)
                if value.startswith("data:image/jpeg;base64,"):
                    data = np.frombuffer(base64.b64decode(value.partition(",")[2]), np.uint8)
                    self.pictures.append(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE))


def test_the_page_shows_findings_and_loads_no_external_resources(files, tmp_path):
    shutil.copy(*pngs(files, "case6_day0")[:2])
    inspection = inspect_data(files)
    write_page(inspection, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert page.pictures and all(picture.shape in ((40, 64), (48, 40)) for picture in page.pictures)
    assert all(finding.scan in text and finding.check in text for finding in inspection.findings)
    assert sorted(os.listdir(tmp_path)) == ["cohort", "page.html"]


def test_inspect_writes_the_page_and_strict_fails_on_findings(make_cohort, tmp_path, capsys):
    cohort, page = tmp_path / "cohort", tmp_path / "page.html"
    make_cohort(cohort, [("case6_day0", (40, 64), range(1, 13))], labeled=False)
    shutil.copy(*pngs(cohort, "case6_day0")[:2])
    assert main(["inspect", str(cohort), "--out", str(page)]) == 0
    assert "repeated image: case6_day0 slices 1-2" in capsys.readouterr().out and page.is_file()
    assert main(["inspect", str(cohort), "--out", str(page), "--strict"]) == 1
    assert f"{cohort}: 0 errors, 1 warning; " in capsys.readouterr().err.splitlines()[-1]


def test_strict_ignores_notes(tmp_path, make_cohort, capsys):
    make_cohort(tmp_path / "cohort", [("case5_day0", (48, 40), (1, 2, 3, 7, 8, 9, 10))], labeled=False)
    assert main(["inspect", str(tmp_path / "cohort"), "--out", str(tmp_path / "page.html"), "--strict"]) == 0
    assert "1 note" in capsys.readouterr().out


def test_a_folder_without_data_is_refused(tmp_path, capsys):
    assert main(["inspect", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 1
    assert "no slices found" in capsys.readouterr().err and not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("name", ["train.csv", "nowhere/page.html"])
def test_an_invalid_page_path_is_refused_before_inspection(tiny_cohort, tmp_path, capsys, name):
    assert main(["inspect", str(tiny_cohort.root), "--out", str(tmp_path / name)]) == 1
    printed = capsys.readouterr()
    assert "--out" in printed.err and ".html" in printed.err and not printed.out and not os.listdir(tmp_path)


def anatomy_with(cohort, more, unannotated=()):
    """The scans of the cohort with more labels, which are shifted copies of the small bowel, and their LabelSet."""
    labels = LabelSet.from_tree([*UWMGI, *(f"part {k}" for k in range(more))])
    scans = []
    for scan in cohort:
        masks = scan.annotation.masks
        copies = [np.roll(masks[SMALL], k + 1, axis=1) for k in range(more)]
        masks = np.concatenate([masks, np.array(copies, bool).reshape(more, *masks.shape[1:])])
        left_out = unannotated if scan.id == "case1_day2" else []
        annotated = np.array([k not in left_out for k in range(3 + more)])
        scans.append(replace(scan, annotation=Annotation(masks & annotated[:, None, None, None], annotated)))
    return scans, labels


def test_an_unannotated_label_is_reported_as_such_not_as_absent(cohort):
    scans, labels = anatomy_with(cohort, 0, [STOMACH])
    facts = [measure(scan) for scan in scans]
    (finding,) = find(facts, labels)
    assert finding.check == "unannotated" and finding.severity == "warning" and not finding.scan
    assert "stomach is annotated in 5 of 6 scans" in finding.text and "case1_day2" in finding.text
    rows = {row["label"].name: row for row in inspection.label_rows(facts, labels)}
    assert rows["stomach"]["annotated"] == 5 and rows["large_bowel"]["annotated"] == 6
    assert rows["stomach"]["share"] == pytest.approx(11 / DEPTH)


def test_an_absent_label_is_reported_as_missing(cohort, damaged):
    def remove(masks):
        masks[STOMACH] = False

    findings = damaged(remove)
    assert found(findings, "missing label") and not found(findings, "unannotated")


def test_labels_without_anatomy_rules_are_checked(cohort):
    labels = LabelSet.of("a", "b", "c")
    masks = cohort[2].annotation.masks.copy()
    masks[[0, 1], 20] = masks[[1, 0], 20]
    facts = [measure(scan if scan is not cohort[2] else with_masks(scan, masks)) for scan in cohort]
    assert [finding.text[:8] for finding in found(find(facts, labels), "swapped")] == ["a and b "] * 2
    mirrored = [measure(with_masks(scan, scan.annotation.masks[..., ::-1])) for scan in cohort[2:3]]
    assert not found(find([*facts[:2], *mirrored, *facts[3:]], labels), "mirrored")


def test_known_labels_are_recognized_by_their_aliases(cohort):
    labels = LabelSet.from_tree(["spleen", "Bowel_Small", "Stomach"])
    assert contour_checks.known_labels(labels) == {"small_bowel": 1, "stomach": 2}


def test_the_body_is_found_in_ct_in_hounsfield_units(cohort):
    scan = cohort[0]
    voxels = (scan.volume.voxels.astype(np.int16) * 3 - 1000).clip(-1000)
    ct = replace(scan, volume=Volume(voxels, SPACING))
    facts = measure(ct)
    assert facts.contours.outside.sum() == 0
    body = body_mask(voxels[20], body_threshold(ct.volume.percentiles[0]))
    assert 0.3 < body.mean() < 0.6 and body[48, 47] and not body[0, 0]
    assert found(find([measure(with_masks(ct, np.roll(scan.annotation.masks, 40, axis=2)))]), "outside body")


def test_intensities_are_measured_per_channel(cohort):
    scan = cohort[0]
    voxels = np.stack([scan.volume.voxels, scan.volume.voxels // 2 + 7], axis=-1)
    voxels[4, ..., 1] = 7
    facts = measure(replace(scan, volume=Volume(voxels, SPACING)))
    assert facts.percentiles.shape == (2, 11)
    (blank,) = found(find([facts]), "blank image")
    assert blank.slices == (5,) and blank.text.endswith("in channel 2")
    with_one = measure(scan)
    assert facts.contours.fits == with_one.contours.fits


def test_the_page_lists_all_of_40_labels(cohort, tmp_path, monkeypatch):
    scans, labels = anatomy_with(cohort, 37, range(30, 40))
    facts = [measure(scan) for scan in scans]
    monkeypatch.setattr(page, "each_scan", lambda source, do, title, only: map(do, (s for s in scans if s.id in only)))
    source = Cohort(tmp_path, (), "none", "drawn", labels)
    found = sorted(find(facts, labels), key=lambda finding: finding.severity)
    write_page(inspection.Inspection(source, facts, found), tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert all(f"part {k}<" in html for k in range(37))
    assert "shows the 12 labels whose volumes vary most" in html
    assert (
        len([line for line in summary_lines(inspection.Inspection(source, facts, found)) if line.startswith("label ")])
        == 40
    )
