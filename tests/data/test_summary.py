import json

import numpy as np
import pytest

from gitseg_tf.cli import main
from gitseg_tf.data.summary import describe

SCANS = (("case1_day0", (40, 64), range(1, 9)), ("case2_day3", (48, 40), range(1, 7)))


@pytest.fixture
def truth(draw, tmp_path):
    return draw(tmp_path / "truth", SCANS)


def rows(root):
    """The printed lines by their names; a line without name belongs to the name before it."""
    table, name = {}, None
    for line in describe(root):
        name = line[:10].strip() or name
        table.setdefault(name, []).append(line[11:])
    return table


def organ_lines(masks_of_scans):
    shown = np.concatenate([masks.any((2, 3)) for masks in masks_of_scans], axis=1)
    counts = zip(("large_bowel", "small_bowel", "stomach"), shown.sum(1), strict=True)
    return [*(f"{organ} on {n} slices" for organ, n in counts), f"none on {(~shown.any(0)).sum()} slices"]


def test_the_competitions_layout_is_described(drawn):
    table = rows(drawn.root)
    assert table["layout"] == ["competition"]
    assert (table["patients"], table["scans"], table["slices"]) == (["6"], ["9"], ["73, from 6 to 12 a scan"])
    assert table["organs"] == organ_lines([scan.masks for scan in drawn.scans])
    assert table["geometry"] == [
        "64 wide and 40 high, pixels of 1.25 x 1.5 mm, slices every 3 mm (5 of 9 scans)",
        "40 wide and 48 high, pixels of 1.63 x 1.63 mm, slices every 3 mm (4 of 9 scans)",
    ]
    assert table["gaps"] == ["case5_day0: slices are missing"]
    first = drawn.root / "train/case1/case1_day0/scans/slice_0001_64_40_1.25_1.50.png"
    assert table["files"][0] == f"case1_day0, image: {first} and 7 more"
    assert len(table["files"]) == 6 and table["files"][-1] == "and 4 more"


def test_labels_of_nifti_and_what_is_ignored_are_described(truth, nifti, tmp_path):
    root = tmp_path / "nifti"
    for scan in truth.scans:
        affine, label = nifti.affine_of(scan, "RAS"), nifti.numbered(nifti.apart(scan.masks), (3, 2, 1))
        nifti.save(root / "imagesTr" / f"{scan.id}_0000.nii.gz", nifti.stored_as(scan.image, "RAS"), affine)
        nifti.save(root / "labelsTr" / f"{scan.id}.nii.gz", nifti.stored_as(label, "RAS"), affine)
    labels = {"background": 0, "stomach": 1, "bowel_small": 2, "colon": 3, "liver": 4}
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    table = rows(root)
    assert table["layout"] == ["NIfTI"]
    assert table["labels"] == ["1 is stomach (stomach)", "2 is small_bowel (bowel_small)", "3 is large_bowel (colon)"]
    assert table["organs"] == organ_lines([nifti.apart(scan.masks) for scan in truth.scans])
    assert table["ignored"] == ["label 4 (liver): no organ of ours"]
    assert f"case1_day0, contours: {root / 'labelsTr' / 'case1_day0.nii.gz'}" in table["files"]


def test_without_a_dataset_json_the_numbers_are_marked_as_taken_by_default(truth, nifti, tmp_path):
    scan = truth.scans[0]
    for folder in ("imagesTr", "labelsTr"):
        nifti.save(tmp_path / "n" / folder / "a.nii", nifti.stored_as(scan.masks[0], "LPI"), np.eye(4), np.uint8)
    assert rows(tmp_path / "n")["labels"][0] == "1 is large_bowel (by default, for there is no dataset.json)"


def test_rois_of_dicom_and_what_is_ignored_are_described(truth, dicom_writer, tmp_path):
    writer = dicom_writer(tmp_path / "dicom", truth.scans[0]).write_series()
    writer.write_structures(writer.polygons() | {"PTV": []})
    (tmp_path / "dicom" / "notes.txt").write_text("-")
    table = rows(tmp_path / "dicom")
    assert table["layout"] == ["DICOM"] and "ROI 'stomach' is stomach (1 of 1 scans)" in table["labels"]
    assert table["organs"] == organ_lines([truth.scans[0].masks])
    assert any("notes.txt: no DICOM" in line for line in table["ignored"])
    assert any("ROI 'PTV': no organ of ours" in line for line in table["ignored"])


def test_long_lists_are_cut(truth, dicom_writer, tmp_path):
    writer = dicom_writer(tmp_path / "dicom", truth.scans[0]).write_series()
    for i in range(9):
        (writer.root / f"{i}.txt").write_text("-")
    table = rows(tmp_path / "dicom")
    assert len(table["ignored"]) == 6 and table["ignored"][-1] == "and 4 more"
    assert table["organs"] == ["no contours"]


def test_a_dry_run_prints_and_writes_nothing(drawn, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(drawn.root), "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == describe(drawn.root)
    assert main(["convert", str(drawn.root), str(tmp_path / "out"), "--dry-run"]) == 0
    assert not list(tmp_path.iterdir())


def test_a_dry_run_refuses_what_a_conversion_would(tmp_path, capsys):
    assert main(["convert", str(tmp_path), "--dry-run"]) == 1
    assert f"{tmp_path}: no slices found" in capsys.readouterr().err


def test_a_conversion_without_a_folder_to_write_is_wrong_usage(drawn, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(drawn.root)])
    assert stopped.value.code == 2 and "out" in capsys.readouterr().err
