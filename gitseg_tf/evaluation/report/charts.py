"""The charts of the evaluation report, for labels chosen by the caller."""

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from gitseg_tf.config.evaluation import METRICS
from gitseg_tf.html.pages import INK, chart, label_marker, label_style, short_title
from gitseg_tf.labels import Label, LabelSet

_TRAIN_COLOR, _VALIDATION_COLOR = "#8c8c96", "#2a78d6"
_METRIC_COLORS = (_VALIDATION_COLOR, "#d55e00", "#009e73")


def score_charts(rows: pd.DataFrame, labels: LabelSet) -> list[dict]:
    """Draw charts of the scores and volumes of every label and scan.

    Args:
        rows: rows of `scores.score_scan` of any number of scans.
        labels: the labels to show.

    Returns:
        Charts, see `pages.chart`; empty if the reference has none of the labels.
    """
    present = rows[(rows["truth_ml"] > 0) & rows["label"].isin(labels.names)]
    if present.empty:
        return []
    charts = [
        chart("Dice of every scan", lambda axes: _draw_boxes(axes, present, labels, "dice")),
        chart("Surface Dice of every scan", lambda axes: _draw_boxes(axes, present, labels, "surface_dice")),
    ]
    if has_values(present, "hausdorff_mm"):
        charts += [
            chart(
                "Hausdorff distance of every scan, mm", lambda axes: _draw_boxes(axes, present, labels, "hausdorff_mm")
            ),
            chart("HD95 of every scan, mm", lambda axes: _draw_boxes(axes, present, labels, "hd95_mm")),
        ]
    return [
        *charts,
        chart("Dice versus label volume", lambda axes: _draw_dice_of_volumes(axes, present, labels)),
        chart("Predicted versus reference volume, ml", lambda axes: _draw_volumes(axes, present, labels)),
    ]


def reliability_charts(calibration: dict, labels: LabelSet) -> list[dict]:
    """Draw the reliability diagram, and the number of voxels for each of its points.

    Args:
        calibration: from `calibration.Reliability.summary`.
        labels: the labels to show.

    Returns:
        Charts, see `pages.chart`; empty if there are no voxels.
    """
    bins = {label: pd.DataFrame(calibration[label.name]["bins"]) for label in labels if label.name in calibration}
    bins = {label: table for label, table in bins.items() if len(table)}
    if not bins:
        return []
    return [
        chart("Observed frequency versus predicted probability", lambda axes: _draw_reliability(axes, bins, labels)),
        chart("Voxels by predicted probability", lambda axes: _draw_voxels(axes, bins, labels)),
    ]


def training_charts(history: pd.DataFrame, labels: LabelSet) -> list[dict]:
    """Draw the training curves.

    Args:
        history: one row per epoch, see `report.write_report`.
        labels: the labels to show.

    Returns:
        Charts of the columns that the history has, see `pages.chart`.
    """
    curves = {
        "Loss": {
            "loss": {"color": _TRAIN_COLOR, "label": "training"},
            "val_loss": {"color": _VALIDATION_COLOR, "label": "validation"},
        },
        "Dice": {
            "dice": {"color": _TRAIN_COLOR, "label": "training"},
            "val_dice": {"color": _VALIDATION_COLOR, "label": "validation"},
        },
        "Validation of whole scans": {
            f"val_{name}": {"color": color, "label": METRICS.facts(name)["title"]}
            for name, color in zip(METRICS.names(whole_scans=True), _METRIC_COLORS, strict=True)
        },
        "Validation Dice per label": {f"val_dice_{label.name}": label_style(label) for label in labels},
        "Learning rate": {"learning_rate": {"color": _VALIDATION_COLOR}},
    }
    epochs = epochs_of(history)
    charts = []
    for title, styles in curves.items():
        available = {name: style for name, style in styles.items() if has_values(history, name)}
        if available:
            charts.append(chart(title, partial(_draw_curves, history=history, epochs=epochs, styles=available)))
    return charts


def epochs_of(history: pd.DataFrame) -> pd.Series:
    """Return the epoch numbers, counted from 1 if the history has none."""
    return history["epoch"] if "epoch" in history else pd.Series(np.arange(1, len(history) + 1))


def has_values(history: pd.DataFrame, column: str) -> bool:
    """Check whether a column of this name exists and has a finite value."""
    return column in history and bool(np.isfinite(history[column]).any())


def _draw_boxes(axes: Axes, present: pd.DataFrame, labels: LabelSet, score: str) -> None:
    jitter = np.random.default_rng(0)
    faint = {"color": INK, "alpha": 0.45}
    for row, label in enumerate(labels):
        values = present.loc[present["label"] == label.name, score]
        values = values[np.isfinite(values)].to_numpy()
        if not values.size:
            continue
        axes.boxplot(
            values, positions=[row], orientation="horizontal", widths=0.55, showfliers=False, boxprops=faint,
            medianprops={"color": INK, "linewidth": 1.8}, whiskerprops=faint, capprops=faint,
        )  # fmt: skip
        heights = row + jitter.uniform(-0.18, 0.18, values.size)
        axes.scatter(values, heights, s=22, alpha=0.8, linewidths=0, color=label.hex_color)
    axes.set_yticks(range(len(labels)), [short_title(label) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    if not score.endswith("_mm"):
        axes.set_xlim(min(0.5, present[score].min()) - 0.02, 1.01)
    elif present[score].min() > 0:
        axes.set_xscale("log")
        _plain_log(axes.xaxis)
    else:
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _legend(axes: Axes, **options) -> None:
    """Add a legend of the labels, inside the axes if they are few and beside them if they are many."""
    handles, titles = axes.get_legend_handles_labels()
    if len(titles) > 4:
        options = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "fontsize": 8}
    if handles:
        axes.legend(frameon=False, labelcolor=INK, **options)


def _draw_dice_of_volumes(axes: Axes, present: pd.DataFrame, labels: LabelSet) -> None:
    for label in labels:
        group = present[present["label"] == label.name]
        axes.scatter(group["truth_ml"], group["dice"], **_marks(labels, label))
    axes.set_xscale("log")
    _plain_log(axes.xaxis)
    axes.set(xlabel="reference, ml", ylabel="Dice", ylim=(min(0.5, present["dice"].min()) - 0.02, 1.01))
    _legend(axes)


def _plain_log(axis: Axis) -> None:
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 50 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if value < 1e5 else f"{value / 1e6:,g} M"))
    axis.set_minor_formatter(NullFormatter())


def _draw_volumes(axes: Axes, present: pd.DataFrame, labels: LabelSet) -> None:
    top = max(present["truth_ml"].max(), present["prediction_ml"].max()) * 1.05
    axes.plot([0, top], [0, top], color=INK, alpha=0.4, linewidth=1, linestyle=(0, (4, 3)))
    for label in labels:
        group = present[present["label"] == label.name]
        axes.scatter(group["truth_ml"], group["prediction_ml"], clip_on=False, **_marks(labels, label))
    axes.set(xlim=(0, top), ylim=(0, top), xlabel="reference", ylabel="predicted")
    _legend(axes, loc="upper left")


def _marks(labels: LabelSet, label: Label) -> dict:
    return {"s": 26, "alpha": 0.8, "linewidths": 0, "marker": label_marker(labels, label), **_style(label)}


def _line(labels: LabelSet, label: Label) -> dict:
    return {"marker": label_marker(labels, label), "markersize": 5, "linewidth": 1.6, **_style(label)}


def _style(label: Label) -> dict:
    return label_style(label) | {"label": short_title(label)}


def _draw_reliability(axes: Axes, bins: dict[Label, pd.DataFrame], labels: LabelSet) -> None:
    axes.plot([0, 1], [0, 1], color=INK, alpha=0.4, linewidth=1, linestyle=(0, (4, 3)))
    for label, group in bins.items():
        axes.plot(group["predicted"], group["observed"], clip_on=False, **_line(labels, label))
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted", ylabel="observed")
    _legend(axes, loc="upper left")


def _draw_voxels(axes: Axes, bins: dict[Label, pd.DataFrame], labels: LabelSet) -> None:
    for label, group in bins.items():
        axes.plot(group["predicted"], group["voxels"], **_line(labels, label))
    axes.set_yscale("log")
    _plain_log(axes.yaxis)
    axes.set(xlim=(0, 1), xlabel="predicted", ylabel="voxels")


def _draw_curves(axes: Axes, history: pd.DataFrame, epochs: pd.Series, styles: dict[str, dict]) -> None:
    for name, style in styles.items():
        known = np.isfinite(history[name])
        # A line needs two points: without a marker, a single epoch would be invisible.
        marker = "o" if known.sum() < 3 else None
        axes.plot(epochs[known], history[name][known], linewidth=1.9, marker=marker, markersize=5, **style)
    rates = history.get("learning_rate")
    if "learning_rate" in styles and rates is not None and rates.min() > 0 and rates.max() > 10 * rates.min():
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    if len(styles) > 1:
        _legend(axes)
