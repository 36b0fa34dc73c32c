"""What an evaluation scores, and where its results go."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import tensorflow as tf

import gitseg_tf
from gitseg_tf.cli import main
from gitseg_tf.config import load_config, save_config
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.evaluation.evaluate import evaluate
from gitseg_tf.evaluation.scope import choose_scope
from gitseg_tf.labels import UWMGI
from gitseg_tf.runs.run import load_run

OTHER = [
    ("case1_day0", (40, 64), range(1, 9)),
    ("case7_day0", (40, 64), range(1, 8)),
    ("case8_day0", (48, 40), (1, 3, 4)),
]


def bright_pixels(windows):
    """A network that predicts every label where the slice is bright."""
    return tf.repeat(tf.cast(windows[..., :1] > 0.2, tf.float32), 3, -1)


@pytest.fixture
def run(tmp_path, tiny_dataset, monkeypatch):
    """A run that held out fold 0 of the synthetic dataset, with its own evaluation."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gitseg_tf.inference.predictor.run_probabilities", lambda run: bright_pixels)
    known = {
        "dataset": tiny_dataset.source["fingerprint"],
        "records": str(tiny_dataset.root),
        "trained_on": sorted({scan.case for scan in tiny_dataset.scans_of([1, 2])}),
    }
    settings = {"data.input_size": [64, 64], "data.crop": "none", "data.window_slices": 1, "data.folds": 3}
    config = load_config(overrides=settings | {"provenance": known}).for_dataset(UWMGI, ("image",))
    path = tmp_path / "runs" / "one"
    (path / "checkpoints").mkdir(parents=True)
    save_config(config, path / "config.yaml")
    (path / "checkpoints/best.weights.h5").touch()
    evaluate(load_run(path), tiny_dataset)
    return load_run(path)


@pytest.fixture
def other(make_cohort, tmp_path):
    return make_cohort(tmp_path / "other site", OTHER)


def own_files(run):
    return {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}


def test_the_held_out_fold_is_scored_into_the_run(run, tiny_dataset):
    summary = json.loads((run.path / "evaluation.json").read_text())
    assert set(summary["per_scan"]) == {scan.id for scan in tiny_dataset.scans_of([0])}
    assert summary["scope"] == "held-out fold" and summary["dataset_name"] == "cohort"
    assert not (run.path / "evaluations").exists()


def test_another_cohort_is_scored_whole_into_its_own_folder(run, other, capsys):
    before = own_files(run)
    assert main(["evaluate", str(run.path), "--data", str(other.root)]) == 0
    assert own_files(run) == before
    (folder,) = (run.path / "evaluations").iterdir()
    summary = json.loads((folder / "evaluation.json").read_text())
    assert folder.name == f"other_site-{summary['dataset'][:8]}"
    rows = pd.read_csv(folder / "evaluation.csv")
    assert sorted(rows["scan"].unique()) == [name for name, *_ in OTHER] and len(rows) == 9
    assert summary["fold"] == "all" and summary["scope"] == "other dataset" and summary["scans"] == 3
    assert "Run one on other site" in (folder / "report.html").read_text()
    assert capsys.readouterr().out.splitlines()[-1] == f"report     {folder / 'report.html'}"


def test_patients_with_the_ids_of_training_patients_are_reported(run, other, tiny_dataset, capsys):
    assert "case1" in run.config.provenance["trained_on"]
    assert main(["evaluate", str(run.path), "--data", str(other.root)]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line and "not fully" not in line]
    assert len(lines) == 1 and "the ids of 1 of 3 patients (case1)" in lines[0]
    (folder,) = (run.path / "evaluations").iterdir()
    assert json.loads((folder / "evaluation.json").read_text())["trained_on"] == ["case1"]


def test_a_converted_dataset_and_one_of_its_folds(run, other, tmp_path):
    dataset = convert(other.root, tmp_path / "records", folds=3, workers=1)
    whole = gitseg_tf.evaluate(run, tmp_path / "records")
    assert whole["cases"] == 3 and whole == gitseg_tf.evaluate(str(run.path), dataset)
    part = gitseg_tf.evaluate(run, dataset, 1)
    assert set(part["per_scan"]) == {scan.id for scan in dataset.scans_of([1])} and part["fold"] == 1
    names = sorted(path.name for path in (run.path / "evaluations").iterdir())
    assert names == [f"other_site-{whole['dataset'][:8]}", f"other_site-{whole['dataset'][:8]}-fold1"]


def test_scans_excluded_from_training_are_scored_in_another_dataset(run, other, tmp_path):
    data = run.config.data.model_copy(update={"exclude_scans": ("case7_day0",)})
    excluding = replace(run, config=run.config.model_copy(update={"data": data}))
    dataset = convert(other.root, tmp_path / "records", folds=2, workers=1)
    assert evaluate(excluding, dataset)["scans"] == 3


def test_another_fold_and_another_split_of_the_same_cohort_do_not_replace_the_run_s_scores(
    run, tiny_dataset, tiny_cohort, tmp_path
):
    before = own_files(run)
    assert gitseg_tf.evaluate(run, fold=1)["trained_on"]
    split = convert(tiny_cohort.root, tmp_path / "two", folds=2, seed=3, workers=1)
    assert set(run.config.provenance["trained_on"]) & {scan.case for scan in split.scans_of([0])}
    assert evaluate(run, split)["scope"] == "other fold"
    assert own_files(run) == before
    names = sorted(path.name for path in (run.path / "evaluations").iterdir())
    assert [name.split("-")[-1] for name in names] == ["fold0", "fold1"]
    assert gitseg_tf.evaluate(run)["trained_on"] == [] and own_files(run) == before


def test_a_cohort_of_another_layout_gets_the_same_scores(run, make_cohort, rows_of, save_table, tmp_path, nifti):
    cohort = make_cohort(tmp_path / "png", OTHER[:2])
    scans = [replace(scan, masks=nifti.without_overlaps(scan.masks)) for scan in cohort.scans]
    save_table(cohort.root, rows_of(scans))
    root = tmp_path / "nnunet"
    for scan in scans:
        for folder, voxels, ending in (("images", scan.image, "_0000"), ("labels", nifti.label_map(scan.masks), "")):
            stored = nifti.stored_as(voxels, "RAS")
            nifti.save(root / f"{folder}Tr" / f"{scan.id}{ending}.nii.gz", stored, nifti.affine_of(scan, "RAS"))
    labels = {"background": 0, **{name: k for k, name in enumerate(UWMGI.names, 1)}}
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "MRI"}}))
    evaluated = [gitseg_tf.evaluate(run, folder) for folder in (cohort.root, root)]
    png, nnunet = (
        pd.read_csv(next((run.path / "evaluations").glob(f"{name}-*")) / "evaluation.csv") for name in ("png", "nnunet")
    )
    pd.testing.assert_frame_equal(png, nnunet)
    assert evaluated[0]["dice"] == evaluated[1]["dice"] > 0


def test_labels_or_channels_that_do_not_match_are_one_line(run, other, tmp_path, refusal, caplog):
    dataset = convert(other.root, tmp_path / "records", folds=1, workers=1)
    fewer = replace(dataset, labels=UWMGI.subset(["stomach", "large_bowel"]))
    assert "choose a dataset with small_bowel" in refusal(evaluate, run, fewer)
    assert "has t1, t2" in refusal(evaluate, run, replace(dataset, channels=("t1", "t2")))
    named = replace(run, config=run.config.model_copy(update={"channels": ("CT",)}))
    assert "the dataset" in refusal(evaluate, named, replace(dataset, channels=("MR",)))
    assert not (run.path / "evaluations").exists()
    caplog.set_level("INFO", "gitseg_tf")
    evaluate(named, dataset)  # PNG has no names of channels
    assert "channels   the dataset's image is taken as the run's CT" in caplog.messages


def test_a_dataset_without_annotations_is_refused(run, make_cohort, tmp_path, refusal):
    cohort = make_cohort(tmp_path / "bare", OTHER, labeled=False)
    dataset = convert(cohort.root, tmp_path / "records", workers=1)
    assert "records has no annotations; choose one with large_bowel" in refusal(evaluate, run, dataset)
    with_labels = replace(dataset, labels=UWMGI)
    assert "no scan is annotated" in refusal(choose_scope, run, with_labels)
