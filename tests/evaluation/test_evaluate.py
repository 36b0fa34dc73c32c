"""Evaluation with a prediction that is known: no network, no shards."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from gitseg_tf.config import load_config
from gitseg_tf.data.records import pack_masks
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.evaluation import evaluate as evaluation
from gitseg_tf.evaluation.intervals import mean_intervals
from gitseg_tf.evaluation.scores import score_scan, summarise

SPACING = (3.0, 1.5, 1.25)


def scan(number, name=None, case=None):
    """Scan `number`, of a patient of its own, and its prediction, `number` pixels off."""
    truth = np.zeros((3, 4, 20, 16 + number), bool)
    truth[:, 1:3, 4:9, 3:8] = True
    image = np.arange(truth[0].size, dtype=np.uint16).reshape(truth.shape[1:])
    read = {"id": name or f"case{number}_day0", "case": case or f"case{number}", "bits": pack_masks(truth)}
    read |= {"image": image, "numbers": np.arange(1, 5), "percentiles": None, "spacing": np.float32(SPACING)}
    return read, truth, np.roll(truth, number, axis=3)


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """Evaluate scans of `scan`: their summary; `wrong` is the id of one whose prediction has another size."""

    def of(drawn, wrong=None):
        drawn = [scan(one) if isinstance(one, int) else one for one in drawn]
        scans = {read["id"]: (read, truth, prediction) for read, truth, prediction in drawn}
        predictions = iter([p[..., 1:] if name == wrong else p for name, (_, _, p) in scans.items()])

        def predict(*_):
            masks = next(predictions)
            return masks, np.where(masks, 80, 20).astype(np.uint8)

        monkeypatch.setattr(evaluation, "read_scans", lambda *_: iter([read for read, _, _ in scans.values()]))
        monkeypatch.setattr(evaluation, "run_probabilities", lambda run: None)
        monkeypatch.setattr(evaluation, "make_level_predictor", lambda *_: predict)
        run = SimpleNamespace(path=tmp_path, config=load_config(None, {"data.fold": 0}))
        dataset = SimpleNamespace(
            check_fold=lambda fold: None,
            scans_of=lambda folds, excluded: [SimpleNamespace(case=read["case"]) for read, _, _ in scans.values()],
            source={"name": "drawn", "fingerprint": "none"},
            folds=2,
        )
        return evaluation.evaluate(run, dataset)

    return of


def test_the_rows_are_those_of_the_scans_in_their_order(evaluated, tmp_path):
    summary = evaluated([3, 0, 2, 1])
    expected = [
        row
        for n in (3, 0, 2, 1)
        for row in score_scan(f"case{n}_day0", f"case{n}", *scan(n)[1:], SPACING, tolerance_mm=3.0)
    ]
    written = pd.read_csv(tmp_path / "evaluation.csv")
    pd.testing.assert_frame_equal(written, pd.DataFrame(expected))
    assert json.loads((tmp_path / "evaluation.json").read_text()) == summary
    assert summary.items() >= summarise(written).items() and summary["tolerance_mm"] == 3.0
    assert summary["intervals"] == mean_intervals(written)


def test_scans_are_counted_to_the_patient_that_the_record_names(evaluated, tmp_path):
    """Ids of other layouts than the competition's do not end in _day."""
    summary = evaluated([scan(1, "P1_a", "P1"), scan(2, "P1_b", "P1"), scan(3, "P2_a", "P2")])
    written = pd.read_csv(tmp_path / "evaluation.csv").drop_duplicates("scan")
    assert dict(zip(written["scan"], written["case"], strict=True)) == {"P1_a": "P1", "P1_b": "P1", "P2_a": "P2"}
    assert (summary["scans"], summary["cases"]) == (3, 2)


@pytest.mark.parametrize("wrong", ["case1_day0", "case2_day0"])
def test_a_scan_that_cannot_be_scored_is_no_scan_less(evaluated, tmp_path, wrong):
    with pytest.raises(ValueError, match="truth has shape"):
        evaluated([1, 2], wrong)
    assert not list(tmp_path.iterdir())


def test_the_table_has_a_row_an_organ_and_the_mean(evaluated):
    lines = []
    evaluation.summary_lines(evaluated([1]), lines.append)
    head, *rows, _ = lines
    assert [row.split()[0] for row in rows] == [*ORGANS, "mean"]
    assert len({len(line) for line in (head, *rows)}) == 1
    assert " ".join(head.split()) == "score Dice IoU Hausdorff HD95 mm mean mm surface Dice volume error"
    dice = 2 * 2 * 5 * 4 / (2 * 2 * 5 * 5)
    assert rows[0].split()[2:4] == [f"{dice:.3f}", f"{dice / (2 - dice):.3f}"]
    assert rows[0].split()[-1] == "0.0%"


def test_what_has_no_score_is_a_dash_in_the_table():
    lines = []
    nothing = dict.fromkeys(("score", "dice", "iou", "hausdorff", "hd95_mm", "mean_surface_mm", "surface_dice"))
    nothing["volume_error_relative"] = None
    intervals = {"level": 0.95, "organs": {organ: {} for organ in ORGANS}}
    summary = {"organs": dict.fromkeys(ORGANS, nothing), "intervals": intervals, "cases": 2} | nothing
    evaluation.summary_lines(summary, lines.append)
    assert len(lines) == 6 and all(line.split()[1:] == ["-"] * 8 for line in lines[1:5])


def test_reliability_is_counted_and_scans_are_pictured(evaluated, tmp_path):
    """Each organ: of 2 x 25 voxels a scan at 80 %, those that the shift leaves in place are right."""
    summary = evaluated([0, 2])
    own = summary["calibration"]["stomach"]
    low = sum(4 * 20 * (16 + number) for number in (0, 2)) - 100
    assert [b["voxels"] for b in own["bins"]] == [low, 100]
    assert own["bins"][1]["observed"] == pytest.approx((50 + 2 * 5 * 3) / 100)
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert report.count('<script type="application/json"') == 2 and "Reliability" in report
