"""Evaluation with known predictions, without a network or shards."""

import json
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from gitseg_tf.config import load_config
from gitseg_tf.data.volume import Annotation, LoadedScan, Volume
from gitseg_tf.evaluation import evaluate as evaluation
from gitseg_tf.evaluation.metrics.scores import score_scan, summarize
from gitseg_tf.evaluation.statistics.intervals import mean_intervals
from gitseg_tf.inference.prediction import Prediction
from gitseg_tf.labels import UWMGI, LabelSet

SPACING = (3.0, 1.5, 1.25)


def scan(number, name=None, case=None):
    """Scan `number`, of its own patient, its masks, and a prediction shifted by `number` pixels."""
    truth = np.zeros((3, 4, 20, 16 + number), bool)
    truth[:, 1:3, 4:9, 3:8] = True
    image = np.arange(truth[0].size, dtype=np.uint16).reshape(truth.shape[1:])
    volume = Volume(image, SPACING)
    read = LoadedScan(name or f"case{number}_day0", case or f"case{number}", volume, Annotation.complete(truth))
    return read, truth, np.roll(truth, number, axis=3)


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """evaluated(scans) is the summary of these scans; the prediction of scan id `wrong` has the wrong size."""

    def of(chosen, wrong=None, labels=UWMGI, channels=("image",)):
        chosen = [scan(one) if isinstance(one, int) else one for one in chosen]
        scans = {read.id: (read, truth, prediction) for read, truth, prediction in chosen}
        predictions = iter([p[..., 1:] if name == wrong else p for name, (_, _, p) in scans.items()])

        def predict_levels(volume):
            masks = next(predictions)
            return Prediction(masks, levels=np.where(masks, 80, 20).astype(np.uint8))

        def check(volume):
            return ["too dark", "spacing 9"] * any(
                read.id == "case1_day0" for read, _, _ in scans.values() if read.volume is volume
            )

        monkeypatch.setattr(evaluation, "naming_damaged_shards", nullcontext)
        monkeypatch.setattr(evaluation, "read_scans", lambda *_: iter([read for read, _, _ in scans.values()]))
        predictor = SimpleNamespace(predict_levels=predict_levels, warnings=("a is not fully trained",), check=check)
        monkeypatch.setattr(evaluation, "Predictor", SimpleNamespace(of_run=lambda *_: predictor))
        run = SimpleNamespace(path=tmp_path, config=load_config(None, {"data.fold": 0}).for_dataset(UWMGI, ("image",)))
        dataset = SimpleNamespace(
            check_fold=lambda fold: None,
            scans_of=lambda folds, excluded: [SimpleNamespace(case=read.case) for read, _, _ in scans.values()],
            source={"name": "drawn", "fingerprint": "none"},
            root="data/drawn",
            labels=labels,
            channels=channels,
            pseudo_line=None,
            folds=2,
        )
        return evaluation.evaluate(run, dataset)

    return of


def test_models_and_scans_that_should_not_be_trusted_are_named(evaluated, caplog):
    evaluated([1, 2])
    assert [line for line in caplog.messages if "check" in line] == [
        "check all results: a is not fully trained",
        "case1_day0: check this result: too dark; spacing 9",
    ]


def test_evaluation_csv_lists_the_scores_in_scan_order(evaluated, tmp_path):
    summary = evaluated([3, 0, 2, 1])
    expected = [
        row
        for n in (3, 0, 2, 1)
        for row in score_scan(f"case{n}_day0", f"case{n}", *scan(n)[1:], labels=UWMGI, spacing=SPACING)
    ]
    written = pd.read_csv(tmp_path / "evaluation.csv")
    pd.testing.assert_frame_equal(written, pd.DataFrame(expected))
    assert json.loads((tmp_path / "evaluation.json").read_text()) == summary
    assert summary.items() >= summarize(written).items() and summary["tolerance_mm"] == 3.0
    assert summary["intervals"] == mean_intervals(written)


def test_scans_are_assigned_to_the_patient_in_the_record(evaluated, tmp_path):
    """Ids of layouts other than the competition's do not end in _day."""
    summary = evaluated([scan(1, "P1_a", "P1"), scan(2, "P1_b", "P1"), scan(3, "P2_a", "P2")])
    written = pd.read_csv(tmp_path / "evaluation.csv").drop_duplicates("scan")
    assert dict(zip(written["scan"], written["case"], strict=True)) == {"P1_a": "P1", "P1_b": "P1", "P2_a": "P2"}
    assert (summary["scans"], summary["cases"]) == (3, 2)


@pytest.mark.parametrize("wrong", ["case1_day0", "case2_day0"])
def test_a_scan_that_cannot_be_scored_aborts_the_evaluation(evaluated, tmp_path, wrong):
    with pytest.raises(ValueError, match="truth has shape"):
        evaluated([1, 2], wrong)
    assert not list(tmp_path.iterdir())


def test_the_table_has_one_row_per_label_and_the_mean(evaluated):
    summary = evaluated([1])
    head, *rows, volume, _ = evaluation.summary_lines(summary)
    assert volume.startswith("score_volume") and f" {summary['score_volume']:.3f}, from 3-D Dice" in volume
    assert [row.split()[0] for row in rows] == [*UWMGI.names, "mean"]
    assert len({len(line) for line in (head, *rows)}) == 1
    assert " ".join(head.split()) == "score Dice IoU Hausdorff HD95 mm mean mm surface Dice volume error"
    dice = 2 * 2 * 5 * 4 / (2 * 2 * 5 * 5)
    assert rows[0].split()[2:4] == [f"{dice:.3f}", f"{dice / (2 - dice):.3f}"]
    assert rows[0].split()[-1] == "0.0%"


def test_missing_scores_are_dashes_in_the_table():
    nothing = dict.fromkeys(("score", "dice", "iou", "hausdorff", "hd95_mm", "mean_surface_mm", "surface_dice"))
    nothing["volume_error_relative"] = None
    intervals = {"level": 0.95, "labels": {label: {} for label in UWMGI.names}}
    summary = {"labels": dict.fromkeys(UWMGI.names, nothing), "intervals": intervals, "cases": 2} | nothing
    lines = evaluation.summary_lines(summary)
    assert len(lines) == 6 and all(line.split()[1:] == ["-"] * 8 for line in lines[1:5])


def test_the_report_shows_reliability_and_scans(evaluated, tmp_path):
    """Each label has 2 x 25 voxels per scan at 80%; those that overlap after the shift are correct."""
    summary = evaluated([0, 2])
    calibration = summary["calibration"]["stomach"]
    low = sum(4 * 20 * (16 + number) for number in (0, 2)) - 100
    assert [b["voxels"] for b in calibration["bins"]] == [low, 100]
    assert calibration["bins"][1]["observed"] == pytest.approx((50 + 2 * 5 * 3) / 100)
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert report.count('<script type="application/json"') == 2 and "Reliability" in report


def test_labels_of_the_dataset_are_matched_by_name(evaluated, tmp_path):
    """The dataset lists the stomach first and the small bowel second; the run has the three labels of the preset."""
    read, truth, prediction = scan(2)
    truth[0], prediction[0] = np.roll(truth[0], 9, 1), np.roll(prediction[0], 9, 1)
    shuffled = np.stack([truth[2], truth[1], np.zeros_like(truth[0]), truth[0]])
    read = replace(read, annotation=Annotation(shuffled, np.array([True, False, True, True])))
    labels = LabelSet.of("stomach", "small_bowel", "liver", "large_bowel")
    summary = evaluated([(read, truth, prediction)], labels=labels)
    alone = evaluated([(replace(read, annotation=Annotation.complete(truth)), truth, prediction)])
    assert summary["labels"]["large_bowel"] == alone["labels"]["large_bowel"]
    assert summary["labels"]["small_bowel"]["dice"] is None and summary["unannotated"] == {"small_bowel": 1}


def test_a_dataset_without_a_label_of_the_run_or_with_other_channels_is_refused(evaluated, refusal, tmp_path):
    line = refusal(evaluated, [1, 2], labels=LabelSet.of("stomach", "liver", "large_bowel"))
    assert line.endswith("the dataset data/drawn has stomach, liver, large_bowel; choose a dataset with small_bowel")
    line = refusal(evaluated, [1, 2], channels=("t1", "t2"))
    assert line.startswith("the run has the input channels image; the dataset data/drawn has t1, t2; ")
    assert not (tmp_path / "evaluation.json").exists()
