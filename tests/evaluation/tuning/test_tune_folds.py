"""Tuning, scoring and exporting a cross-validation as a whole."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import yaml
from helpers.folds import random_cross_validation

import gitseg_tf
from gitseg_tf.cli import main
from gitseg_tf.data.tfrecords.dataset import read_scans
from gitseg_tf.evaluation.cross_validation import evaluate_cross_validation
from gitseg_tf.evaluation.tuning import cross_validation as tuning
from gitseg_tf.evaluation.tuning.cross_validation import tune_cross_validation
from gitseg_tf.inference.predictor import load_predictor
from gitseg_tf.runs.cross_validation import fold_runs
from gitseg_tf.runs.run import load_run

pytestmark = pytest.mark.slow

# A small grid: the whole one takes 20 s on the noisy masks of random networks.
GRID = {"threshold": (None, 0.3, 0.6), "min_component_ml": (0.0, 0.5), "keep_largest_component": (False, True)}


@pytest.fixture(scope="module", autouse=True)
def small_grid():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gitseg_tf.evaluation.tuning.search.GRID", GRID)
        yield


@pytest.fixture(scope="module")
def untuned(tiny_dataset, tmp_path_factory):
    return random_cross_validation(tmp_path_factory.mktemp("folds") / "cv", tiny_dataset, augment__flip__p=0.5)


@pytest.fixture(scope="module")
def tuned(untuned, tiny_dataset):
    """The cross-validation after `gitseg tune`, and the scores before."""
    path = shutil.copytree(untuned, untuned.parent / "tuned")
    before = evaluate_cross_validation(path, tiny_dataset)
    assert main(["tune", str(path), "--metric", "score"]) == 0
    return path, before


@pytest.fixture
def copied(tuned, tmp_path):
    return shutil.copytree(tuned[0], tmp_path / "cv")


def error_line(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_tuning_reaches_the_score_of_evaluate(tuned, tiny_dataset):
    path, before = tuned
    facts = yaml.safe_load((path / "postprocess.yaml").read_text())["provenance"]["tuned"]
    assert facts["metric"] == "score"
    assert facts["score_before"] == pytest.approx(before["score"], abs=1e-6)
    assert main(["evaluate", str(path)]) == 0
    after = json.loads((path / "evaluation.json").read_text())
    assert facts["score_after"] == pytest.approx(after["score"], abs=1e-6)
    assert after["score"] > before["score"]
    assert after["tuned_on"] == sorted({scan.case for fold in range(3) for scan in tiny_dataset.scans_of([fold])})
    assert len(facts["scans"]) == 9 and facts["fold"] == "all"
    assert "all folds, out of fold" in (path / "report.html").read_text()


def test_all_runs_have_the_same_settings(tuned):
    path, _ = tuned
    contents = {run: (run / "postprocess.yaml").read_bytes() for run in (path, *fold_runs(path))}
    assert len(contents) == 4 and len(set(contents.values())) == 1
    settings = {str(load_run(run).config.postprocess) for run in fold_runs(path)}
    assert len(settings) == 1


def test_tuning_again_finds_the_same_settings(copied, tiny_dataset):
    before = (copied / "postprocess.yaml").read_bytes()
    tune_cross_validation(copied, tiny_dataset, metric="score")
    assert (copied / "postprocess.yaml").read_bytes() == before


def test_a_dry_run_writes_nothing(untuned, tiny_dataset):
    before = sorted(untuned.rglob("*"))
    _, steps = tune_cross_validation(untuned, tiny_dataset, dry_run=True)
    assert steps and sorted(untuned.rglob("*")) == before


@pytest.mark.parametrize("written", [0, 1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_an_interrupted_tuning_is_refused_until_it_is_repeated(
    untuned, tiny_dataset, tmp_path, monkeypatch, capsys, written
):
    """The process is killed after `written` of the four files."""
    path, left = shutil.copytree(untuned, tmp_path / "cv"), [written]
    write = tuning.write_atomically

    def killed(target, content):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write(target, content)

    monkeypatch.setattr(tuning, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        tune_cross_validation(path, tiny_dataset)
    if not written:
        assert not list(path.rglob("postprocess.yaml"))
        return
    for command in (["export", path], ["evaluate", path], ["predict", path, "scans", tmp_path / "out"]):
        if command[0] == "predict":
            command[2] = tmp_path
            with pytest.raises(gitseg_tf.RunError, match=f"run gitseg tune {path} again"):
                load_predictor([path])
            continue
        assert f"run gitseg tune {path} again" in error_line(capsys, *command)
    monkeypatch.setattr(tuning, "write_atomically", write)
    assert main(["tune", str(path)]) == 0
    assert len(list(path.rglob("postprocess.yaml"))) == 4
    load_predictor([path])


def test_a_fold_tuned_on_its_own_differs_from_the_others(copied, capsys):
    assert main(["tune", str(copied), "--fold", "1", "--tta", "flip"]) == 0
    own = (copied / "fold1/postprocess.yaml").read_bytes()
    assert own != (copied / "postprocess.yaml").read_bytes()
    assert "is not the post-processing in" in error_line(capsys, "export", copied)
    (copied / "postprocess.yaml").unlink()
    assert f"run gitseg tune {copied}, which chooses the same" in error_line(capsys, "export", copied)


def test_augmentation_is_tuned_and_exported_with_the_settings(untuned, tiny_dataset, tmp_path):
    path = shutil.copytree(untuned, tmp_path / "cv")
    assert main(["tune", str(path), "--tta", "flip", "--metric", "score"]) == 0
    facts = yaml.safe_load((path / "postprocess.yaml").read_text())
    assert facts["evaluation"] == {"tta": {"flip": True, "scales": []}}
    after = evaluate_cross_validation(path, tiny_dataset)
    assert facts["provenance"]["tuned"]["score_after"] == pytest.approx(after["score"], abs=1e-6)


def masks_of(exported, volume):
    segment = tf.saved_model.load(str(exported)).signatures["segment_volume_to_png"]
    image = volume.voxels.astype(np.float32)
    png = segment(image=tf.constant(image), spacing=tf.constant(volume.spacing, tf.float32),
                  numbers=tf.constant(volume.numbers, tf.int64))["masks_bytes"]  # fmt: skip
    depth, height, width = volume.shape
    planes = np.stack([tf.io.decode_png(one).numpy()[..., 0] for one in png])
    return planes.reshape(depth, -1, height, width).transpose(1, 0, 2, 3) > 0


@pytest.mark.parametrize("tta", ["none", "flip,scale"])
def test_the_export_of_a_cross_validation_segments_like_predict(untuned, tiny_dataset, tmp_path, tta):
    path = shutil.copytree(untuned, tmp_path / "cv")
    assert main(["tune", str(path), "--tta", tta]) == 0
    assert main(["export", str(path)]) == 0
    predictor, single = load_predictor([path]), load_predictor([path / "fold0"])
    served = load_predictor([path / "export"])
    agree, differ, count = 0, 0, 0
    for scan in read_scans(tiny_dataset, range(3)):
        expected = predictor.predict(scan.volume).masks
        masks = masks_of(path / "export/1", scan.volume)
        agree += int((masks == expected).sum())
        count += expected.size
        differ += int((single.predict(scan.volume).masks != expected).sum())
        assert (served.predict(scan.volume).masks == expected).mean() >= 0.999
    assert agree / count >= 0.999 and differ > 0


def test_the_model_card_has_the_out_of_fold_scores_or_says_why_not(copied, tuned, capsys):
    # The evaluation was written before the settings were tuned.
    path = shutil.copytree(copied, copied.parent / "stale")
    (path / "evaluation.json").write_text(json.dumps(tuned[1]))
    assert main(["export", str(path)]) == 0
    printed = capsys.readouterr()
    assert "model card without scores, because" in printed.out + printed.err
    card = (path / "export/1/assets.extra/model_card.md").read_text()
    assert f"None: {path / 'evaluation.json'} was written with other post-processing" in card
    assert f"run gitseg evaluate {path}" in card and not (path / "export/1/assets.extra/evaluation.json").exists()
    assert main(["evaluate", str(path)]) == 0
    assert main(["export", str(path), "--force"]) == 0
    card = (path / "export/1/assets.extra/model_card.md").read_text()
    score = json.loads((path / "evaluation.json").read_text())["score"]
    assert "Out-of-fold scores of the single networks" in card and f"| {score:.3f} " in card
    assert "mean of 3, one per fold" in card and "tuned on all folds, out of fold" in card
    assert "6 patients." in card and "fold 0 of the dataset" not in card
    facts = json.loads((path / "export/1/assets.extra/model.json").read_text())
    assert facts["networks"] == 3
    (path / "evaluation.json").unlink()
    assert main(["export", str(path), "--model-version", "next"]) == 0
    card = (path / "export/2/assets.extra/model_card.md").read_text()
    assert "None: the cross-validation was not evaluated." in card


def test_the_card_never_has_another_dataset_s_scores(copied):
    scores = json.loads((copied / "evaluation.json").read_text())
    (copied / "evaluation.json").write_text(json.dumps(scores | {"dataset": "other"}))
    assert main(["export", str(copied)]) == 0
    card = (copied / "export/1/assets.extra/model_card.md").read_text()
    assert "has the scores of another dataset" in card and "competition score" not in card


def test_another_dataset_is_scored_with_the_mean_of_all_networks(copied, make_cohort, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cohort = make_cohort(
        tmp_path / "site", [("case7_day0", (40, 64), range(1, 9)), ("case8_day0", (40, 64), range(1, 7))]
    )
    before = (copied / "evaluation.json").read_bytes()
    assert main(["evaluate", str(copied), "--data", str(cohort.root)]) == 0
    (folder,) = (copied / "evaluations").iterdir()
    rows = pd.read_csv(folder / "evaluation.csv")
    assert set(rows["scan"]) == {"case7_day0", "case8_day0"} and (copied / "evaluation.json").read_bytes() == before
    predictor = load_predictor([copied])
    for scan in gitseg_tf.open_cohort(cohort.root).scans:
        masks = predictor.predict(scan.read_volume()).masks
        ml = masks.sum((1, 2, 3)) * np.prod(scan.spacing) / 1000
        assert rows[rows["scan"] == scan.id]["prediction_ml"].tolist() == pytest.approx(ml.tolist())
    assert "mean of the 3 runs" in capsys.readouterr().out
    assert main(["evaluate", str(copied), "--data", str(cohort.root), "--fold", "1"]) == 0
    (folder,) = (copied / "fold1/evaluations").iterdir()
    assert json.loads((folder / "evaluation.json").read_text())["scans"] == 2


def test_other_formats_are_for_single_runs(copied, capsys):
    line = error_line(capsys, "export", copied, "--format", "onnx")
    assert "cannot be exported as onnx; export one of its runs" in line


def test_another_dataset_cannot_tune_a_cross_validation(copied, make_cohort, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cohort = make_cohort(tmp_path / "site", [(f"case{k}_day0", (40, 64), range(1, 9)) for k in range(3)])
    assert "was trained on a dataset other than" in error_line(capsys, "tune", copied, "--data", cohort.root)
