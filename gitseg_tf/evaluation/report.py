"""The evaluation report: one self-contained HTML file that needs no network."""

import pandas as pd
from markupsafe import Markup

from gitseg_tf.data.scans import ORGANS
from gitseg_tf.evaluation.chosen import Chosen
from gitseg_tf.evaluation.report_charts import epochs_of, has_values, reliability_charts, score_charts, training_charts
from gitseg_tf.evaluation.scores import DICE_WEIGHT, HAUSDORFF_WEIGHT
from gitseg_tf.files import AnyPath, as_path, write_atomically
from gitseg_tf.pages import page_environment

_OUTLIERS = 12
# Of scans that are printed as well as to be scrolled through.
_PRINTED = ("best", "median", "worst")


def write_report(
    path: str | AnyPath,
    summary: dict,
    rows: pd.DataFrame,
    chosen: list[Chosen],
    history: pd.DataFrame | None,
    title: str,
    details: dict[str, str],
) -> None:
    """Write the evaluation as one HTML file: style, script, pictures and charts are all inside.

    Args:
        path: the file; one that exists is replaced in one step, so that a reader never sees half a report.
        summary: as `scores.summarise` gives it; with "intervals" they stand beside the scores, with "calibration" (as
            `reliability.Reliability.summary` gives it) there is a reliability diagram.
        rows: the rows of `scores.score_scan` that it summarises.
        chosen: the scans to show slice by slice, as `chosen.PictureShelf` gives them.
        history: an epoch a row, with any of the columns epoch, loss, val_loss, dice, val_dice, val_dice_ORGAN,
            learning_rate, seconds; None where there is no training to show.
        title: of the page.
        details: what the reader should know of the run, {name: value}.

    Raises:
        OSError: the file cannot be written.
    """
    history = None if history is None or history.empty else history.reset_index(drop=True)
    galleries = [_gallery(summary, scan) for scan in chosen]
    environment = page_environment("gitseg_tf.evaluation")
    environment.filters["shade"] = _shade
    html = environment.get_template("report.html.j2").render(
        title=title,
        details=details,
        summary=summary,
        intervals=summary.get("intervals"),
        calibration=summary.get("calibration"),
        weights=(DICE_WEIGHT, HAUSDORFF_WEIGHT),
        present=rows[rows["truth_ml"] > 0]["organ"].value_counts().to_dict(),
        rows=rows.to_dict("records"),
        outliers=_outliers(rows),
        scrollable=sorted(galleries, key=lambda gallery: _place(gallery) in ("best", "median")),
        galleries=[gallery for gallery in galleries if _place(gallery) in _PRINTED],
        score_charts=score_charts(rows),
        reliability_charts=reliability_charts(summary.get("calibration") or {}),
        training=None if history is None else _training(history),
    )
    write_atomically(as_path(path), html.encode())


def _place(gallery: dict) -> str:
    """The first of its roles: "median" of "median and 2nd worst"."""
    return gallery["role"].partition(" and ")[0]


def _shade(dice: float) -> str:
    """Blue for a Dice of 1, nothing for 0.75, vermilion for 0.5 and less, on any background."""
    strength = min(1.0, abs(dice - 0.75) / 0.25) * 0.45
    return f"rgba({'0, 114, 178' if dice > 0.75 else '213, 94, 0'}, {strength:.2f})"


def _gallery(summary: dict, chosen: Chosen) -> dict:
    # A "<" of the JSON could end the script that holds it.
    scroller = chosen.pictures.scroller.replace("<", "\\u003c")
    return {
        "scan": chosen.pictures.scan,
        "role": chosen.role,
        "means": summary["per_scan"][chosen.pictures.scan],
        "pictures": chosen.pictures.slices,
        "scroller": Markup(scroller),
    }


def _outliers(rows: pd.DataFrame) -> dict:
    """The largest Hausdorff distances, and beyond which one of its own organ each is unusual (Tukey 1977)."""
    present = rows[rows["truth_ml"] > 0].dropna(subset="hausdorff_mm")
    fences = {}
    for organ in ORGANS:
        distances = present.loc[present["organ"] == organ, "hausdorff_mm"]
        if len(distances) >= 4:
            low, high = distances.quantile([0.25, 0.75])
            fences[organ] = float(high + 1.5 * (high - low))
    largest = present.nlargest(_OUTLIERS, "hausdorff_mm")
    return {
        "fences": fences,
        "rows": [
            row | {"share": row["hausdorff_mm"] / max(largest["hausdorff_mm"].max(), 1e-9),
                   "unusual": row["hausdorff_mm"] > fences.get(row["organ"], float("inf"))}
            for row in largest.to_dict("records")
        ],
    }  # fmt: skip


def _training(history: pd.DataFrame) -> dict:
    best = history["val_dice"].idxmax() if has_values(history, "val_dice") else None
    epochs = epochs_of(history)
    return {
        "charts": training_charts(history),
        "epochs": len(history),
        "best": None if best is None else {"dice": history["val_dice"][best], "epoch": int(epochs[best])},
        "seconds": history["seconds"].median() if "seconds" in history else None,
    }
