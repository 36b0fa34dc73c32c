"""The evaluation report: one self-contained HTML file that needs no network."""

import base64
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gitseg_tf.data.scans import ORGANS
from gitseg_tf.evaluation.scores import DICE_WEIGHT, HAUSDORFF_WEIGHT
from gitseg_tf.files import AnyPath, as_path, write_atomically
from gitseg_tf.pages import INK, chart, close_up, organ_style, outline, page_environment

_TRAIN_COLOR, _VALIDATION_COLOR = "#8c8c96", "#2a78d6"


@dataclass(frozen=True)
class ScanPicture:
    """A slice of a scan with both sets of contours.

    Attributes:
        scan: the scan's name, as in the rows of the evaluation.
        slice_number: as the reader should see it.
        image: uint8 array [height, width].
        truth: bool array [3, height, width], the organs in the order of `ORGANS`.
        prediction: bool array of the same shape.
    """

    scan: str
    slice_number: int
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


def pick_slices(truth: np.ndarray, count: int = 3) -> list[int]:
    """Choose the slices of a scan that are worth showing.

    Args:
        truth: bool array [3, depth, height, width].
        count: how many slices, at least 1.

    Returns:
        Slice indices, ascending: one from each of `count` ranges spread over the slices that hold an organ, the one
        where the organs' areas, each as a share of that organ's volume, are largest together. Fewer where fewer slices
        hold an organ; spread over the whole scan where none does.
    """
    areas = np.count_nonzero(truth, axis=(2, 3))
    annotated = np.flatnonzero(areas.any(axis=0))
    if not annotated.size:
        return np.unique(np.linspace(0, areas.shape[1] - 1, count + 2).round().astype(int)[1:-1]).tolist()
    shares = (areas / np.maximum(areas.sum(axis=1, keepdims=True), 1)).sum(axis=0)
    # Every other one of twice as many ranges, so that two neighbouring ranges never give two neighbouring slices.
    ranges = np.array_split(annotated, 2 * count + 1)[1::2]
    if annotated.size < 2 * count + 1:
        ranges = np.array_split(annotated, min(count, annotated.size))
    return [int(indices[shares[indices].argmax()]) for indices in ranges]


def choose_scans(summary: dict) -> dict[str, str]:
    """Choose the best, the median and the worst scan by score.

    Args:
        summary: as `scores.summarise` gives it.

    Returns:
        {scan: "best", "median" or "worst"} in this order. Two scans have no median one, a single scan is the best;
        scans without a score (no organ in the truth) come into question only where no scan has one.
    """
    scores = {scan: means["score"] for scan, means in summary["per_scan"].items()}
    scored = [scan for scan, score in scores.items() if score is not None] or list(scores)
    ranking = sorted(scored, key=lambda scan: -(scores[scan] or 0))
    if len(ranking) < 3:
        return dict(zip(ranking, ("best", "worst"), strict=False))
    return {ranking[0]: "best", ranking[len(ranking) // 2]: "median", ranking[-1]: "worst"}


def write_report(
    path: str | AnyPath,
    summary: dict,
    rows: pd.DataFrame,
    pictures: list[ScanPicture],
    history: pd.DataFrame | None,
    title: str,
    details: dict[str, str],
) -> None:
    """Write the evaluation as one HTML file: style, script, pictures and charts are all inside.

    Args:
        path: the file; one that exists is replaced in one step, so that a reader never sees half a report.
        summary: as `scores.summarise` gives it.
        rows: the rows of `scores.score_scan` that it summarises.
        pictures: slices of any scans; those of the scans of `choose_scans` are shown.
        history: an epoch a row, with any of the columns epoch, loss, val_loss, dice, val_dice, val_dice_ORGAN,
            learning_rate, seconds; None where there is no training to show.
        title: of the page.
        details: what the reader should know of the run, {name: value}.

    Raises:
        OSError: the file cannot be written.
    """
    history = None if history is None or history.empty else history.reset_index(drop=True)
    environment = page_environment("gitseg_tf.evaluation")
    environment.filters["shade"] = _shade
    html = environment.get_template("report.html.j2").render(
        title=title,
        details=details,
        summary=summary,
        weights=(DICE_WEIGHT, HAUSDORFF_WEIGHT),
        present=rows[rows["truth_ml"] > 0]["organ"].value_counts().to_dict(),
        rows=rows.to_dict("records"),
        galleries=_galleries(summary, pictures),
        score_charts=_score_charts(rows),
        training=None if history is None else _training(history),
    )
    write_atomically(as_path(path), html.encode())


def _shade(dice: float) -> str:
    """Blue for a Dice of 1, nothing for 0.75, vermilion for 0.5 and less, on any background."""
    strength = min(1.0, abs(dice - 0.75) / 0.25) * 0.45
    return f"rgba({'0, 114, 178' if dice > 0.75 else '213, 94, 0'}, {strength:.2f})"


def _galleries(summary: dict, pictures: list[ScanPicture]) -> list[dict]:
    chosen = {
        scan: {"scan": scan, "role": role, "means": summary["per_scan"][scan], "pictures": []}
        for scan, role in choose_scans(summary).items()
    }
    for picture in pictures:
        if picture.scan in chosen:
            chosen[picture.scan]["pictures"].append(_drawing(picture))
    return list(chosen.values())


def _drawing(picture: ScanPicture) -> dict:
    height, width = picture.image.shape
    encoded = cv2.imencode(".png", picture.image)[1].tobytes()
    return {
        "slice_number": picture.slice_number,
        "width": width,
        "height": height,
        "close_up": close_up(picture.truth | picture.prediction),
        "png": base64.b64encode(encoded).decode("ascii"),
        "truth": dict(zip(ORGANS, map(outline, picture.truth), strict=True)),
        "prediction": dict(zip(ORGANS, map(outline, picture.prediction), strict=True)),
    }


def _score_charts(rows: pd.DataFrame) -> list[dict]:
    present = rows[rows["truth_ml"] > 0]
    if present.empty:
        return []
    return [
        chart("Dice of every scan", lambda axes: _draw_dice(axes, present)),
        chart("Volume in ml, predicted against reference", lambda axes: _draw_volumes(axes, present)),
    ]


def _draw_dice(axes: Axes, present: pd.DataFrame) -> None:
    jitter = np.random.default_rng(0)
    for place, organ in enumerate(ORGANS):
        values = present.loc[present["organ"] == organ, "dice"].to_numpy()
        if not values.size:
            continue
        axes.boxplot(
            values, positions=[place], orientation="horizontal", widths=0.55, showfliers=False,
            medianprops={"color": INK, "linewidth": 1.8}, boxprops={"color": INK, "alpha": 0.45},
            whiskerprops={"color": INK, "alpha": 0.45}, capprops={"color": INK, "alpha": 0.45},
        )  # fmt: skip
        places = place + jitter.uniform(-0.18, 0.18, values.size)
        axes.scatter(values, places, s=22, alpha=0.85, linewidths=0, **organ_style(organ))
    axes.set_yticks(range(len(ORGANS)), [organ.replace("_", " ") for organ in ORGANS])
    axes.set_ylim(len(ORGANS) - 0.5, -0.5)
    axes.set_xlim(min(0.5, present["dice"].min()) - 0.02, 1.01)
    axes.grid(axis="y", visible=False)


def _draw_volumes(axes: Axes, present: pd.DataFrame) -> None:
    top = max(present["truth_ml"].max(), present["prediction_ml"].max()) * 1.05
    axes.plot([0, top], [0, top], color=INK, alpha=0.4, linewidth=1, linestyle=(0, (4, 3)))
    for organ in ORGANS:
        own = present[present["organ"] == organ]
        style = organ_style(organ)
        axes.scatter(own["truth_ml"], own["prediction_ml"], s=26, alpha=0.85, linewidths=0, clip_on=False, **style)
    axes.set(xlim=(0, top), ylim=(0, top), xlabel="reference", ylabel="predicted")
    axes.legend(loc="upper left", frameon=False, labelcolor=INK)


def _training(history: pd.DataFrame) -> dict:
    curves = {
        "Loss": {
            "loss": {"color": _TRAIN_COLOR, "label": "training"},
            "val_loss": {"color": _VALIDATION_COLOR, "label": "validation"},
        },
        "Dice": {
            "dice": {"color": _TRAIN_COLOR, "label": "training"},
            "val_dice": {"color": _VALIDATION_COLOR, "label": "validation"},
        },
        "Validation Dice per organ": {f"val_dice_{organ}": organ_style(organ) for organ in ORGANS},
        "Learning rate": {"learning_rate": {"color": _VALIDATION_COLOR}},
    }
    epochs = history["epoch"] if "epoch" in history else pd.Series(np.arange(1, len(history) + 1))
    charts = []
    for title, styles in curves.items():
        drawn = {name: style for name, style in styles.items() if _has_values(history, name)}
        if drawn:
            charts.append(chart(title, lambda axes, drawn=drawn: _draw_curves(axes, history, epochs, drawn)))
    best = history["val_dice"].idxmax() if _has_values(history, "val_dice") else None
    return {
        "charts": charts,
        "epochs": len(history),
        "best": None if best is None else {"dice": history["val_dice"][best], "epoch": int(epochs[best])},
        "seconds": history["seconds"].median() if "seconds" in history else None,
    }


def _has_values(history: pd.DataFrame, column: str) -> bool:
    return column in history and bool(np.isfinite(history[column]).any())


def _draw_curves(axes: Axes, history: pd.DataFrame, epochs: pd.Series, styles: dict[str, dict]) -> None:
    for name, style in styles.items():
        known = np.isfinite(history[name])
        # A line needs two points: without a marker, a single epoch would be invisible.
        marker = "o" if known.sum() < 3 else None
        axes.plot(epochs[known], history[name][known], linewidth=1.9, marker=marker, markersize=5, **style)
    rates = history.get("learning_rate")
    if "learning_rate" in styles and rates.min() > 0 and rates.max() > 10 * rates.min():
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    if len(styles) > 1:
        axes.legend(frameon=False, labelcolor=INK)
