"""Comparing the scores of two runs, patient by patient. It needs no TensorFlow."""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import rankdata

from gitseg_tf.data.scans import ORGANS
from gitseg_tf.errors import InputError
from gitseg_tf.evaluation.intervals import LEVEL, percentile_intervals
from gitseg_tf.files import AnyPath, as_path, written_locally

# Title, column of evaluation.csv, whether more is better, digits.
_SCORES = (
    ("score", "score", True, 3),
    ("Dice", "dice", True, 3),
    ("HD95 mm", "hd95_mm", False, 2),
    ("surface Dice", "surface_dice", True, 3),
)
_MEAN = "mean"
# Key of evaluation.json, and what it is: scores that differ in them differ for another reason than the network.
_FACTS = (
    ("tolerance_mm", "tolerance in mm of the surface Dice"),
    ("tta", "test-time augmentation"),
    ("gitseg_tf", "version of gitseg-tf"),
)
# Of what the test can say: 2 / 2^n is its smallest p.
_FEWEST = 6
_BETTER, _WORSE, _EQUAL = "#2a78d6", "#d55e00", "#8c8c96"


@dataclass(frozen=True)
class Evaluation:
    """What `gitseg evaluate` wrote: its folder, evaluation.json without per_scan, and evaluation.csv."""

    path: AnyPath
    summary: dict
    rows: pd.DataFrame


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same patients.

    Attributes:
        one, other: their folders.
        patients: a row a patient, score and organ ("mean" is all organs): case, score, organ, one, other.
        table: a row a score and organ: score, organ, patients, one and other (means over patients), difference
            (other less one), low and high (its interval, NaN with one patient), p (Wilcoxon's), dropped (pairs of scan
            and organ that one of the two has no value for).
        notes: what the reader has to know, lines.
    """

    one: AnyPath
    other: AnyPath
    patients: pd.DataFrame
    table: pd.DataFrame
    notes: list[str]


def read_evaluation(path: str | AnyPath) -> Evaluation:
    """Read the evaluation of a run or of a cross-validation.

    Raises:
        InputError: it was not evaluated, or its evaluation is damaged.
    """
    path = as_path(path)
    json_file, csv_file = path / "evaluation.json", path / "evaluation.csv"
    missing = [file.name for file in (json_file, csv_file) if not file.is_file()]
    if missing:
        raise InputError(f"{path}: has no {missing[0]}; write it with gitseg evaluate {path}")
    cure = f"write it again with gitseg evaluate {path}"
    try:
        summary = json.loads(json_file.read_text(encoding="utf-8"))
        scans = set(summary.pop("per_scan"))
        with csv_file.open("r") as file:
            # "001" and "NA" are names.
            rows = pd.read_csv(file, dtype={"scan": str, "case": str}, keep_default_na=False, na_values=[""])
        rows = rows[["scan", "case", "organ", "truth_ml", *(column for _, column, *_ in _SCORES)]]
        summary["dataset"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: its evaluation is damaged ({type(error).__name__}: {error}); {cure}") from None
    if set(rows["scan"]) != scans:
        raise InputError(f"{path}: evaluation.csv and evaluation.json are of different scans; {cure}")
    return Evaluation(path, summary, rows)


def compare(one: Evaluation, other: Evaluation) -> Comparison:
    """Pair two evaluations by scan and organ, average each patient's pairs, and test the differences of the patients.

    Args:
        one, other: of the same dataset.

    Returns:
        The comparison. A pair counts where the reference has the organ and both evaluations have the score; each
        patient counts once, whatever the number of their scans.

    Raises:
        InputError: of different datasets, or with no scan in common.
    """
    if one.summary["dataset"] != other.summary["dataset"]:
        raise InputError(f"{one.path} and {other.path}: were scored on different datasets; compare runs on one")
    pairs = one.rows.merge(other.rows, on=["scan", "case", "organ"], suffixes=("_one", "_other"), validate="1:1")
    if pairs.empty:
        cure = "score the same fold of both with gitseg evaluate --fold, or compare cross-validations"
        raise InputError(f"{one.path} and {other.path}: have no scan in common; {cure}")
    present = pairs[pairs["truth_ml_one"] > 0]
    patients, table = [], []
    for title, column, *_ in _SCORES:
        values = present[["case", "organ", f"{column}_one", f"{column}_other"]].set_axis(
            ["case", "organ", "one", "other"], axis=1
        )
        for organ in (_MEAN, *ORGANS):
            own = values if organ == _MEAN else values[values["organ"] == organ]
            both = own.dropna()
            means = both.groupby("case")[["one", "other"]].mean()
            patients.append(means.reset_index().assign(score=title, organ=organ))
            table.append({"score": title, "organ": organ, **_tested(means), "dropped": len(own) - len(both)})
    notes = _notes(one, other, pairs)
    return Comparison(one.path, other.path, pd.concat(patients, ignore_index=True), pd.DataFrame(table), notes)


def _tested(means: pd.DataFrame) -> dict:
    differences = (means["other"] - means["one"]).to_numpy()
    row = {"patients": len(means), "one": means["one"].mean(), "other": means["other"].mean()}
    (interval,) = percentile_intervals(differences[:, None], np.ones((len(differences), 1))) if len(means) else [None]
    low, high = interval or (np.nan, np.nan)
    difference = row["other"] - row["one"]
    return row | {"difference": difference, "low": low, "high": high, "p": signed_rank_p(differences)}


def signed_rank_p(differences: np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test, exact for any number of patients, ties and zeros included.

    Args:
        differences: float array [patients]; zeros are left out, as Wilcoxon did.

    Returns:
        The share of all ways to give the ranks their signs in which the sum of the positive ones is at least as far
        from its mean. 1.0 where no difference is left, NaN without patients.

    Source: Wilcoxon 1945, https://doi.org/10.2307/3001968; scipy's method="exact" is the same where there are no ties.
    """
    if not len(differences):
        return np.nan
    differences = np.round(differences, 12)  # so that rounding breaks no tie
    differences = differences[differences != 0]
    doubled = (2 * rankdata(np.abs(differences))).astype(int)  # tied ranks are halves
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
            notes.append(f"left out   {len(alone)} scans that {own.path} has and {others.path} has not: {which}")
    for key, what in _FACTS:
        values = [evaluation.summary.get(key, "unknown") for evaluation in (one, other)]
        if values[0] != values[1]:
            first, second = (_words(value) for value in values)
            notes.append(f"warning    the {what} was {first} for the first and {second} for the second")
    for key, what in (("trained_on", "was trained on"), ("tuned_on", "had its post-processing tuned on")):
        for evaluation in (one, other):
            seen = sorted(set(evaluation.summary.get(key, [])) & set(pairs["case"]))
            if seen:
                notes.append(f"warning    {evaluation.path} {what} {', '.join(seen)}: its scores are optimistic there")
    return notes


def _words(value: object) -> str:
    if not isinstance(value, dict):
        return str(value)
    return (
        " and ".join(["flip"] * bool(value.get("flip")) + [f"scale {own}" for own in value.get("scales", ())]) or "none"
    )


def table_lines(comparison: Comparison) -> list[str]:
    """The comparison as text.

    Args:
        comparison: from `compare`.

    Returns:
        Lines: what is compared, a block a score, what the figures are, and the notes.
    """
    lines = [f"A          {comparison.one}", f"B          {comparison.other}"]
    lines.append(f"{'':<27}patients        A        B     B - A   {LEVEL:.0%} interval    p (Wilcoxon)")
    for title, _, _, digits in _SCORES:
        for row in comparison.table[comparison.table["score"] == title].itertuples():
            name = f"{title if row.organ == _MEAN else '':<14}{row.organ:<13}"
            lines.append(f"{name}{row.patients:>8}{_figures(row, digits)}{_p(row.p):>16}")
    lines.append("means over patients; interval from draws of patients; p of Wilcoxon's signed-rank test, exact and")
    lines.append("two-sided, each line by itself: of 16 lines one is below 0.05 by chance")
    whole = comparison.table[comparison.table["organ"] == _MEAN]
    for row in whole[whole["dropped"] > 0].itertuples():
        lines.append(f"left out   {row.dropped} organs of scans have no {row.score}: A or B predicted them nowhere")
    if (most := whole["patients"].max()) < _FEWEST:
        lines.append(
            f"patients   only {most}: p cannot fall below {min(1, 2 / 2**most):.2g}, with 6 or more it can reach 0.05"
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
    """Refuse a path that cannot take the picture, before any work.

    Raises:
        InputError: no .png, a folder, or in a folder that is not there.
    """
    path = as_path(path)
    if path.suffix.lower() != ".png" or path.is_dir():
        raise InputError(f"--out {path}: must be a file that ends in .png")
    if not path.parent.is_dir() and "://" not in str(path):
        raise InputError(f"--out {path}: there is no folder {path.parent}; make it or choose another")
    return path


def draw_comparison(path: AnyPath, comparison: Comparison) -> None:
    """Draw each patient's two values with a line between them, a row a score, a column an organ.

    Args:
        path: the PNG; replaced if it is there.
        comparison: from `compare`.
    """
    figure = Figure(figsize=(11, 11.5), dpi=100, layout="constrained")
    panels = figure.subplots(len(_SCORES), 1 + len(ORGANS), sharey="row", sharex=True)
    for line, (title, _, more_is_better, _) in zip(panels, _SCORES, strict=True):
        for axes, organ in zip(line, (_MEAN, *ORGANS), strict=True):
            _draw_pairs(axes, comparison, title, organ, 1 if more_is_better else -1)
        line[0].set_ylabel(title if more_is_better else f"{title}, less is better")
    for axes, organ in zip(panels[0], ("all organs", *ORGANS), strict=True):
        axes.set_title(f"{organ.replace('_', ' ')}\n{axes.get_title()}", fontsize=10)
    figure.suptitle(
        f"A: {comparison.one}\nB: {comparison.other}\n"
        "a line a patient: blue is better in B, orange worse; black is the mean",
        fontsize=10,
    )
    with written_locally(path) as file:
        figure.savefig(file)


def _draw_pairs(axes, comparison: Comparison, title: str, organ: str, sign: int) -> None:
    patients, table = comparison.patients, comparison.table
    own = patients[(patients["score"] == title) & (patients["organ"] == organ)]
    for one, other in own[["one", "other"]].to_numpy():
        gain = sign * (other - one)
        color = _EQUAL if gain == 0 else _BETTER if gain > 0 else _WORSE
        axes.plot([0, 1], [one, other], "o-", color=color, alpha=0.6, linewidth=1, markersize=4)
    (row,) = table[(table["score"] == title) & (table["organ"] == organ)].itertuples()
    if row.patients:
        axes.plot([0, 1], [row.one, row.other], "o-", color="black", linewidth=2.4, markersize=6)
    axes.set_title(f"p {'' if row.p < 1e-4 else '= '}{_p(row.p)}" if row.patients else "no patient", fontsize=9)
    axes.set(xticks=[0, 1], xlim=(-0.3, 1.3))
    axes.set_xticklabels(["A", "B"])
    axes.grid(axis="y", alpha=0.2)
