"""The evaluation report, a self-contained HTML file."""

from typing import Any

import pandas as pd
from markupsafe import Markup

from gitseg_tf.config.evaluation import METRICS
from gitseg_tf.core.paths import AnyPath, as_path, write_atomically
from gitseg_tf.evaluation.metrics.competition import DICE_WEIGHT, HAUSDORFF_WEIGHT
from gitseg_tf.evaluation.report.charts import epochs_of, has_values, reliability_charts, score_charts, training_charts
from gitseg_tf.evaluation.report.selection import Chosen, worst_labels
from gitseg_tf.html.pages import MOST_LABELS, page_environment
from gitseg_tf.labels import LabelSet

_OUTLIERS = 12
# Roles of the scans that are shown in print in addition to the scroller.
_PRINTED = ("best", "median", "worst")


def write_report(
    path: str | AnyPath,
    summary: dict,
    rows: pd.DataFrame,
    *,
    labels: LabelSet,
    chosen: list[Chosen],
    history: pd.DataFrame | None,
    title: str,
    details: dict[str, str],
) -> None:
    """Write the evaluation as one HTML file that includes styles, scripts, images and charts.

    Tables list all labels. If there are many, charts show the `pages.MOST_LABELS` labels with the lowest mean Dice.

    Args:
        path: the file; an existing one is replaced atomically.
        summary: from `scores.summarize`; "intervals" are shown next to the scores, and "calibration" (from
            `calibration.Reliability.summary`) as a reliability diagram.
        rows: the rows of `scores.score_scan` that it summarizes.
        labels: the labels of the rows.
        chosen: the scans to show slice by slice, from `selection.PictureShelf`.
        history: one row per epoch, with any of the columns epoch, loss, val_loss, dice, val_dice, val_dice_LABEL,
            val_score (or another metric), learning_rate, seconds; None if there is no training to show.
        title: title of the page.
        details: facts about the run, {name: value}.

    Raises:
        OSError: the file cannot be written.
    """
    history = None if history is None or history.empty else history.reset_index(drop=True)
    galleries = [_gallery(summary, scan) for scan in chosen]
    label_dice = {name: means["dice"] for name, means in summary["labels"].items()}
    charted = labels.subset(worst_labels(label_dice, MOST_LABELS))
    environment = page_environment("gitseg_tf.evaluation.report", labels)
    environment.filters["shade"] = _shade
    html = environment.get_template("report.html.j2").render(
        title=title,
        details=details,
        summary=summary,
        intervals=summary.get("intervals"),
        calibration=summary.get("calibration"),
        unannotated=summary.get("unannotated"),
        charted=charted.names,
        weights=(DICE_WEIGHT, HAUSDORFF_WEIGHT),
        present=rows[rows["truth_ml"] > 0]["label"].value_counts().to_dict(),
        rows=rows.to_dict("records"),
        outliers=_outliers(rows, labels),
        scrollable=sorted(galleries, key=lambda gallery: _first_role(gallery) in ("best", "median")),
        galleries=[gallery for gallery in galleries if _first_role(gallery) in _PRINTED],
        score_charts=score_charts(rows, charted),
        reliability_charts=reliability_charts(summary.get("calibration") or {}, charted),
        training=None if history is None else _training(history, charted),
    )
    write_atomically(as_path(path), html.encode())


def _first_role(gallery: dict) -> str:
    """Return the first role of a gallery: "median" for "median and 2nd worst"."""
    return gallery["role"].partition(" and ")[0]


def _shade(dice: float) -> str:
    """Return a CSS color: blue for a Dice of 1, transparent for 0.75, vermilion for 0.5 and below."""
    strength = min(1.0, abs(dice - 0.75) / 0.25) * 0.45
    return f"rgba({'0, 114, 178' if dice > 0.75 else '213, 94, 0'}, {strength:.2f})"


def _gallery(summary: dict, chosen: Chosen) -> dict:
    # A "<" in the JSON could end the script element that contains it.
    scroller = chosen.pictures.scroller.replace("<", "\\u003c")
    return {
        "scan": chosen.pictures.scan,
        "role": chosen.role,
        "means": summary["per_scan"][chosen.pictures.scan],
        "pictures": chosen.pictures.slices,
        "scroller": Markup(scroller),
    }


def _outliers(rows: pd.DataFrame, labels: LabelSet) -> dict:
    """List the largest Hausdorff distances, and each label's fence beyond which they are unusual (Tukey 1977)."""
    present = rows[rows["truth_ml"] > 0].dropna(subset="hausdorff_mm")
    fences = {}
    for label in labels.names:
        distances = present.loc[present["label"] == label, "hausdorff_mm"]
        if len(distances) >= 4:
            low, high = distances.quantile([0.25, 0.75])
            fences[label] = float(high + 1.5 * (high - low))
    largest = present.nlargest(_OUTLIERS, "hausdorff_mm")
    return {
        "fences": {name: fences[name] for name in dict.fromkeys(largest["label"]) if name in fences},
        "rows": [
            row | {"share": row["hausdorff_mm"] / max(largest["hausdorff_mm"].max(), 1e-9),
                   "unusual": row["hausdorff_mm"] > fences.get(row["label"], float("inf"))}
            for row in largest.to_dict("records")
        ],
    }  # fmt: skip


def _training(history: pd.DataFrame, labels: LabelSet) -> dict:
    # With a metric other than Dice, the history has its column, and that chose the best weights.
    chosen = [name for name in METRICS if name != "dice" and has_values(history, f"val_{name}")] or ["dice"]
    column, title = f"val_{chosen[0]}", METRICS.facts(chosen[0])["title"]
    best: Any = history[column].idxmax() if has_values(history, column) else None
    epochs = epochs_of(history)
    return {
        "charts": training_charts(history, labels),
        "epochs": len(history),
        "best": None if best is None else {"metric": title, "value": history[column][best], "epoch": int(epochs[best])},
        "seconds": history["seconds"].median() if "seconds" in history else None,
    }
