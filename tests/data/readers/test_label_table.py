"""The table at the end of a conversion and of a dry run, read back from what the commands print."""

import json

import numpy as np
import pytest

from gitseg_tf.cli import main
from gitseg_tf.data.readers.label_table import label_table
from gitseg_tf.data.readers.registry import read_cohort

SCANS = (
    ("case1_day0", (40, 64), range(1, 9)),
    ("case2_day3", (48, 40), range(1, 7)),
    ("case3_day0", (48, 40), range(1, 7)),
)
LABELS = ("large_bowel", "small_bowel", "stomach")


@pytest.fixture
def truth(make_cohort, tmp_path):
    return make_cohort(tmp_path / "truth", SCANS)


@pytest.fixture
def printed(tmp_path, capsys):
    """printed(root, *flags) is the table that `convert --dry-run` prints, after checking that `convert` prints it too.

    The result: label to [present, absent, unannotated, slices], and the lines below the rows by title.
    """

    def tables(out):
        lines = out.splitlines()
        start = max(i for i, line in enumerate(lines) if line.startswith("label ") and "unannotated" in line)
        lines = [line for line in lines[start:] if not line.startswith("dataset ")]
        assert max(map(len, lines)) <= 79
        rows, below, title = {}, {}, None
        for line in lines[1:]:
            words = line.split()
            if len(words) == 5 and all(word.isdecimal() for word in words[1:]):
                rows[words[0]] = list(map(int, words[1:]))
            else:
                title = line[:10].strip() or title
                below.setdefault(title, []).append(line[11:])
        return rows, {title: " ".join(texts) for title, texts in below.items()}

    def run(root, *flags):
        assert main(["convert", str(root), "--dry-run", *flags]) == 0
        dry = tables(capsys.readouterr().out)
        assert main(["convert", str(root), str(tmp_path / "out"), "--folds", "1", *flags]) == 0
        assert tables(capsys.readouterr().out) == dry
        return dry

    return run


def expected(scans, lacks=(), empty=(), bare=()):
    """Rows worked out from the masks: `lacks` and `empty` are (scan id, label), `bare` scans have no annotation."""
    rows = {}
    for k, label in enumerate(LABELS):
        seen = [s for s in scans if s.id not in bare and (s.id, label) not in lacks]
        slices = [0 if (s.id, label) in empty else int(s.masks[k].any((1, 2)).sum()) for s in seen]
        rows[label] = [sum(n > 0 for n in slices), slices.count(0), len(scans) - len(seen), sum(slices)]
    return rows


def test_classes_without_rows_and_scans_without_rows_are_counted(truth, rows_of, save_table, printed):
    kept = [row for row in rows_of(truth.scans) if "case3" not in row[0]]
    kept = [row for row in kept if not ("case2" in row[0] and row[1] == "stomach")]
    save_table(truth.root, kept)
    rows, below = printed(truth.root)
    assert rows == expected(truth.scans, [("case2_day3", "stomach")], bare=["case3_day0"])
    assert below["missing"] == "read as unannotated: stomach in 1 scan"
    assert below["unlabeled"] == "1 of 3 scans has no annotation: case3_day0"


def test_a_missing_label_is_absent_on_request_but_not_in_a_scan_without_rows(truth, rows_of, save_table, printed):
    kept = [row for row in rows_of(truth.scans) if "case3" not in row[0]]
    kept = [row for row in kept if not ("case2" in row[0] and row[1] == "stomach")]
    save_table(truth.root, kept)
    rows, below = printed(truth.root, "--missing", "absent")
    assert rows["stomach"][1:3] == [1, 1]
    assert below["missing"] == "read as absent: stomach in 1 scan" and "case3_day0" in below["unlabeled"]


def test_other_roi_names_in_some_patients_are_left_over(truth, dicom_writer, tmp_path, printed):
    for scan, other in zip(truth.scans, ("stomach", "Magen", "Magen"), strict=True):
        writer = dicom_writer(tmp_path / "dicom" / scan.id, scan).write_series()
        polygons = writer.polygons()
        polygons[other] = polygons.pop("stomach")
        writer.write_structures(polygons)
    rows, below = printed(tmp_path / "dicom", "--labels", "uwmgi")
    by_case = {s.case: s for s in truth.scans}
    assert rows == expected(truth.scans, [(by_case[c].id, "stomach") for c in ("case2", "case3")])
    assert below["left over"] == "ROI 'Magen' matches no label (2 of 3 scans)"
    assert below["missing"] == "read as unannotated: stomach in 2 scans"


def test_unknown_names_of_a_dataset_json_are_left_over(truth, nifti, tmp_path, printed):
    root = tmp_path / "nnunet"
    for scan in truth.scans:
        affine, label = nifti.affine_of(scan, "RAS"), nifti.label_map(nifti.without_overlaps(scan.masks), (1, 2, 4))
        nifti.save(root / "imagesTr" / f"{scan.id}_0000.nii.gz", nifti.stored_as(scan.image, "RAS"), affine)
        nifti.save(root / "labelsTr" / f"{scan.id}.nii.gz", nifti.stored_as(label, "RAS"), affine)
    names = {"background": 0, "colon": 1, "small_bowel": 2, "tumour": 4}
    (root / "dataset.json").write_text(json.dumps({"labels": names}))
    rows, below = printed(root, "--labels", "uwmgi")
    assert rows["stomach"] == [0, 0, 3, 0] and rows["large_bowel"][:3] == [3, 0, 0]
    assert below["left over"] == "label 'tumour' matches no label (3 of 3 scans)"


def test_mask_files_that_are_missing_or_empty_or_unknown(truth, nifti, tmp_path, printed):
    root = tmp_path / "folders"
    for scan in truth.scans:
        affine = nifti.affine_of(scan, "LPI")
        nifti.save(root / scan.id / "image.nii.gz", nifti.stored_as(scan.image, "LPI"), affine)
        for name, mask in zip((*LABELS, "skin"), (*scan.masks, scan.masks[0]), strict=True):
            if (scan.id, name) == ("case1_day0", "small_bowel"):
                continue
            mask = mask & ((scan.id, name) != ("case2_day3", "stomach"))
            nifti.save(root / scan.id / f"{name}.nii.gz", nifti.stored_as(mask, "LPI"), affine, np.uint8)
    rows, below = printed(root, "--labels", "uwmgi")
    assert rows == expected(truth.scans, [("case1_day0", "small_bowel")], empty=[("case2_day3", "stomach")])
    assert below["left over"] == "file 'skin' matches no label (3 of 3 scans)"


def test_117_labels_with_long_names_fit_into_79_columns(nifti, tmp_path):
    names = [f"a_structure_with_a_very_long_name_of_the_upper_abdomen_number_{n}" for n in range(117)]
    for case in ("a", "b"):
        for name in ("image", *names[: 117 if case == "a" else 3]):
            nifti.save(tmp_path / case / f"{name}.nii.gz", np.ones((8, 8, 3), np.uint8), np.eye(4))
    cohort = read_cohort(tmp_path)
    lines = label_table(cohort, {"a": dict.fromkeys(names, 3), "b": dict.fromkeys(names[:3], 12345)})
    assert max(map(len, lines)) <= 79 and len(lines) >= 118
    assert len({line.split()[0] for line in lines[1:118]}) == 117
    assert all("…" in line.split()[0] for line in lines[1:118])
    assert lines[1].split()[1:] == ["2", "0", "0", "12348"] and lines[-1].endswith("and 109 more")
    assert lines[1].split()[0].startswith("a_structure") and lines[1].split()[0].endswith("n_number_0")


def test_many_left_over_names_are_truncated(truth, dicom_writer, tmp_path):
    writer = dicom_writer(tmp_path / "dicom", truth.scans[0]).write_series()
    writer.write_structures(writer.polygons() | {f"helper {n:02d} {'x' * 90}": [] for n in range(23)})
    from gitseg_tf.labels import UWMGI

    lines = label_table(read_cohort(tmp_path / "dicom", labels=UWMGI), {"case1_20260102": dict.fromkeys(LABELS, 1)})
    assert max(map(len, lines)) <= 79 and lines[-1].split() == ["and", "3", "more"]


def test_scans_without_annotation_have_no_table(truth, printed, capsys):
    (truth.root / "train.csv").unlink()
    assert main(["convert", str(truth.root), "--dry-run"]) == 0
    assert "unannotated" not in capsys.readouterr().out
