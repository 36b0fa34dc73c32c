"""An ensemble of cross-validations that differ in plane and dimension: prediction, scores, tuning and export."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers.folds import random_cross_validation

from gitseg_tf.cli import main
from gitseg_tf.data.tfrecords.dataset import read_scans
from gitseg_tf.inference.predictor import load_predictor
from gitseg_tf.runs.cross_validation import cases_by_fold
from gitseg_tf.runs.ensemble import load_ensemble

pytestmark = pytest.mark.slow

GRID = {"threshold": (None, 0.3, 0.6), "min_component_ml": (0.0, 0.5)}
KINDS = {
    "axial": {},
    "coronal": {"data__plane": "coronal", "data__input_size": [32, 64], "augment__flip__p": 0.0},
    "volume": {"data__patch": [4, 32, 32], "model__architecture": "unet3d"},
}
SHARES = {"axial": 0.5, "coronal": 0.3, "volume": 0.2}


@pytest.fixture(scope="module", autouse=True)
def small_grid():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gitseg_tf.evaluation.tuning.search.GRID", GRID)
        yield


@pytest.fixture(scope="module")
def members(tiny_dataset, tmp_path_factory):
    root = tmp_path_factory.mktemp("members")
    return {name: random_cross_validation(root / name, tiny_dataset, **changes) for name, changes in KINDS.items()}


@pytest.fixture(scope="module")
def ensemble(members):
    """An ensemble with known weights."""
    out = next(iter(members.values())).parent / "ensemble"
    assert main(["ensemble", *map(str, members.values()), "--out", str(out), "--weights", "5,3,2"]) == 0
    return out


@pytest.fixture
def copied(ensemble, tmp_path):
    shutil.copytree(ensemble.parent, tmp_path / "copy")
    for name in ("evaluation.json", "evaluation.csv", "report.html"):
        (tmp_path / "copy" / ensemble.name / name).unlink(missing_ok=True)
    return tmp_path / "copy" / ensemble.name


def error_line(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


def weighted(members, volume, runs):
    """The weighted mean of the probabilities; `runs` is a function from a member's folder to a model."""
    return sum(share * load_predictor(runs(members[name])).probabilities(volume) for name, share in SHARES.items())


def test_an_ensemble_predicts_the_weighted_mean(members, ensemble, tiny_dataset):
    scan = next(read_scans(tiny_dataset, [0]))
    predictor = load_predictor(ensemble)
    found = predictor.probabilities(scan.volume)
    assert found.std() > 0.01 and len(load_ensemble(ensemble).runs) == 9
    np.testing.assert_allclose(found, weighted(members, scan.volume, lambda path: path), atol=1e-5)
    assert predictor.identity.name == "ensemble" and len(predictor.identity.weights) == 64


def test_each_fold_is_scored_by_the_runs_that_held_it_out(members, ensemble, tiny_dataset):
    assert main(["evaluate", str(ensemble)]) == 0
    summary = json.loads((ensemble / "evaluation.json").read_text())
    assert list(summary["folds"]) == ["0", "1", "2"] and summary["scope"] == "held-out fold"
    rows = pd.read_csv(ensemble / "evaluation.csv")
    assert set(rows["scan"]) == {scan.id for scan in tiny_dataset.scans_of(range(3))}
    for fold in (0, 2):
        scan = next(read_scans(tiny_dataset, [fold]))
        masks = weighted(members, scan.volume, lambda path, fold=fold: path / f"fold{fold}") >= 0.5
        for k, label in enumerate(tiny_dataset.labels.names):
            truth = scan.annotation.masks[k]
            if truth.any():
                (row,) = rows[(rows["scan"] == scan.id) & (rows["label"] == label)].to_dict("records")
                expected = 2 * (masks[k] & truth).sum() / (masks[k].sum() + truth.sum())
                assert row["dice"] == pytest.approx(expected, abs=2e-3)
    assert "axial slices" not in (ensemble / "report.html").read_text()
    assert "coronal slices" in (ensemble / "report.html").read_text()


def test_one_fold_has_scores_of_its_own(copied, tiny_dataset):
    assert main(["evaluate", str(copied), "--fold", "1"]) == 0
    (folder,) = (copied / "evaluations").iterdir()
    assert folder.name.endswith("-fold1") and not (copied / "evaluation.json").exists()
    summary = json.loads((folder / "evaluation.json").read_text())
    assert summary["trained_on"] == [] and summary["scans"] == len(tiny_dataset.scans_of([1]))


def test_tuning_saves_weights_and_settings_that_evaluation_uses(copied, tiny_dataset, capsys):
    assert main(["tune", str(copied), "--metric", "dice", "--per-label"]) == 0
    text = capsys.readouterr()
    assert "with equal weights" in text.out + text.err
    tree = yaml.safe_load((copied / "ensemble.yaml").read_text())
    tuned = tree["provenance"]["tuned"]
    assert [entry["run"] for entry in tree["members"]] == ["../axial", "../coronal", "../volume"]
    assert tuned["fold"] == "all" and tuned["cases"] == sorted(sum(cases_by_fold(tiny_dataset), ()))
    assert tuned["tuned_weights"] >= tuned["equal_weights"] and tuned["score_after"] >= tuned["score_before"]
    assert main(["evaluate", str(copied)]) == 0
    summary = json.loads((copied / "evaluation.json").read_text())
    assert summary["dice"] == pytest.approx(tuned["score_after"], abs=5e-3)
    assert summary["tuned_on"] == tuned["cases"]


def test_runs_that_held_out_the_same_fold_are_scored_on_it(members, tmp_path, tiny_dataset, capsys):
    out = tmp_path / "ensemble"
    runs = [str(members[name] / "fold1") for name in ("axial", "coronal")]
    assert main(["ensemble", *runs, "--out", str(out)]) == 0
    before = (out / "ensemble.yaml").read_text()
    assert main(["tune", str(out), "--dry-run"]) == 0
    assert (out / "ensemble.yaml").read_text() == before
    assert main(["ensemble", *runs, "--out", str(out), "--tune", "--force"]) == 0
    tuned = yaml.safe_load((out / "ensemble.yaml").read_text())["provenance"]["tuned"]
    assert tuned["fold"] == 1 and tuned["cases"] == list(cases_by_fold(tiny_dataset)[1])
    assert main(["evaluate", str(out)]) == 0
    assert json.loads((out / "evaluation.json").read_text())["fold"] == 1
    assert "did not all hold out fold 0" in error_line(capsys, "evaluate", out, "--fold", 0)


def test_members_without_a_common_fold_predict_but_are_not_scored(members, tmp_path, tiny_dataset, capsys):
    out = tmp_path / "ensemble"
    assert main(["ensemble", str(members["axial"] / "fold0"), str(members["axial"] / "fold1"), "--out", str(out)]) == 0
    for command in ("evaluate", "tune"):
        assert "no held-out fold in common" in error_line(capsys, command, out)
    volume = next(read_scans(tiny_dataset, [2])).volume
    alone = [load_predictor(members["axial"] / f"fold{k}").probabilities(volume) for k in (0, 1)]
    np.testing.assert_allclose(load_predictor(out).probabilities(volume), np.mean(alone, 0), atol=1e-5)


def test_a_run_that_saw_a_held_out_patient_is_refused(copied, tiny_dataset, capsys):
    path = copied.parent / "coronal/fold2/config.yaml"
    tree = yaml.safe_load(path.read_text())
    case = cases_by_fold(tiny_dataset)[2][0]
    tree["provenance"]["trained_on"].append(case)
    path.write_text(yaml.safe_dump(tree))
    for command in ("evaluate", "tune"):
        assert f"was trained on {case} of fold 2" in error_line(capsys, command, copied)


def test_members_with_other_folds_are_refused(copied, capsys):
    path = copied.parent / "volume/cross_validation.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["provenance"]["folds"][0], tree["provenance"]["folds"][1] = tree["provenance"]["folds"][1::-1]
    path.write_text(yaml.safe_dump(tree))
    assert "have different patients" in error_line(capsys, "evaluate", copied)


def test_ensembles_of_one_kind_of_windows_are_exported_and_others_refused(
    members, ensemble, tmp_path, capsys, tiny_dataset
):
    assert "differ in plane, windows" in error_line(capsys, "export", ensemble)
    out = tmp_path / "ensemble"
    runs = [str(members["coronal"] / f"fold{k}") for k in (0, 1)]
    assert main(["ensemble", *runs, "--out", str(out), "--weights", "3,1"]) == 0
    assert main(["export", str(out)]) == 0
    volume = next(read_scans(tiny_dataset, [2])).volume
    np.testing.assert_allclose(
        load_predictor(out / "export").probabilities(volume), load_predictor(out).probabilities(volume), atol=1e-5
    )


def test_wrong_members_are_refused(members, ensemble, tmp_path, capsys, refusal):
    axial = members["axial"]
    assert "is listed twice" in error_line(capsys, "ensemble", axial, axial, "--out", tmp_path / "x")
    assert "is an ensemble; list its runs" in error_line(capsys, "ensemble", axial, ensemble, "--out", tmp_path / "x")
    assert "is not a run" in error_line(capsys, "ensemble", axial, tmp_path, "--out", tmp_path / "x")
    assert "already exists" in error_line(capsys, "ensemble", axial, members["coronal"], "--out", ensemble)
    assert "give it alone" in refusal(load_predictor, [ensemble, axial])
    assert "is an ensemble, which cannot be viewed" in error_line(capsys, "view", ensemble)
    assert not (tmp_path / "x").exists()
    for wrong in (["--weights", "1"], ["--weights", "1,-1"], ["--metric", "dice"]):
        with pytest.raises(SystemExit) as caught:
            main(["ensemble", str(axial), str(members["coronal"]), "--out", str(tmp_path / "x"), *wrong])
        assert caught.value.code == 2
