"""Scores of masks that other tools wrote."""

import csv
import json
import shutil

import nibabel
import numpy as np
import pandas as pd
import pytest
from nibabel.nifti1 import Nifti1Extension

import gitseg_tf
from gitseg_tf.cli import main
from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.inference.prediction import Prediction
from gitseg_tf.inference.writers.registry import open_writer
from gitseg_tf.labels import UWMGI, LabelSet

NAMES = UWMGI.names


def shifted(masks):
    """A prediction that differs from the reference in every label."""
    return np.roll(masks, 2, axis=3)


def save(path, voxels, affine, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(voxels, dtype), affine), path)


def write(form, cohort_root, out, masks_of, labels=UWMGI):
    """Write masks with the writers of `gitseg predict`."""
    cohort = read_cohort(cohort_root, table=False)
    with open_writer(form, cohort, out, labels) as writer:
        out.mkdir(exist_ok=True, parents=True)
        for scan in cohort.scans:
            masks = masks_of(scan.id)
            if masks is not None:
                writer.write(scan, scan.read_volume(), Prediction(masks))
    return out


@pytest.fixture(scope="module")
def expected(tiny_cohort):
    """{(scan, label): Dice} of `shifted` by counting voxels."""
    found = {}
    for scan in tiny_cohort.scans:
        for k, name in enumerate(NAMES):
            truth, prediction = scan.masks[k], shifted(scan.masks)[k]
            if truth.any():
                found[scan.id, name] = 2 * (truth & prediction).sum() / (truth.sum() + prediction.sum())
    return found


@pytest.fixture(scope="module")
def masks(tiny_cohort):
    return lambda scan_id: shifted(tiny_cohort[scan_id].masks)


def dice_in(folder):
    rows = pd.read_csv(folder / "evaluation.csv")
    return {(row.scan, row.label): row.dice for row in rows.itertuples() if row.truth_ml > 0}


@pytest.fixture(scope="module")
def written(tiny_cohort, masks, tmp_path_factory):
    root = tmp_path_factory.mktemp("written")
    return {form: write(form, tiny_cohort.root, root / form, masks) for form in ("nifti", "table", "submission")}


def test_the_same_masks_in_every_format_have_the_same_scores(written, tiny_cohort, tmp_path, expected, capsys):
    contents = []
    for form, folder in written.items():
        assert main(["score", str(folder), str(tiny_cohort.root), "--out", str(tmp_path / form)]) == 0
        contents.append((tmp_path / form / "evaluation.csv").read_bytes())
        assert dice_in(tmp_path / form) == pytest.approx(expected)
        printed = capsys.readouterr()
        assert "warning" not in printed.err and printed.out.splitlines()[-1].endswith(f"{form}/report.html")
    assert len(set(contents)) == 1
    assert "predictions" not in [line.split()[0] for line in printed.out.splitlines() if line.strip()]
    table = [line.split()[0] for line in printed.out.splitlines()[1:5]]
    assert table == [*NAMES, "mean"]
    summary = json.loads((tmp_path / "nifti/evaluation.json").read_text())
    assert summary["dice"] == pytest.approx(np.mean(list(expected.values()))) and summary["scope"] == "predictions"


def test_a_single_table_and_the_python_function(written, tiny_cohort, expected):
    summary = gitseg_tf.score(written["submission"] / "submission.csv", tiny_cohort.root)
    assert summary["dice"] == pytest.approx(np.mean(list(expected.values())))
    assert summary["format"] == "table" and summary["only_in_reference"] == []


def test_scans_in_only_one_of_the_two_are_listed(written, tiny_cohort, tmp_path, capsys):
    folder = shutil.copytree(written["nifti"], tmp_path / "masks")
    (folder / "case1_day0").rename(folder / "case99_day0")
    shutil.rmtree(folder / "case6_day1")
    assert main(["score", str(folder), str(tiny_cohort.root), "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert "warning: 1 scan not scored, only in predictions: case99_day0" in lines
    assert "warning: 2 scans not scored, only in reference: case1_day0, case6_day1" in lines
    summary = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert summary["only_in_predictions"] == ["case99_day0"] and summary["scans"] == 7
    assert summary["only_in_reference"] == ["case1_day0", "case6_day1"]
    assert "case99_day0" in (tmp_path / "out/report.html").read_text()


def test_no_scan_in_common_is_refused(written, tiny_cohort, tmp_path, refusal):
    shutil.copytree(written["nifti"] / "case1_day0", tmp_path / "masks" / "other")
    message = refusal(gitseg_tf.score, tmp_path / "masks", tiny_cohort.root)
    assert f"{tmp_path / 'masks'}: has no scan in common with" in message and "(other; case1_day0, " in message


def test_a_label_that_no_prediction_has_is_left_out(written, tiny_cohort, tmp_path, capsys):
    folder = shutil.copytree(written["nifti"], tmp_path / "masks")
    for path in folder.rglob("stomach.nii.gz"):
        path.rename(path.with_name("liver.nii.gz"))
    assert main(["score", str(folder), str(tiny_cohort.root), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "stomach is left out, because no prediction has it" in printed.err
    assert "not in the reference, left out: liver" in printed.out
    summary = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert list(summary["labels"]) == list(NAMES[:2])
    assert summary["labels_left_out"] == {"no_prediction": ["stomach"], "not_in_reference": ["liver"]}


def test_a_label_missing_in_some_scans_is_scored_as_empty(written, tiny_cohort, tmp_path, capsys):
    folder = shutil.copytree(written["nifti"], tmp_path / "masks")
    (folder / "case2_day0/stomach.nii.gz").unlink()
    rows = [row for row in csv.reader((written["table"] / "predictions.csv").open())]
    with (tmp_path / "some.csv").open("w", newline="") as file:
        csv.writer(file).writerows(row for row in rows if not (row[0].startswith("case2_day0") and row[1] == "stomach"))
    for path in (folder, tmp_path / "some.csv"):
        out = tmp_path / f"out-{path.stem}"
        assert main(["score", str(path), str(tiny_cohort.root), "--out", str(out)]) == 0
        line = "stomach is missing in the predictions of 1 of 9 scans (case2_day0), scored as empty"
        assert line in capsys.readouterr().err
        assert dice_in(out)["case2_day0", "stomach"] == 0 and dice_in(out)["case2_day0", "small_bowel"] > 0


def test_missing_rows_of_a_table_are_empty_and_counted(written, tiny_cohort, tmp_path, caplog, expected):
    rows = [row for row in csv.reader((written["table"] / "predictions.csv").open())]
    with (tmp_path / "full.csv").open("w", newline="") as file:
        csv.writer(file).writerows(row for row in rows if row[2])
    summary = gitseg_tf.score(tmp_path / "full.csv", tiny_cohort.root)
    assert summary["dice"] == pytest.approx(np.mean(list(expected.values())))
    (line,) = [line for line in caplog.messages if line.startswith("case1_day0: ")]
    empty = sum(not row[2] for row in rows if row[0].startswith("case1_day0"))
    assert f"{empty} rows missing, scored as empty; the first is case1_day0_slice_0001" in line


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: [*rows, rows[1]], "has two rows; remove one"),
        (lambda rows: [*rows, ["case1_day0_slice_0099", "stomach", ""]], "case1_day0_slice_0099 is not a slice of"),
        (lambda rows: [rows[0], [*rows[1][:2], "999999 5"], *rows[2:]], "leaves the image"),
        (lambda rows: [rows[0], [*rows[1][:2], "1 x"], *rows[2:]], "something other than integers"),
    ],
)
def test_invalid_tables_are_refused(written, tiny_cohort, tmp_path, refusal, change, expected):
    rows = [row for row in csv.reader((written["table"] / "predictions.csv").open())]
    with (tmp_path / "bad.csv").open("w", newline="") as file:
        csv.writer(file).writerows(change(rows))
    message = refusal(gitseg_tf.score, tmp_path / "bad.csv", tiny_cohort.root)
    assert message.startswith(f"{tmp_path / 'bad.csv'}: ") and expected in message


def test_other_inputs_are_refused(written, tiny_cohort, tiny_dataset, tmp_path, refusal, make_cohort):
    score = gitseg_tf.score
    assert "contains no masks; expected a table" in refusal(score, tiny_cohort.root / "train", tiny_cohort.root)
    assert "does not exist" in refusal(score, tmp_path / "nothing", tiny_cohort.root)
    assert "give the cohort that it was converted from" in refusal(score, written["nifti"], tiny_dataset.root)
    bare = make_cohort(tmp_path / "bare", labeled=False)
    assert "has no annotations to compare with" in refusal(score, written["nifti"], bare.root)
    both = shutil.copytree(written["nifti"], tmp_path / "both")
    shutil.copy(written["submission"] / "submission.csv", both)
    assert "contains masks as table and as NIfTI" in refusal(score, both, tiny_cohort.root)
    (tmp_path / "two").mkdir()
    for name in ("a.csv", "b.csv"):
        shutil.copy(written["submission"] / "submission.csv", tmp_path / "two" / name)
    assert "a.csv and b.csv are both tables of masks" in refusal(score, tmp_path / "two", tiny_cohort.root)


def test_only_the_scores_of_the_same_masks_are_replaced(written, tiny_cohort, tmp_path, refusal):
    out = tmp_path / "out"
    gitseg_tf.score(written["nifti"], tiny_cohort.root, out)
    gitseg_tf.score(written["nifti"], tiny_cohort.root, out)
    message = refusal(gitseg_tf.score, written["table"], tiny_cohort.root, out)
    assert message.startswith(f"{out}: contains other files")
    gitseg_tf.score(written["table"], tiny_cohort.root, out, force=True)
    assert json.loads((out / "evaluation.json").read_text())["format"] == "table"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").touch()
    assert "contains other files" in refusal(gitseg_tf.score, written["table"], tiny_cohort.root, tmp_path / "notes")


# NIfTI references and the output of other tools.


@pytest.fixture
def reference(patients, nifti, tmp_path):
    """An nnU-Net folder of two scans, stored along other axes; and their masks without overlaps."""
    root, masks = tmp_path / "reference", {}
    for scan in (patients.scans[0], patients.scans[2]):
        masks[scan.id] = nifti.without_overlaps(scan.masks)
        affine = nifti.affine_of(scan, "RAS")
        save(root / "imagesTr" / f"{scan.id}_0000.nii.gz", nifti.stored_as(scan.image, "RAS"), affine, np.uint16)
        stored = nifti.stored_as(nifti.label_map(masks[scan.id]), "RAS")
        save(root / "labelsTr" / f"{scan.id}.nii.gz", stored, affine)
    labels = {"background": 0, **{name: k for k, name in enumerate(NAMES, 1)}}
    tree = {"labels": labels, "channel_names": {"0": "MR"}, "file_ending": ".nii.gz", "numTraining": 2}
    (root / "dataset.json").write_text(json.dumps(tree))
    return root, masks


def nnunet_output(root, patients, nifti, masks, numbers=(1, 2, 3), codes="LPI"):
    """Label maps as nnU-Net writes them, in another orientation."""
    for scan_id, own in masks.items():
        scan = patients[scan_id]
        stored = nifti.stored_as(nifti.label_map(shifted(own), numbers), codes)
        save(root / f"{scan_id}.nii.gz", stored, nifti.affine_of(scan, codes))
    return root


def known_dice(masks):
    return {
        (scan_id, name): 2 * (own[k] & shifted(own)[k]).sum() / (own[k].sum() + shifted(own)[k].sum())
        for scan_id, own in masks.items()
        for k, name in enumerate(NAMES)
        if own[k].any()
    }


def test_label_maps_in_another_orientation_and_numbering(reference, patients, nifti, tmp_path):
    root, masks = reference
    out = nnunet_output(tmp_path / "nnunet", patients, nifti, masks, (5, 2, 7))
    labels = {"background": 0, "Stomach": 7, "small bowel": [2], "large_bowel": 5, "ignore": 9}
    (out / "dataset.json").write_text(json.dumps({"labels": labels}))
    (out / "plans.json").write_text("{}")
    gitseg_tf.score(out, root, tmp_path / "scores")
    assert dice_in(tmp_path / "scores") == pytest.approx(known_dice(masks))


def test_label_maps_without_names_are_read_as_those_of_the_reference(reference, patients, nifti, tmp_path, caplog):
    root, masks = reference
    caplog.set_level("INFO", "gitseg_tf")
    gitseg_tf.score(nnunet_output(tmp_path / "nnunet", patients, nifti, masks), root, tmp_path / "scores")
    assert dice_in(tmp_path / "scores") == pytest.approx(known_dice(masks))
    assert any("no dataset.json, so the values are read as those of the reference" in line for line in caplog.messages)


def test_another_annotator_s_nnunet_folder(reference, patients, nifti, tmp_path):
    root, masks = reference
    other = shutil.copytree(root, tmp_path / "other")
    nnunet_output(other / "labelsTr", patients, nifti, masks, codes="RAS")
    gitseg_tf.score(other, root, tmp_path / "scores")
    assert dice_in(tmp_path / "scores") == pytest.approx(known_dice(masks))


def test_masks_like_those_of_totalsegmentator(reference, patients, nifti, tmp_path):
    root, masks = reference
    for scan_id, own in masks.items():
        for k, name in enumerate(("colon", "small_bowel", "stomach")):
            stored = nifti.stored_as(shifted(own)[k], "LPS")
            path = tmp_path / "ts" / scan_id / "segmentations" / f"{name}.nii.gz"
            save(path, stored, nifti.affine_of(patients[scan_id], "LPS"))
    summary = gitseg_tf.score(tmp_path / "ts", root, tmp_path / "scores", labels="uwmgi")
    assert dice_in(tmp_path / "scores") == pytest.approx(known_dice(masks))
    assert summary["format"] == "NIfTI"
    # The folder of a single scan, for a reference of that scan only.
    scan_id = min(masks)
    for folder in ("imagesTr", "labelsTr"):
        for path in (root / folder).iterdir():
            if not path.name.startswith(scan_id):
                path.unlink()
    gitseg_tf.score(tmp_path / "ts" / scan_id / "segmentations", root, tmp_path / "one", labels="uwmgi")
    assert dice_in(tmp_path / "one") == pytest.approx({k: v for k, v in known_dice(masks).items() if k[0] == scan_id})


def test_label_tables_in_the_header_name_the_values(reference, patients, nifti, tmp_path):
    root, masks = reference
    out = nnunet_output(tmp_path / "ml", patients, nifti, masks, (3, 1, 2))
    table = "".join(f'<Label Key="{k}">{name}</Label>' for k, name in ((3, NAMES[0]), (1, NAMES[1]), (2, NAMES[2])))
    for path in out.iterdir():
        image = nibabel.load(path)
        image = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
        image.header.extensions.append(Nifti1Extension(0, f"<LabelTable>{table}</LabelTable>".encode()))
        nibabel.save(image, path)
    gitseg_tf.score(out, root, tmp_path / "scores")
    assert dice_in(tmp_path / "scores") == pytest.approx(known_dice(masks))


def test_values_that_nothing_names_are_refused(tiny_cohort, tmp_path, refusal):
    save(tmp_path / "maps" / "case1_day0.nii.gz", np.full((4, 4, 4), 2), np.eye(4))
    message = refusal(gitseg_tf.score, tmp_path / "maps", tiny_cohort.root)
    assert "nothing names the values of its label maps (2); add a dataset.json" in message


def test_grids_that_differ_are_refused_with_both(reference, patients, nifti, tmp_path, refusal):
    root, masks = reference
    scan = patients.scans[0]
    out = nnunet_output(tmp_path / "nnunet", patients, nifti, masks)
    affine = nifti.affine_of(scan, "LPI")
    affine[:3, 3] += 1
    save(out / f"{scan.id}.nii.gz", np.zeros(nifti.stored_as(scan.image, "LPI").shape), affine)
    message = refusal(gitseg_tf.score, out, root)
    assert message.startswith(f"{out / scan.id}.nii.gz: its grid is 8 x 40 x 64 voxels of 3 x 1.5 x 1.25 mm from (51, ")
    assert "is 8 x 40 x 64 voxels of 3 x 1.5 x 1.25 mm from (50, " in message
    save(out / f"{scan.id}.nii.gz", np.zeros((64, 40, 7)), nifti.affine_of(scan, "LPI"))
    assert "its grid is 7 x 40 x 64 voxels" in refusal(gitseg_tf.score, out, root)


def test_an_unknown_value_is_refused(reference, patients, nifti, tmp_path, refusal):
    root, masks = reference
    out = nnunet_output(tmp_path / "nnunet", patients, nifti, masks, (1, 2, 4))
    assert "contains the value 4, but the named values are 0, 1, 2, 3" in refusal(gitseg_tf.score, out, root)


def test_unannotated_labels_and_ignored_voxels_are_not_scored(reference, patients, nifti, tmp_path):
    root, masks = reference
    tree = json.loads((root / "dataset.json").read_text())
    tree["labels"]["ignore"] = 4
    (root / "dataset.json").write_text(json.dumps(tree))
    scan = patients.scans[0]
    wrong = shifted(masks[scan.id]) & ~masks[scan.id]
    stored = nifti.label_map(masks[scan.id])
    stored[wrong.any(0) & (stored == 0)] = 4
    save(root / "labelsTr" / f"{scan.id}.nii.gz", nifti.stored_as(stored, "RAS"), nifti.affine_of(scan, "RAS"))
    gitseg_tf.score(nnunet_output(tmp_path / "nnunet", patients, nifti, masks), root, tmp_path / "scores")
    expected = {}
    counted = stored != 4
    for k, name in enumerate(NAMES):
        truth, prediction = masks[scan.id][k] & counted, shifted(masks[scan.id])[k] & counted
        expected[scan.id, name] = 2 * (truth & prediction).sum() / (truth.sum() + prediction.sum())
    found = dice_in(tmp_path / "scores")
    assert {key: found[key] for key in expected} == pytest.approx(expected)


# Structure sets.


@pytest.fixture
def series(write, patients, clinic):
    """A DICOM cohort of three scans with contours, and their masks as drawn."""
    for index in range(len(patients.scans)):
        write(index).write_series().write_structures()
    return clinic


def test_structure_sets_score_like_nifti_of_the_same_masks(series, tmp_path):
    cohort = read_cohort(series)
    masks = {scan.id: shifted(scan.read_annotation().masks) for scan in cohort.scans}
    labels = LabelSet.of(*cohort.labels.names)
    for form in ("rtstruct", "nifti", "labelmap", "table"):
        write(form, series, tmp_path / form, masks.get, labels)
        gitseg_tf.score(tmp_path / form, series, tmp_path / "scores" / form)
    scores = {
        form: (tmp_path / "scores" / form / "evaluation.csv").read_bytes() for form in ("rtstruct", "nifti", "table")
    }
    assert len(set(scores.values())) == 1
    assert len(dice_in(tmp_path / "scores/rtstruct")) == 9


def test_structure_sets_need_a_dicom_reference(series, tiny_cohort, tmp_path, refusal):
    message = refusal(gitseg_tf.score, series, tiny_cohort.root)
    assert "contains structure sets, which need a DICOM reference" in message and "is competition" in message


def test_a_roi_drawn_by_two_structure_sets_is_refused(series, tmp_path, refusal):
    cohort = read_cohort(series)
    masks = {scan.id: scan.read_annotation().masks for scan in cohort.scans}
    for name in ("a", "b"):
        write("rtstruct", series, tmp_path / "out" / name, masks.get, LabelSet.of(*cohort.labels.names))
    message = refusal(gitseg_tf.score, tmp_path / "out", series)
    assert "is drawn twice; remove one" in message and "/a/" in message and "/b/" in message


def test_a_converted_run_and_the_score_command_agree(written, tiny_cohort, tmp_path):
    """`gitseg compare` pairs the scores with those of a run on the same cohort."""
    summary = gitseg_tf.score(written["nifti"], tiny_cohort.root)
    dataset = convert(tiny_cohort.root, tmp_path / "records", folds=2, workers=1)
    assert summary["dataset"] == dataset.source["fingerprint"]
