"""Twelve and forty labels, some of them unannotated in some scans, through the whole evaluation."""

import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from gitseg_tf.data.volume import Annotation, LoadedScan, Volume
from gitseg_tf.evaluation.calibration import Reliability
from gitseg_tf.evaluation.evaluate import summary_lines, write_evaluation
from gitseg_tf.evaluation.metrics.scores import score_scan, summarize
from gitseg_tf.evaluation.report.selection import PictureShelf, worst_labels
from gitseg_tf.evaluation.report.slices import picture_scan
from gitseg_tf.evaluation.statistics.compare import compare, draw_comparison, read_evaluation, table_lines
from gitseg_tf.evaluation.statistics.intervals import mean_intervals
from gitseg_tf.labels import LabelSet

pytestmark = pytest.mark.slow

SPACING = (3.0, 1.5, 1.5)
SHAPE = (6, 24, 64)


def make_scan(number, labels, unannotated, shift=1):
    """A scan in which each label is a separate block and some labels are unannotated, and a shifted prediction."""
    masks = np.zeros((len(labels), *SHAPE), bool)
    for k in range(len(labels)):
        row, column = 4 * (k // 12) + 2, 5 * (k % 12) + 1
        masks[k, 1:5, row : row + 3, column : column + 3] = True
    annotated = np.array([k not in unannotated for k in range(len(labels))])
    image = np.random.default_rng(number).integers(0, 900, SHAPE).astype(np.int16) - 1000
    annotation = Annotation(masks & annotated[:, None, None, None], annotated)
    scan = LoadedScan(f"p{number}_a", f"p{number}", Volume(image, SPACING), annotation)
    # Later labels are shifted on more slices and score worse; the first labels are perfect.
    prediction = masks.copy()
    for k in range(len(labels)):
        wrong = slice(1, 1 + k * 4 // len(labels))
        prediction[k, wrong] = np.roll(masks[k, wrong], shift, axis=2)
    return scan, prediction


def evaluate(folder, labels, unannotated, shift=1):
    """Write the evaluation of three scans; labels `unannotated[number]` are unannotated in scan `number`."""
    rows, reliability = [], Reliability(labels)
    with PictureShelf(3) as shelf:
        for number in range(3):
            scan, prediction = make_scan(number, labels, unannotated.get(number, ()), shift)
            scan_rows = score_scan(scan.id, scan.case, scan.annotation, prediction, labels=labels, spacing=SPACING)
            reliability.add(np.where(prediction, 80, 0).astype(np.uint8), scan.annotation)
            shelf.add(scan.id, scan_rows, lambda scan=scan, p=prediction: picture_scan(scan, p, labels))
            rows += scan_rows
        chosen = shelf.chosen()
    rows = pd.DataFrame(rows)
    summary = summarize(rows) | {"dataset": "d", "tolerance_mm": 3.0, "fold": 0, "trained_on": [], "tuned_on": []}
    summary |= {"intervals": mean_intervals(rows), "calibration": reliability.summary()}
    folder.mkdir()
    history = pd.DataFrame({"loss": [0.9, 0.5]} | {f"val_dice_{name}": [0.1, 0.5] for name in labels.names})
    write_evaluation(folder, summary, rows, labels=labels, chosen=chosen, curves=history, title="A run", details={})
    return rows, summary


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    """Twelve labels: one unannotated in all scans, one in two of three, one in one."""
    folder = tmp_path_factory.mktemp("twelve") / "run"
    labels = LabelSet.of(*(f"organ {k}" for k in range(12)))
    return folder, labels, *evaluate(folder, labels, {0: (9, 10, 11), 1: (10, 11), 2: (11,)})


def test_each_mean_is_over_the_annotated_labels(twelve):
    _, _, rows, summary = twelve
    annotated = rows[rows["truth_ml"].notna()]
    assert len(rows) == 36 and len(annotated) == 30
    assert summary["dice"] == pytest.approx(annotated["dice"].mean())
    assert summary["unannotated"] == {"organ 9": 1, "organ 10": 2, "organ 11": 3}
    assert summary["labels"]["organ 11"]["dice"] is None and summary["labels"]["organ 10"]["dice"] is not None
    assert summary["false_positive_ml"] == 0 and summary["missed"] == 0


def test_an_interval_needs_two_annotated_patients(twelve):
    _, _, rows, summary = twelve
    intervals = summary["intervals"]["labels"]
    assert intervals["organ 11"]["dice"] is None and intervals["organ 10"]["dice"] is None
    assert intervals["organ 9"]["dice"] is not None
    assert summary["intervals"]["dice"] == mean_intervals(rows[rows["truth_ml"].notna()])["dice"]


def test_unannotated_labels_are_excluded_from_the_calibration(twelve):
    _, _, _, summary = twelve
    voxels = {name: calibration["voxels"] for name, calibration in summary["calibration"].items()}
    assert voxels["organ 11"] == 0 and voxels["organ 8"] == 3 * voxels["organ 10"]
    assert summary["calibration"]["organ 11"]["below"] is None


def test_ignored_voxels_are_excluded_from_the_calibration():
    labels = LabelSet.of("a")
    masks = np.zeros((1, 2, 4, 4), bool)
    masks[0, 0, :2] = True
    levels, ignore = np.where(masks, 80, 40).astype(np.uint8), np.zeros((2, 4, 4), bool)
    ignore[0, 0] = True
    reliability = Reliability(labels)
    reliability.add(levels, Annotation(masks, np.ones(1, bool), ignore))
    assert [b["voxels"] for b in reliability.summary()["a"]["bins"]] == [24, 4]


def test_the_output_files_list_all_labels(twelve):
    folder, labels, _, summary = twelve
    table = pd.read_csv(folder / "evaluation.csv")
    assert list(table["label"]) == list(labels.names) * 3
    assert list(json.loads((folder / "evaluation.json").read_text())["labels"]) == list(labels.names)
    lines = summary_lines(summary)
    assert any("organ 11 is unannotated in 3 of 3 scans" in line for line in lines)
    assert sum(line.startswith("organ ") for line in lines) == 12


def test_a_comparison_excludes_unannotated_labels(twelve, tmp_path):
    folder, labels, rows, _ = twelve
    worse = tmp_path / "worse"
    evaluate(worse, labels, {0: (9, 10, 11), 1: (10, 11), 2: (11,)}, shift=2)
    comparison = compare(read_evaluation(folder), read_evaluation(worse))
    of_dice = comparison.table[comparison.table["score"] == "Dice"].set_index("label")
    assert of_dice.loc["", "one"] == pytest.approx(rows[rows["truth_ml"].notna()].groupby("case")["dice"].mean().mean())
    assert of_dice["patients"].to_dict() == {"": 3, **dict.fromkeys(labels.names[:9], 3)} | {
        "organ 9": 2, "organ 10": 1, "organ 11": 0,
    }  # fmt: skip
    assert (of_dice["dropped"] == 0).all()
    lines = table_lines(comparison)
    assert any(line.split()[:2] == ["organ", "11"] for line in lines)
    draw_comparison(tmp_path / "found.png", comparison)
    assert (tmp_path / "found.png").stat().st_size > 10_000


def test_the_report_lists_unannotated_labels(twelve):
    html = (twelve[0] / "report.html").read_text(encoding="utf-8")
    assert html.count(">unannotated</span>") == 6
    assert "organ 9 in 1 of 3 scans, organ 10 in 2 of 3 scans, organ 11 in 3 of 3 scans" in " ".join(html.split())


@pytest.fixture(scope="module")
def forty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forty") / "run"
    labels = LabelSet.of(*(f"label number {k}" for k in range(40)))
    return folder, labels, *evaluate(folder, labels, {0: range(30, 40)})


def test_a_report_of_40_labels_charts_the_worst_and_lists_all(forty):
    folder, labels, _, summary = forty
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "charts show 12 of 40 labels, those with the lowest Dice" in html
    charted = worst_labels({name: scores["dice"] for name, scores in summary["labels"].items()}, 12)
    assert set(charted) == set(labels.names[30:]) | set(charted[10:])
    figures = " ".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert all((f">{name}<" in figures) == (name in charted) for name in labels.names)
    tables = " ".join(re.findall(r"<table.*?</table>", html, re.DOTALL))
    assert all(tables.count(f"</span>{name}</span>") >= 4 for name in labels.names)
    lines = summary_lines(summary)
    assert sum(line.startswith("label number") for line in lines) == 40


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_report_of_40_labels_fits_the_browser_window(forty, tmp_path):
    html = (forty[0] / "report.html").read_text(encoding="utf-8")
    probe = """<script>addEventListener("load", () => setTimeout(() => {
      const wide = document.documentElement.scrollWidth, list = document.querySelector("fieldset.labels");
      const rows = [...document.querySelectorAll(".viewer tr[data-row]")].filter(row => !row.hidden).length;
      document.title = ["seen", wide <= innerWidth, list.clientHeight < 300, rows > 0 && rows <= 40,
        document.querySelector(".viewer").dataset.slice > 0].join(" ");
    }, 300));</script>"""
    (tmp_path / "report.html").write_text(html.replace("</body>", f"{probe}</body>"), encoding="utf-8")
    flags = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "window-size=1200,900", "dump-dom")
    command = [CHROMIUM, *(f"--{flag}" for flag in flags), "--virtual-time-budget=8000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "report.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert re.search(r"<title>(.*?)</title>", shown).group(1) == "seen true true true true"


def test_label_names_with_any_characters_are_escaped(tmp_path):
    labels = LabelSet.of("große Ader (links)", "L5 & S1", "42")
    evaluate(tmp_path / "run", labels, {})
    html = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "L5 &amp; S1" in html and ".label-2 {" in html and 'class="label-2 filled"' in html


def test_worst_labels_puts_labels_without_a_score_last():
    assert worst_labels({"a": 0.5, "b": None}, 2) == ["a", "b"]
    assert worst_labels({"a": None, "b": 0.5, "c": 0.2, "d": float("nan")}, 3) == ["c", "b", "a"]


@pytest.mark.parametrize("labels", [3, 14])
def test_the_table_of_scores_fits_80_columns(labels):
    names = tuple(f"structure_of_the_abdomen_{k}_with_a_long_name_left" for k in range(labels))
    rng = np.random.default_rng(0)
    keys = ("score", "dice", "iou", "hausdorff", "hd95_mm", "mean_surface_mm", "surface_dice", "volume_error_relative")
    means = {name: dict.fromkeys(keys, float(rng.uniform(0.1, 0.9))) for name in names}
    ends = {"score": [0.1, 0.9], "dice": [0.2, 0.8]}
    intervals = {"labels": dict.fromkeys(names, ends), "level": 0.95, **ends}
    summary = {"labels": means, "cases": 5, "scans": 7, "intervals": intervals, **dict.fromkeys(keys, 0.5)}
    summary["unannotated"] = {names[0]: 3}
    lines = summary_lines(summary, 80)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    titles = ("score", "Dice", "IoU", "Hausdorff", "HD95 mm", "mean mm", "surface Dice", "volume error")
    assert all(text.count(title) >= 1 for title in titles)
    # Each row of each block starts with a name of its own, and each label has all of its scores.
    rows = [line for line in lines if line.startswith("structure")]
    assert len({line.split()[0] for line in rows}) == labels and len(rows) % labels == 0
    assert sum(f"{means[name]['dice']:.3f} (0.20-0.80)" in text for name in names) == labels
    wide = summary_lines(summary)
    assert len([line for line in wide if line.startswith("structure")]) == labels
