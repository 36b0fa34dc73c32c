"""Compare the scores of two runs, patient by patient. Does not import TensorFlow."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import rankdata

from gitseg_tf.core.paths import AnyPath, as_path, written_locally
from gitseg_tf.core.text import one_line, plural
from gitseg_tf.core.trees import parse_json, shown
from gitseg_tf.errors import ConfigError, RunError, first_line
from gitseg_tf.evaluation.metrics.competition import combined
from gitseg_tf.evaluation.metrics.scores import label_names
from gitseg_tf.evaluation.statistics.intervals import LEVEL, percentile_intervals

# Title, column of evaluation.csv, whether higher is better, digits.
_SCORES = (
    ("score", "score", True, 3),
    ("score_volume", "score_volume", True, 3),
    ("Dice", "dice", True, 3),
    ("HD95 mm", "hd95_mm", False, 2),
    ("surface Dice", "surface_dice", True, 3),
)
# The columns that give a patient's score.
_SCORE_PARTS = ("dice_2d_sum", "dice_2d_slices", "hausdorff_score")
# Represents all labels; no label can have this name.
_MEAN = ""
# Keys of evaluation.json and their descriptions: if they differ, score differences are not due to the network alone.
_FACTS = (
    ("tolerance_mm", "surface Dice tolerance in mm"),
    ("tta", "test-time augmentation"),
    ("gitseg_tf", "version of gitseg-tf"),
)
# The smallest p-value of the test with n patients is 2 / 2^n.
_FEWEST = 6
# Maximum number of labels in the figure, and in the text table.
_MOST_DRAWN, _MOST_LISTED = 6, 12
_BETTER, _WORSE, _EQUAL = "#2a78d6", "#d55e00", "#8c8c96"


@dataclass(frozen=True)
class Evaluation:
    """The output of `gitseg evaluate`: its folder, evaluation.json without per_scan, and evaluation.csv."""

    path: AnyPath
    summary: dict
    rows: pd.DataFrame


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same patients.

    Attributes:
        one, other: their folders.
        labels: the labels that both have, in the order of the first.
        patients: one row per patient, score and label ("" is all labels): case, score, label, one, other.
        table: one row per score and label: score, label, patients, one and other (means over patients), difference
            (other minus one), low and high (its interval, NaN with one patient), p (Wilcoxon's), dropped (number of
            pairs of scan and label for which one of the two has no value).
        notes: lines with caveats for the reader.
    """

    one: AnyPath
    other: AnyPath
    labels: tuple[str, ...]
    patients: pd.DataFrame
    table: pd.DataFrame
    notes: list[str]


def read_evaluation(path: str | AnyPath) -> Evaluation:
    """Read the evaluation of a run or of a cross-validation.

    Raises:
        RunError: it was not evaluated, or its evaluation is damaged or was written by an older version.
    """
    path = as_path(path)
    json_file, csv_file = path / "evaluation.json", path / "evaluation.csv"
    missing = [file.name for file in (json_file, csv_file) if not file.is_file()]
    if missing:
        raise RunError(f"{path}: has no {missing[0]}; write it with gitseg evaluate {path}")
    fix = f"write it again with gitseg evaluate {path}"
    try:
        summary = parse_json(json_file.read_text(encoding="utf-8"))
        scans = set(summary.pop("per_scan"))
        with csv_file.open("r") as file:
            # Read names such as "001" and "NA" as text.
            names = dict.fromkeys(("scan", "case", "label"), str)
            rows = pd.read_csv(file, dtype=names, keep_default_na=False, na_values=[""])
        numbers = ["truth_ml", *(column for _, column, *_ in _SCORES), *_SCORE_PARTS]
        rows = rows[["scan", "case", "label", *numbers]].astype(dict.fromkeys(numbers, float))
        if rows.duplicated(["scan", "case", "label"]).any():
            raise ValueError("a scan and label are listed twice")
        summary["dataset"]
        for key in ("trained_on", "tuned_on"):
            if not isinstance(summary.get(key, []), list) or not all(isinstance(c, str) for c in summary.get(key, [])):
                raise ValueError(f"{key} must be a list of patients")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path}: its evaluation is damaged ({type(error).__name__}: {first_line(error)}); {fix}"
        ) from None
    if set(rows["scan"]) != scans:
        raise RunError(f"{path}: evaluation.csv and evaluation.json list different scans; {fix}")
    return Evaluation(path, summary, rows)


def compare(one: Evaluation, other: Evaluation) -> Comparison:
    """Pair two evaluations by scan and label, average each patient's pairs, and test the differences of the patients.

    Args:
        one, other: evaluations on the same dataset.

    Returns:
        The comparison. A pair counts if the reference has the label and both evaluations have the score; absent and
        unannotated labels do not count. In `score`, false positives of absent labels count, as in the competition, and
        2-D Dice is averaged over all slices of a patient. Each patient counts once, whatever the number of their scans.

    Raises:
        RunError: the evaluations are on different datasets, or have no scan or no label in common.
    """
    if one.summary["dataset"] != other.summary["dataset"]:
        raise RunError(
            f"{one.path} and {other.path}: were scored on different datasets; compare runs scored on the same one"
        )
    pairs = one.rows.merge(other.rows, on=["scan", "case", "label"], suffixes=("_one", "_other"), validate="1:1")
    if pairs.empty:
        fix = "score both on the same fold, or compare cross-validations"
        raise RunError(f"{one.path} and {other.path}: have no scan and label in common; {fix}")
    present = pairs[pairs["truth_ml_one"] > 0]
    sides = [
        pairs[["case", "label", *(f"{part}{side}" for part in _SCORE_PARTS)]].set_axis(
            ["case", "label", *_SCORE_PARTS], axis=1
        )
        for side in ("_one", "_other")
    ]
    labels = [name for name in label_names(one.rows) if name in set(pairs["label"])]
    patients, table = [], []
    for title, column, *_ in _SCORES:
        values = present[["case", "label", f"{column}_one", f"{column}_other"]].set_axis(
            ["case", "label", "one", "other"], axis=1
        )
        for label in (_MEAN, *labels):
            own = values if label == _MEAN else values[values["label"] == label]
            both = own.dropna()
            if column == "score":
                chosen = [side if label == _MEAN else side[side["label"] == label] for side in sides]
                means = pd.concat([_score_of_patients(side) for side in chosen], axis=1, keys=["one", "other"])
                means, dropped = means.dropna(), 0
            else:
                means, dropped = both.groupby("case")[["one", "other"]].mean(), len(own) - len(both)
            patients.append(means.rename_axis("case").reset_index().assign(score=title, label=label))
            table.append({"score": title, "label": label, **_test_differences(means), "dropped": dropped})
    notes = _notes(one, other, pairs)
    means_of_patients = pd.concat([own for own in patients if len(own)] or patients[:1], ignore_index=True)
    return Comparison(one.path, other.path, tuple(labels), means_of_patients, pd.DataFrame(table), notes)


def _score_of_patients(rows: pd.DataFrame) -> pd.Series:
    """Compute each patient's score, as in `summarize`; NaN without any label in reference and prediction."""
    patients = rows.groupby("case")
    slices = patients["dice_2d_slices"].sum()
    dice_2d = patients["dice_2d_sum"].sum() / slices.where(slices > 0)
    return combined(dice_2d, patients["hausdorff_score"].mean())


def most_changed(comparison: Comparison, most: int) -> list[str]:
    """Choose the labels to show: at most `most`, those whose mean Dice differs most, in the order of the labels."""
    of_dice = comparison.table[comparison.table["score"] == "Dice"].set_index("label")["difference"]
    change = of_dice.drop(_MEAN).abs().fillna(-1.0)
    chosen = set(change.sort_values(ascending=False, kind="stable").index[:most])
    return [name for name in comparison.labels if name in chosen]


def _test_differences(means: pd.DataFrame) -> dict:
    differences = (means["other"] - means["one"]).to_numpy()
    row = {"patients": len(means), "one": means["one"].mean(), "other": means["other"].mean()}
    (interval,) = percentile_intervals(differences[:, None], np.ones((len(differences), 1))) if len(means) else [None]
    low, high = interval or (np.nan, np.nan)
    difference = row["other"] - row["one"]
    return row | {"difference": difference, "low": low, "high": high, "p": signed_rank_p(differences)}


def signed_rank_p(differences: np.ndarray) -> float:
    """Compute the two-sided p-value of Wilcoxon's signed-rank test, exact for any number of patients, ties and zeros.

    Args:
        differences: float array [patients]; zeros are dropped, as in Wilcoxon's paper.

    Returns:
        The fraction of all sign assignments in which the sum of the positive ranks is at least as far from its mean.
        1.0 if all differences are zero, NaN without patients.

    Source: Wilcoxon 1945, https://doi.org/10.2307/3001968; equals scipy's method="exact" if there are no ties.
    """
    if not len(differences):
        return np.nan
    differences = np.round(differences, 12)  # keeps ties despite rounding errors
    differences = differences[differences != 0]
    doubled = (2 * rankdata(np.abs(differences))).astype(int)  # tied ranks may be half-integers
    chances = np.zeros(doubled.sum() + 1)
    chances[0] = 1
    for rank in doubled:
        chances = (chances + np.append(np.zeros(rank), chances[:-rank])) / 2
    positive = int(doubled[differences > 0].sum())
    return float(min(1.0, 2 * min(chances[: positive + 1].sum(), chances[positive:].sum())))


def _notes(one: Evaluation, other: Evaluation, pairs: pd.DataFrame) -> list[str]:
    notes = []
    for own, others in ((one, other), (other, one)):
        alone = sorted(set(own.rows["scan"]) - set(pairs["scan"]))
        if alone:
            which = ", ".join(alone[:3]) + (", ..." if len(alone) > 3 else "")
            notes.append(f"left out   {plural(len(alone), 'scan')} in {own.path} but not in {others.path}: {which}")
        alone = [name for name in label_names(own.rows) if name not in set(others.rows["label"])]
        if alone:
            which = ", ".join(alone[:3]) + (", ..." if len(alone) > 3 else "")
            notes.append(f"left out   {plural(len(alone), 'label')} in {own.path} but not in {others.path}: {which}")
    for key, what in _FACTS:
        values = [evaluation.summary.get(key, "unknown") for evaluation in (one, other)]
        if values[0] != values[1]:
            first, second = (_words(value) for value in values)
            notes.append(f"warning    the {what} was {first} for the first and {second} for the second")
    for key, what in (("trained_on", "was trained on"), ("tuned_on", "had its post-processing tuned on")):
        for evaluation in (one, other):
            seen = sorted(set(evaluation.summary.get(key, [])) & set(pairs["case"]))
            if seen:
                notes.append(
                    f"warning    {evaluation.path} {what} {', '.join(seen)}: its scores on them are optimistic"
                )
    return notes


def _words(value: object) -> str:
    if not isinstance(value, dict) or not isinstance(value.get("scales", []), list):
        return shown(value) if isinstance(value, dict | list) else one_line(str(value))
    return (
        " and ".join(["flip"] * bool(value.get("flip")) + [f"scale {own}" for own in value.get("scales", ())]) or "none"
    )


def table_lines(comparison: Comparison) -> list[str]:
    """Format the comparison as text.

    Args:
        comparison: from `compare`.

    Returns:
        Lines: the folders, a block per score, an explanation of the figures, and the notes. If there are many labels,
        those whose Dice changes most are listed.
    """
    shown = most_changed(comparison, _MOST_LISTED)
    wide = max(12, *map(len, shown)) + 1
    lines = [f"A          {comparison.one}", f"B          {comparison.other}"]
    lines.append(f"{'':<{14 + wide}}patients        A        B     B - A   {LEVEL:.0%} interval    p (Wilcoxon)")
    row: Any
    for title, _, _, digits in _SCORES:
        rows = comparison.table[comparison.table["score"] == title]
        for row in rows[rows["label"].isin([_MEAN, *shown])].itertuples():
            name = f"{title:<14}{'mean':<{wide}}" if row.label == _MEAN else f"{'':<14}{row.label:<{wide}}"
            lines.append(f"{name}{row.patients:>8}{_figures(row, digits)}{_p(row.p):>16}")
    tests = len(_SCORES) * (1 + len(shown))
    lines.append(
        "means over patients; intervals by bootstrap over patients; p of Wilcoxon's signed-rank test, exact and"
    )
    lines.append(
        f"two-sided, not corrected: by chance, expect about {max(1, round(tests / 20))} of {tests} lines below 0.05"
    )
    if more := len(comparison.labels) - len(shown):
        lines.append(f"labels     the {len(shown)} whose Dice differs most; {more} more are left out of this table")
    whole = comparison.table[comparison.table["label"] == _MEAN]
    for row in whole[whole["dropped"] > 0].itertuples():
        lines.append(
            f"left out   {plural(row.dropped, 'label')} of scans without {row.score}, "
            "because A or B did not predict them"
        )
    if (most := whole["patients"].max()) < _FEWEST:
        lines.append(
            f"patients   only {most}: p cannot fall below {min(1, 2 / 2**most):.2g}; reaching 0.05 takes at least 6"
        )
    return lines + comparison.notes


def _figures(row, digits: int) -> str:
    if not row.patients:
        return f"{'-':>9}{'-':>9}{'-':>10}{'-':>18}"
    between = "-" if np.isnan(row.low) else f"{row.low:+.{digits}f} to {row.high:+.{digits}f}"
    return f"{row.one:>9.{digits}f}{row.other:>9.{digits}f}{row.difference:>+10.{digits}f}{between:>18}"


def _p(p: float) -> str:
    if np.isnan(p):
        return "-"
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def check_picture(path: str | AnyPath) -> AnyPath:
    """Check that the figure can be written to a path, before any work is done.

    Raises:
        ConfigError: the path is not a .png file, is a folder, or is in a folder that does not exist.
    """
    path = as_path(path)
    if path.suffix.lower() != ".png" or path.is_dir():
        raise ConfigError(f"{path}: must be a .png file")
    if not path.parent.is_dir() and "://" not in str(path):
        raise ConfigError(f"{path}: folder {path.parent} does not exist; create it or choose another")
    return path


def draw_comparison(path: AnyPath, comparison: Comparison) -> None:
    """Draw each patient's two values connected by a line, with a row per score and a column per label.

    Args:
        path: the PNG; an existing file is replaced.
        comparison: from `compare`; if there are many labels, those whose Dice changes most are drawn.
    """
    shown = most_changed(comparison, _MOST_DRAWN)
    columns = (_MEAN, *shown)
    figure = Figure(figsize=(2.75 * len(columns), 2.875 * len(_SCORES)), dpi=100, layout="constrained")
    panels = figure.subplots(len(_SCORES), len(columns), sharey="row", sharex=True, squeeze=False)
    for line, (title, _, more_is_better, _) in zip(panels, _SCORES, strict=True):
        for axes, label in zip(line, columns, strict=True):
            _draw_pairs(axes, comparison, title, label, 1 if more_is_better else -1)
        line[0].set_ylabel(title if more_is_better else f"{title}, lower is better")
    for axes, label in zip(panels[0], ("all labels", *shown), strict=True):
        axes.set_title(f"{label.replace('_', ' ')}\n{axes.get_title()}", fontsize=10)
    more = len(comparison.labels) - len(shown)
    figure.suptitle(
        f"A: {comparison.one}\nB: {comparison.other}\n"
        "one line per patient: blue is better in B, orange worse; black is the mean"
        + (f"; only the {len(shown)} labels whose Dice differs most, of {len(comparison.labels)}" if more else ""),
        fontsize=10,
    )
    with written_locally(path) as file:
        figure.savefig(file)


def _draw_pairs(axes, comparison: Comparison, title: str, label: str, sign: int) -> None:
    patients, table = comparison.patients, comparison.table
    own = patients[(patients["score"] == title) & (patients["label"] == label)]
    for one, other in own[["one", "other"]].to_numpy():
        gain = sign * (other - one)
        color = _EQUAL if gain == 0 else _BETTER if gain > 0 else _WORSE
        axes.plot([0, 1], [one, other], "o-", color=color, alpha=0.6, linewidth=1, markersize=4)
    row: Any
    (row,) = table[(table["score"] == title) & (table["label"] == label)].itertuples()
    if row.patients:
        axes.plot([0, 1], [row.one, row.other], "o-", color="black", linewidth=2.4, markersize=6)
    axes.set_title(f"p {'' if row.p < 1e-4 else '= '}{_p(row.p)}" if row.patients else "no patients", fontsize=9)
    axes.set(xticks=[0, 1], xlim=(-0.3, 1.3))
    axes.set_xticklabels(["A", "B"])
    axes.grid(axis="y", alpha=0.2)
