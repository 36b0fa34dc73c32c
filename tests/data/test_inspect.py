"""What the dataset check says of good scans, of scans damaged in a known way, and of damaged files."""

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
from gitseg_tf.data.inspect import inspect_data, summary_lines, write_page
from gitseg_tf.data.inspect.contour_fit import contour_fits
from gitseg_tf.data.inspect.facts import ScanVoxels, body_mask, measure
from gitseg_tf.data.inspect.findings import ranges, robust_z
from gitseg_tf.data.inspect.inspection import find
from gitseg_tf.data.scans import ORGANS

LARGE, SMALL, STOMACH = range(3)
DEPTH, SIZE = 30, 96
SPACING = (3.0, 2.0, 1.5)


def ellipse(shape, centre, radii):
    y, x = np.ogrid[: shape[0], : shape[1]]
    return ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 < 1


def drawn_abdomen(seed):
    """Image and masks of an abdomen: the stomach on the right of the picture, above the bowels, all in a grey body."""
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
    for organ, value in ((LARGE, 40), (SMALL, 520), (STOMACH, 130)):
        image[masks[organ]] = value
    image = cv2.GaussianBlur(image.transpose(1, 2, 0), (0, 0), 0.8).transpose(2, 0, 1)
    noise = random.normal(0, 12, image.shape)
    return np.abs(image + noise).astype(np.uint16), masks


@pytest.fixture(scope="module")
def cohort():
    """Six good scans of three patients."""
    scans = []
    for seed in range(6):
        image, masks = drawn_abdomen(seed)
        case = f"case{seed // 2}"
        scans.append(ScanVoxels(f"{case}_day{seed}", case, None, tuple(range(1, DEPTH + 1)), SPACING, image, masks))
    return scans


@pytest.fixture(scope="module")
def facts(cohort):
    return [measure(scan) for scan in cohort]


@pytest.fixture
def damaged(cohort, facts):
    """damaged(change) lets `change` alter or replace the third scan's masks, and gives what is found in the cohort."""

    def apply(change):
        masks = cohort[2].masks.copy()
        changed = change(masks)
        masks = masks if changed is None else np.ascontiguousarray(changed)
        return list(find([*facts[:2], measure(replace(cohort[2], masks=masks)), *facts[3:]]))

    return apply


def found(findings, check):
    return [finding for finding in findings if finding.check == check]


def moved(masks, dy, dx):
    return np.roll(masks, (dy, dx), (-2, -1))


def test_a_good_cohort_has_no_findings(facts):
    assert list(find(facts)) == []


def test_contours_shifted_in_all_slices_are_found_with_the_way_back(damaged):
    (finding,) = found(damaged(lambda masks: moved(masks, 0, 9)), "shifted")
    assert finding.severity == "error" and finding.scan == "case1_day2"
    assert "9 pixels left" in finding.text and " up" not in finding.text and " down" not in finding.text
    assert finding.slices == tuple(range(4, 29))


def test_contours_shifted_in_a_block_are_found_at_its_ends(damaged):
    def shift(masks):
        masks[:, 16:22] = moved(masks[:, 16:22], 0, 6)

    jumps = found(damaged(shift), "jump")
    assert [finding.slices for finding in jumps] == [(16, 17), (22, 23)]
    assert all("move 9 mm together" in finding.text for finding in jumps)


def test_contours_shifted_in_one_slice_are_found(damaged):
    def shift(masks):
        masks[:, 20] = moved(masks[:, 20], 6, 0)

    assert [finding.slices for finding in found(damaged(shift), "jump")] == [(20, 21), (21, 22)]


def test_slices_on_both_sides_of_a_gap_are_not_compared(cohort, facts):
    def shift(masks):
        return np.concatenate([masks[:, :20], moved(masks[:, 20:], 0, 6)], axis=1)

    numbers = (*range(1, 21), *range(31, 41))
    shifted = replace(cohort[2], masks=shift(cohort[2].masks))
    assert found(find([*facts[:2], measure(shifted)]), "jump")
    assert not found(find([*facts[:2], measure(replace(shifted, numbers=numbers))]), "jump")


def test_contours_offset_along_z_are_found_with_the_way_back(damaged):
    (finding,) = found(damaged(lambda masks: np.roll(masks, 2, 1)), "offset along z")
    assert "2 slices lower" in finding.text


def test_mirrored_contours_are_found(damaged):
    findings = damaged(lambda masks: masks[..., ::-1])
    assert found(findings, "mirrored") and (found(findings, "poor fit") or found(findings, "shifted"))


def test_contours_upside_down_do_not_fit(damaged):
    findings = damaged(lambda masks: masks[..., ::-1, :])
    assert found(findings, "poor fit") or found(findings, "shifted")


def test_contours_in_reverse_order_are_found(damaged):
    (finding,) = found(damaged(lambda masks: masks[:, ::-1]), "wrong order")
    assert finding.scan == "case1_day2"


def test_stomach_and_bowel_exchanged_in_the_whole_scan_are_found(damaged):
    assert found(damaged(lambda masks: masks[[STOMACH, SMALL, LARGE]]), "wrong order")


def test_organs_exchanged_on_some_slices_are_found_at_both_ends(damaged):
    def exchange(masks):
        masks[:, 18:22] = masks[[SMALL, LARGE, STOMACH], 18:22]

    findings = found(damaged(exchange), "exchanged")
    assert [finding.slices for finding in findings] == [(18, 19), (22, 23)]
    assert all("large bowel and small bowel change places" in finding.text for finding in findings)


def test_contours_of_another_scan_are_found_in_both_ways(damaged, cohort):
    findings = damaged(lambda masks: cohort[5].masks)
    (copied,) = [finding for finding in found(findings, "repeated contour") if finding.severity == "error"]
    assert {"case1_day2", "case2_day5"} <= set(re.findall(r"case\d_day\d", copied.scan + copied.text))


def test_a_few_contours_of_another_scan_are_a_warning(damaged, cohort):
    def copy(masks):
        masks[SMALL, 20:23] = cohort[0].masks[SMALL, 20:23]

    (finding,) = found(damaged(copy), "repeated contour")
    assert (finding.severity, finding.scan, finding.slices) == ("warning", "case1_day2", (21, 22, 23))


def test_the_contours_of_a_copied_scan_are_no_finding_of_their_own(cohort, facts):
    masks = cohort[0].masks.copy()
    masks[:, 17] = masks[:, 16]
    twice = [measure(replace(cohort[0], id=name, masks=masks)) for name in ("case0_day0", "case0_day9")]
    findings = list(find([*twice, *facts[1:]]))
    assert not found(findings, "repeated contour") and len(found(findings, "repeated image")) == 1


def test_a_contour_repeated_on_several_slices_is_found(damaged):
    def repeat(masks):
        masks[SMALL, 15:19] = masks[SMALL, 15]

    (finding,) = found(damaged(repeat), "repeated contour")
    assert finding.slices == (16, 17, 18, 19) and "small bowel" in finding.text


def test_one_contour_on_two_neighbouring_slices_is_usual(damaged):
    def repeat(masks):
        masks[SMALL, 16] = masks[SMALL, 15]

    assert damaged(repeat) == []


def test_one_contour_for_two_organs_is_found(damaged):
    def repeat(masks):
        masks[SMALL, 15] = masks[LARGE, 15]

    (finding,) = found(damaged(repeat), "repeated contour")
    assert finding.slices == (16,) and "two organs" in finding.text


def test_an_interrupted_organ_is_found(damaged):
    def interrupt(masks):
        masks[LARGE, 17:20] = False

    (finding,) = damaged(interrupt)
    assert (finding.check, finding.slices) == ("interrupted", (18, 19, 20)) and "large bowel" in finding.text


def test_a_slice_that_stands_alone_is_found(damaged):
    def isolate(masks):
        masks[STOMACH, 25] = ellipse((SIZE, SIZE), (50, 60), (5, 5))

    (finding,) = found(damaged(isolate), "stands alone")
    assert finding.slices == (26,) and "stomach" in finding.text


def test_contours_in_air_are_found_where_they_are(damaged):
    def into_air(masks):
        masks[SMALL, 20] = ellipse((SIZE, SIZE), (8, 8), (6, 6))

    (finding,) = found(damaged(into_air), "outside body")
    assert finding.slices == (21,) and "small bowel" in finding.text


def test_an_organ_of_another_size_is_found(damaged):
    def shrink(masks):
        masks[SMALL] &= ellipse((SIZE, SIZE), (55, 50), (2, 3))

    (finding,) = found(damaged(shrink), "odd volume")
    assert "small bowel" in finding.text


def test_a_lost_organ_is_found(damaged):
    def lose(masks):
        masks[STOMACH] = False

    (finding,) = damaged(lose)
    assert (finding.check, finding.scan) == ("missing organ", "case1_day2") and "no stomach" in finding.text


def test_a_mirrored_scan_is_found_though_its_contours_fit(cohort, facts):
    mirrored = replace(cohort[2], image=cohort[2].image[..., ::-1].copy(), masks=cohort[2].masks[..., ::-1].copy())
    findings = list(find([*facts[:2], measure(mirrored), *facts[3:]]))
    assert found(findings, "mirrored") and not found(findings, "poor fit")


def test_in_a_small_cohort_nothing_is_compared_and_that_is_said(facts):
    (finding,) = find(facts[:3])
    assert (finding.severity, finding.check) == ("note", "small cohort") and finding.text.startswith(
        "3 scans of 20 slices"
    )


def test_pieces_of_scans_are_not_compared_with_each_other(cohort):
    pieces = [
        replace(scan, numbers=scan.numbers[:3], image=scan.image[at : at + 3], masks=scan.masks[:, at : at + 3])
        for scan, at in zip(cohort, (0, 5, 10, 15, 20, 25), strict=True)
    ]
    assert [finding for finding in find([measure(piece) for piece in pieces]) if finding.severity != "note"] == []


def test_the_fit_of_contours_is_that_of_a_plain_count(cohort):
    """One outline, one shift, by hand: the gradient under the outline over that under its copies."""
    image = np.zeros((9, 80, 80), np.uint16)
    image[:, 30:50, 30:50] = 1000
    masks = np.zeros((3, 9, 80, 80), bool)
    masks[0, :, 30:50, 39:59] = True
    whole = contour_fits(image, masks)[0]
    assert whole.shift == (0, -9) and whole.slices == 9 and (whole.first, whole.last) == (0, 8)
    assert whole.gain > 1.5
    fitting = np.roll(masks, -9, 3)
    assert contour_fits(image, fitting)[0].gain == 1.0
    assert contour_fits(image, fitting)[0].contrast > 5


def test_an_image_without_edges_has_contours_of_contrast_one(cohort):
    flat = np.full_like(cohort[0].image, 100)
    assert contour_fits(flat, cohort[0].masks)[0].contrast == 1.0
    assert contour_fits(flat, np.zeros_like(cohort[0].masks)) == []


def test_the_body_holds_dark_bowel_and_leaves_out_air(cohort):
    image, masks = cohort[0].image, cohort[0].masks
    body = body_mask(image[20], float(np.percentile(image, 99)))
    inside, outside = ellipse((SIZE, SIZE), (48, 47), (27, 37)), ellipse((SIZE, SIZE), (48, 47), (39, 52))
    assert body[inside].all() and body[masks[LARGE, 20]].all() and not body[~outside].any()


def test_volumes_and_centres_are_those_of_a_plain_count(cohort, facts):
    for organ, volume in enumerate(facts[0].volumes_ml):
        mask = cohort[0].masks[organ]
        assert volume == pytest.approx(mask.sum() * 3 * 2 * 1.5 / 1000)
        assert facts[0].contours.centres[organ, 0] == pytest.approx(np.nonzero(mask)[0].mean() * 3)


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
def files(drawn, tmp_path):
    """A copy of the drawn cohort, to damage."""
    shutil.copytree(drawn.root, tmp_path / "cohort")
    return tmp_path / "cohort"


def test_rows_without_image_are_findings(files, drawn, rows_of, save_table):
    save_table(files, [*rows_of(drawn.scans), ("case1_day0_slice_0077", "stomach", "1 2")])
    inspection = inspect_data(files)
    (finding,) = found(inspection.findings, "row without image")
    assert (finding.severity, finding.scan, finding.slices) == ("error", "case1_day0", (77,))
    assert len(inspection.scans) == len(drawn.scans)


def test_a_damaged_image_and_a_damaged_contour_are_findings(files, drawn, rows_of, save_table):
    path = pngs(files, "case2_day0")[3]
    path.write_bytes(path.read_bytes()[:-20])
    rows = [
        (i, o, "1 2 3" if (i, o) == ("case3_day0_slice_0002", "stomach") else r) for i, o, r in rows_of(drawn.scans)
    ]
    save_table(files, rows)
    inspection = inspect_data(files)
    broken = found(inspection.findings, "unreadable")
    assert [(finding.severity, finding.scan) for finding in broken] == [
        ("error", "case2_day0"),
        ("error", "case3_day0"),
    ]
    assert path.name in broken[0].text and "case3_day0_slice_0002" in broken[1].text
    assert len(inspection.scans) == len(drawn.scans) - 2


def test_a_scan_that_is_no_scan_is_a_finding_and_the_others_are_inspected(files, drawn, tmp_path, capsys):
    path = pngs(files, "case2_day0")[3]
    path.rename(path.with_name("slice_4.png"))
    inspection = inspect_data(files)
    (broken,) = found(inspection.findings, "unreadable")
    assert (broken.severity, broken.scan) == ("error", "case2_day0") and "slice_4.png" in broken.text
    assert not found(inspection.findings, "row without image")
    assert len(inspection.scans) == len(drawn.scans) - 1
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
    assert len(broken) == 1 and "IM0099.dcm: is no DICOM file" in broken[0].text
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


def test_a_scan_of_one_patient_under_the_name_of_another_is_an_error(files):
    for source, target in zip(pngs(files, "case3_day0"), pngs(files, "case3_day7"), strict=True):
        shutil.copy(source, target)
    (same,) = found(inspect_data(files).findings, "repeated image")
    assert same.severity == "error" and "all slices are those of case3_day7" in same.text and "patient" not in same.text
    shutil.copy(pngs(files, "case1_day0")[4], pngs(files, "case6_day0")[7])
    (other,) = [f for f in found(inspect_data(files).findings, "repeated image") if f.scan == "case1_day0"]
    assert other.severity == "error" and other.slices == (5,) and "case6_day0, of another patient" in other.text


def test_gaps_in_the_slice_numbers_are_notes(drawn):
    (finding,) = found(inspect_data(drawn.root).findings, "missing slices")
    assert (finding.severity, finding.scan, finding.slices) == ("note", "case5_day0", (4, 5, 6))


def test_a_cohort_without_contours_is_inspected(draw, tmp_path):
    draw(tmp_path / "cohort", labelled=False)
    inspection = inspect_data(tmp_path / "cohort")
    assert {finding.check for finding in inspection.findings} == {"missing slices"}
    write_page(inspection, tmp_path / "page.html")
    assert "0 with contours" in (tmp_path / "page.html").read_text()


def test_a_dataset_says_what_its_cohort_says_and_has_folds(drawn, drawn_dataset):
    cohort, dataset = inspect_data(drawn.root), inspect_data(drawn_dataset.root)
    by_id = {scan.id: scan for scan in dataset.scans}
    for scan in cohort.scans:
        other = by_id[scan.id]
        assert (other.case, other.numbers, other.shape) == (scan.case, scan.numbers, scan.shape)
        assert other.spacing == scan.spacing and other.image_digests == scan.image_digests
        assert other.contours.digests == scan.contours.digests
    assert sorted(map(str, cohort.findings)) == sorted(map(str, dataset.findings))
    lines = summary_lines(dataset)
    assert sum(line.startswith("fold ") for line in lines) == 3 and not any("fold" in s for s in summary_lines(cohort))
    assert f"{len({s.case for s in drawn.scans})} patients, {len(drawn.scans)} scans" in lines[0]


def test_nifti_is_measured_as_the_same_scans_in_the_competitions_layout(drawn, tmp_path, nifti):
    for scan in drawn.scans[:2]:
        affine = nifti.affine_of(scan, "RAS")
        nifti.save(tmp_path / scan.id / "image.nii.gz", nifti.stored_as(scan.image, "RAS"), affine)
        for organ, mask in zip(ORGANS, scan.masks, strict=True):
            nifti.save(tmp_path / scan.id / f"{organ}.nii.gz", nifti.stored_as(mask, "RAS"), affine, np.uint8)
    expected = {scan.id: scan for scan in inspect_data(drawn.root).scans}
    scans = inspect_data(tmp_path).scans
    assert [scan.id for scan in scans] == ["case1_day0", "case1_day5"]
    for scan in scans:
        assert scan.image_digests == expected[scan.id].image_digests
        assert scan.volumes_ml == pytest.approx(expected[scan.id].volumes_ml)
        assert scan.contours.digests == expected[scan.id].contours.digests


class Page(HTMLParser):
    """The addresses and pictures of a page."""

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


def test_the_page_shows_findings_and_loads_nothing(files, tmp_path):
    shutil.copy(*pngs(files, "case6_day0")[:2])
    inspection = inspect_data(files)
    write_page(inspection, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert page.pictures and all(picture.shape in ((40, 64), (48, 40)) for picture in page.pictures)
    assert all(finding.scan in text and finding.check in text for finding in inspection.findings)
    assert sorted(os.listdir(tmp_path)) == ["cohort", "page.html"]


def test_the_command_writes_the_page_and_strict_refuses_findings(draw, tmp_path, capsys):
    cohort, page = tmp_path / "cohort", tmp_path / "page.html"
    draw(cohort, [("case6_day0", (40, 64), range(1, 13))], labelled=False)
    shutil.copy(*pngs(cohort, "case6_day0")[:2])
    assert main(["inspect", str(cohort), "--out", str(page)]) == 0
    assert "repeated image: case6_day0 slices 1-2" in capsys.readouterr().out and page.is_file()
    assert main(["inspect", str(cohort), "--out", str(page), "--strict"]) == 1
    assert f"{cohort}: 0 errors, 1 warning, " in capsys.readouterr().err.splitlines()[-1]


def test_strict_takes_notes_for_no_fault(tmp_path, draw, capsys):
    draw(tmp_path / "cohort", [("case5_day0", (48, 40), (1, 2, 3, 7, 8, 9, 10))], labelled=False)
    assert main(["inspect", str(tmp_path / "cohort"), "--out", str(tmp_path / "page.html"), "--strict"]) == 0
    assert "1 note" in capsys.readouterr().out


def test_a_folder_without_data_is_refused(tmp_path, capsys):
    assert main(["inspect", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 1
    assert "no slices found" in capsys.readouterr().err and not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("name", ["train.csv", "nowhere/page.html"])
def test_a_page_that_cannot_be_is_refused_before_the_work(drawn, tmp_path, capsys, name):
    assert main(["inspect", str(drawn.root), "--out", str(tmp_path / name)]) == 1
    said = capsys.readouterr()
    assert "--out" in said.err and ".html" in said.err and not said.out and not os.listdir(tmp_path)
