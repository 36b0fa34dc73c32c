import json

import numpy as np
import pytest

from gitseg_tf.cli import main
from gitseg_tf.data.readers.summary import describe
from gitseg_tf.labels import UWMGI

SCANS = (("case1_day0", (40, 64), range(1, 9)), ("case2_day3", (48, 40), range(1, 7)))


@pytest.fixture
def truth(make_cohort, tmp_path):
    return make_cohort(tmp_path / "truth", SCANS)


def rows(root, **options):
    """The printed lines by name; a line without a name continues the one before it."""
    table, name = {}, None
    for line in describe(root, **options):
        name = line[:10].strip() or name
        table.setdefault(name, []).append(line[11:])
    return table


def cells(lines):
    """The table at the end: label to [scans that show it, absent, unannotated, slices]."""
    start = next(i for i, line in enumerate(lines) if line.split()[0] == "label")
    rows = [line.split() for line in lines[start + 1 :]]
    return {row[0]: list(map(int, row[1:])) for row in rows if row[-1].isdecimal() and len(row) == 5}


def counted(masks_of_scans):
    """What `cells` has to show for scans in which every label is annotated."""
    shown = [masks.any((2, 3)).sum(1) for masks in masks_of_scans]
    rows = {}
    for k, label in enumerate(("large_bowel", "small_bowel", "stomach")):
        slices = [int(counts[k]) for counts in shown]
        rows[label] = [sum(n > 0 for n in slices), slices.count(0), 0, sum(slices)]
    return rows


def annotated(masks_of_scans):
    bare = sum(int((~masks.any((0, 2, 3))).sum()) for masks in masks_of_scans)
    return [f"{len(masks_of_scans)} of {len(masks_of_scans)} scans, without any label on {bare} slices"]


def test_the_competitions_layout_is_described(tiny_cohort):
    table = rows(tiny_cohort.root)
    assert table["layout"] == ["competition"]
    assert (table["patients"], table["scans"], table["slices"]) == (["6"], ["9"], ["73, 6 to 12 per scan"])
    masks = [scan.masks for scan in tiny_cohort.scans]
    assert table["annotated"] == annotated(masks) and cells(describe(tiny_cohort.root)) == counted(masks)
    assert table["geometry"] == [
        "64 x 40 pixels of 1.25 x 1.5 mm, slices every 3 mm (5 of 9 scans)",
        "40 x 48 pixels of 1.63 x 1.63 mm, slices every 3 mm (4 of 9 scans)",
    ]
    assert table["gaps"] == ["case5_day0: slices are missing"]
    assert table["labels"] == ["large_bowel, small_bowel, stomach"]
    first = tiny_cohort.root / "train/case1/case1_day0/scans/slice_0001_64_40_1.25_1.50.png"
    assert table["files"][0] == f"case1_day0, image: {first} and 7 more"
    assert len(table["files"]) == 6 and table["files"][-1] == "and 4 more"


def test_nifti_labels_and_ignored_labels_are_described(truth, nifti, tmp_path):
    root = tmp_path / "nifti"
    for scan in truth.scans:
        affine, label = nifti.affine_of(scan, "RAS"), nifti.label_map(nifti.without_overlaps(scan.masks), (3, 2, 1))
        nifti.save(root / "imagesTr" / f"{scan.id}_0000.nii.gz", nifti.stored_as(scan.image, "RAS"), affine)
        nifti.save(root / "labelsTr" / f"{scan.id}.nii.gz", nifti.stored_as(label, "RAS"), affine)
    labels = {"background": 0, "stomach": 1, "bowel_small": 2, "colon": 3, "liver": 4}
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    table = rows(root, labels=UWMGI)
    assert table["layout"] == ["NIfTI"]
    assert table["labels"] == [
        "large_bowel, small_bowel, stomach",
        "label 'bowel_small' is read as small_bowel (2 of 2 scans)",
        "label 'colon' is read as large_bowel (2 of 2 scans)",
    ]
    masks = [nifti.without_overlaps(scan.masks) for scan in truth.scans]
    assert table["annotated"] == annotated(masks) and cells(describe(root, labels=UWMGI)) == counted(masks)
    assert table["left over"] == ["label 'liver' matches no label (2 of 2 scans)"]
    assert f"case1_day0, contours: {root / 'labelsTr' / 'case1_day0.nii.gz'}" in table["files"]


def test_without_a_dataset_json_the_order_of_the_labels_is_noted(truth, nifti, tmp_path):
    scan = truth.scans[0]
    for folder in ("imagesTr", "labelsTr"):
        nifti.save(tmp_path / "n" / folder / "a.nii", nifti.stored_as(scan.masks[0], "LPI"), np.eye(4), np.uint8)
    notes = rows(tmp_path / "n", labels=UWMGI)["notes"]
    assert notes == [
        f"{tmp_path / 'n'}: no dataset.json, so the values 1 to 3 are read as the labels in the given order"
    ]


def test_dicom_rois_and_ignored_files_are_described(truth, dicom_writer, tmp_path):
    writer = dicom_writer(tmp_path / "dicom", truth.scans[0]).write_series()
    writer.write_structures(writer.polygons() | {"PTV": []})
    (tmp_path / "dicom" / "notes.txt").write_text("-")
    table = rows(tmp_path / "dicom", labels=UWMGI)
    assert table["layout"] == ["DICOM"] and table["labels"] == ["large_bowel, small_bowel, stomach"]
    assert cells(describe(tmp_path / "dicom", labels=UWMGI)) == counted([truth.scans[0].masks])
    assert any("notes.txt: not a DICOM file" in line for line in table["ignored"])
    assert table["left over"] == ["ROI 'PTV' matches no label (1 of 1 scan)"]


def test_long_lists_are_truncated(truth, dicom_writer, tmp_path):
    writer = dicom_writer(tmp_path / "dicom", truth.scans[0]).write_series()
    for i in range(9):
        (writer.root / f"{i}.txt").write_text("-")
    table = rows(tmp_path / "dicom")
    assert "labels" not in table and len(table["ignored"]) == 6 and table["ignored"][-1] == "and 4 more"
    assert table["annotated"] == ["nothing"]


def test_many_geometries_and_labels_are_truncated(nifti, tmp_path):
    names = [f"label{k:02d}" for k in range(10)]
    for k in range(7):
        for name in ("image", *names):
            nifti.save(tmp_path / f"case{k}" / f"{name}.nii.gz", np.ones((8 + k, 8, 3), np.uint8), np.eye(4))
    table = rows(tmp_path)
    assert table["labels"] == [f"{', '.join(names[:8])} and 2 more"]
    assert len(table["geometry"]) == 6 and table["geometry"][-1] == "and 2 more"
    assert cells(describe(tmp_path))["label09"] == [7, 0, 0, 21]


def test_a_dry_run_prints_and_writes_nothing(tiny_cohort, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(tiny_cohort.root), "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == describe(tiny_cohort.root)
    assert main(["convert", str(tiny_cohort.root), str(tmp_path / "out"), "--dry-run"]) == 0
    assert not list(tmp_path.iterdir())


def test_a_dry_run_refuses_what_a_conversion_would(tmp_path, capsys):
    assert main(["convert", str(tmp_path), "--dry-run"]) == 1
    assert f"{tmp_path}: no slices found" in capsys.readouterr().err


def test_convert_without_an_output_folder_is_a_usage_error(tiny_cohort, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["convert", str(tiny_cohort.root)])
    assert exit_info.value.code == 2 and "out" in capsys.readouterr().err
