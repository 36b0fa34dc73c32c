"""Pseudo-labels of a model whose probabilities are known, and the command."""

import csv

import numpy as np
import pytest
import tensorflow as tf
import yaml
from helpers.folds import random_cross_validation
from helpers.known_networks import labeled

from gitseg_tf.cli import main
from gitseg_tf.config import load_config
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.data.tfrecords.dataset import load_dataset, read_scans
from gitseg_tf.data.tfrecords.index import PSEUDO
from gitseg_tf.data.volume import Annotation, LoadedScan, Volume
from gitseg_tf.inference.predictor import Predictor, load_predictor
from gitseg_tf.inference.pseudo_labels import label_scan
from gitseg_tf.labels import UWMGI, LabelSet

SIZE = 64
CONFIG = {"data.input_size": [SIZE, SIZE], "data.crop": "none", "data.window_slices": 1}
CONFIG |= {"data.intensity": [{"kind": "window", "low": 0, "high": 1000}]}


def brightness(windows):
    """A network whose probability of the stomach is the brightness, and of the small bowel the darkness."""
    middle = windows[..., 0]
    return tf.stack([tf.zeros_like(middle), 1 - middle, middle], -1)


@pytest.fixture
def scan():
    """A scan without annotation; its columns are 0 to 1000 in brightness."""
    voxels = np.broadcast_to(np.linspace(0, 1000, SIZE).round().astype(np.uint16), (3, SIZE, SIZE)).copy()
    return LoadedScan("case1_day0", "case1", Volume(voxels, (3.0, 1.5, 1.5)), None)


def probability(scan):
    return scan.volume.voxels / 1000


def test_voxels_between_the_confidences_are_uncertain(scan):
    predictor = Predictor.of_network(brightness, labeled(CONFIG))
    pseudo = label_scan(predictor, scan, UWMGI, 0.9)
    p = np.stack([np.zeros(scan.volume.shape), 1 - probability(scan), probability(scan)])
    assert pseudo.labels.tolist() == [True, True, True]
    clear = (np.abs(p - 0.9) > 1e-3) & (np.abs(p - 0.1) > 1e-3) & (np.abs(p - 0.5) > 1e-3)
    assert np.array_equal(pseudo.uncertain[clear], ((p > 0.1) & (p < 0.9))[clear])
    assert np.array_equal(pseudo.masks[clear], (p >= 0.5)[clear])
    assert not label_scan(predictor, scan, UWMGI, 0.5).uncertain.any()


def test_voxels_that_postprocessing_changes_are_uncertain(scan):
    scan.volume.voxels[:, 20:30, 5:15] = 1000  # a second, smaller component of the stomach
    config = labeled(CONFIG | {"postprocess.stomach.keep_largest_component": True})
    pseudo = label_scan(Predictor.of_network(brightness, config), scan, UWMGI, 0.9)
    assert not pseudo.masks[2, :, 20:30, 5:15].any() and pseudo.uncertain[2, :, 20:30, 5:15].all()
    assert pseudo.masks[2, :, :, -3:].all() and not pseudo.uncertain[2, :, :, -3:].any()


def test_only_labels_without_annotation_are_predicted(scan):
    labels = LabelSet.of("stomach", "liver", "large_bowel")  # another order, and a label that the model lacks
    masks = np.zeros((3, *scan.volume.shape), bool)
    annotated = LoadedScan(scan.id, scan.case, scan.volume, Annotation(masks, np.array([False, False, True])))
    config = load_config(None, CONFIG).for_dataset(labels.subset(["large_bowel", "stomach"]), ("image",))
    predictor = Predictor.of_network(lambda windows: brightness(windows)[..., ::2], config)
    pseudo = label_scan(predictor, annotated, labels, 0.9)
    assert pseudo.labels.tolist() == [True, False, False]
    clear = np.abs(probability(scan) - 0.5) > 1e-3
    assert np.array_equal(pseudo.masks[0][clear], (probability(scan) >= 0.5)[clear])
    assert not pseudo.masks[1:].any() and not pseudo.uncertain[1:].any()
    complete = LoadedScan(scan.id, scan.case, scan.volume, Annotation.complete(masks))
    assert label_scan(Predictor.of_network(brightness, labeled(CONFIG)), complete, UWMGI, 0.9) is None


@pytest.mark.parametrize("confidence", ["0.4", "1", "high"])
def test_a_confidence_out_of_range_is_wrong_usage(confidence, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["pseudo-label", "run", "scans", "out", "--confidence", confidence])
    assert stopped.value.code == 2 and "must be at least 0.5 and less than 1" in capsys.readouterr().err


def check_uncertain(dataset, runs):
    """Compare the uncertain voxels at a confidence of 0.7 with the mean probabilities of the runs."""
    predictors = [load_predictor(run) for run in runs]
    for scan in read_scans(dataset, [PSEUDO]):
        p = np.mean([predictor.probabilities(scan.volume) for predictor in predictors], 0)
        clear = (np.abs(p - 0.3) > 1e-4) & (np.abs(p - 0.7) > 1e-4)
        assert np.array_equal(scan.pseudo.uncertain[clear], ((p > 0.3) & (p < 0.7))[clear])


@pytest.mark.slow
def test_the_command_writes_a_dataset_to_train_on(
    make_cohort, rows_of, save_table, tmp_path, monkeypatch, capsys, refusal
):
    cohort = make_cohort(tmp_path / "cohort")
    rows = [row for row in rows_of(cohort.scans) if not row[0].startswith(("case6", "case1_day5"))]
    save_table(cohort.root, [row for row in rows if not (row[0].startswith("case2") and row[1] == "stomach")])
    base = convert(cohort.root, tmp_path / "base", folds=3, workers=1)
    folds = random_cross_validation(tmp_path / "folds", base)
    out = tmp_path / "pseudo"
    assert main(["pseudo-label", str(folds), str(base.root), str(out), "--confidence", "0.7"]) == 0
    dataset = load_dataset(out)
    *counts, last = capsys.readouterr().out.splitlines()
    assert last == f"dataset    {out}: {dataset.pseudo_line}"
    assert counts[-1] == "label      stomach: predicted in 4 scans"
    assert dataset.pseudo_labels.confidence == 0.7 and dataset.pseudo_labels.model == "folds"
    assert dataset.pseudo_labels.trained_on == ("case1", "case2", "case3", "case4", "case5")
    # The probabilities are the mean over the runs of the cross-validation.
    check_uncertain(dataset, [folds / f"fold{k}" for k in range(3)])
    assert main(["convert", "--verify", str(out)]) == 0
    assert f"pseudo     {dataset.pseudo_line}\n" in capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    settings = ["data.input_size=[32,32]", "data.window_slices=1", "model.filters=4", "model.levels=2"]
    settings += ["training.epochs=1", "training.precision=float32", "training.strategy=one_device"]
    words = ["train", "--data", str(out), "--out", "run", *(part for s in settings for part in ("--set", s))]
    assert main(words) == 0
    log = capsys.readouterr()
    text = log.out + log.err
    assert dataset.pseudo_line in text and "scores are slightly optimistic" in text
    known = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["provenance"]
    assert known["pseudo_labels"]["model"] == "folds" and "case6" in known["trained_on"]
    scored = list(csv.DictReader((tmp_path / "run" / "evaluation.csv").open()))
    assert {row["scan"] for row in scored} == {scan.id for scan in dataset.scans_of([0])}

    members, ensemble = [folds / "fold0", folds / "fold2"], tmp_path / "ensemble"
    assert main(["ensemble", *map(str, members), "--out", str(ensemble)]) == 0
    assert main(["pseudo-label", str(ensemble), str(base.root), str(tmp_path / "by-two"), "--confidence", "0.7"]) == 0
    by_two = load_dataset(tmp_path / "by-two")
    check_uncertain(by_two, members)
    assert by_two.pseudo_labels.model == "ensemble"

    annotated = make_cohort(tmp_path / "annotated")
    assert main(["pseudo-label", str(folds), str(annotated.root), str(tmp_path / "b")]) == 1
    assert "9 scans of it have annotations; convert it with gitseg convert" in capsys.readouterr().err
    (annotated.root / "train.csv").unlink()
    mixed = tmp_path / "mixed"
    assert main(["ensemble", "run", str(members[0]), "--out", str(mixed)]) == 0
    assert main(["pseudo-label", str(mixed), str(annotated.root), str(tmp_path / "b")]) == 1
    assert "its runs were trained on different datasets; specify one with --data" in capsys.readouterr().err
