"""The report's charts."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from gitseg_tf.data.scans import ORGANS
from gitseg_tf.pages import INK, chart, organ_style

_TRAIN_COLOR, _VALIDATION_COLOR = "#8c8c96", "#2a78d6"
# Organs are told apart by the mark as well, for those who cannot by the colour.
_MARKERS = dict(zip(ORGANS, "os^", strict=True))


def score_charts(rows: pd.DataFrame) -> list[dict]:
    """Scores and volumes of every organ and scan.

    Args:
        rows: the rows of `scores.score_scan` of any number of scans.

    Returns:
        Charts, as `pages.chart` gives them; none where the reference has no organ.
    """
    present = rows[rows["truth_ml"] > 0]
    if present.empty:
        return []
    charts = [
        chart("Dice of every scan", lambda axes: _draw_boxes(axes, present, "dice")),
        chart("Surface Dice of every scan", lambda axes: _draw_boxes(axes, present, "surface_dice")),
    ]
    if has_values(present, "hausdorff_mm"):
        charts += [
            chart("Hausdorff of every scan in mm", lambda axes: _draw_boxes(axes, present, "hausdorff_mm")),
            chart("HD95 of every scan in mm", lambda axes: _draw_boxes(axes, present, "hd95_mm")),
        ]
    return [
        *charts,
        chart("Dice against the organ's volume", lambda axes: _draw_dice_of_volumes(axes, present)),
        chart("Volume in ml, predicted against reference", lambda axes: _draw_volumes(axes, present)),
    ]


def reliability_charts(calibration: dict) -> list[dict]:
    """The reliability diagram, and how many voxels stand behind each of its points.

    Args:
        calibration: as `reliability.Reliability.summary` gives it.

    Returns:
        Charts, as `pages.chart` gives them; none where no voxel counts.
    """
    if not any(own["bins"] for own in calibration.values()):
        return []
    return [
        chart("Observed frequency against predicted probability", lambda axes: _draw_reliability(axes, calibration)),
        chart("Voxels by predicted probability", lambda axes: _draw_voxels(axes, calibration)),
    ]


def training_charts(history: pd.DataFrame) -> list[dict]:
    """Curves of the training.

    Args:
        history: an epoch a row, see `report.write_report`.

    Returns:
        Charts, as `pages.chart` gives them, of what the history has.
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
        "Validation Dice per organ": {f"val_dice_{organ}": organ_style(organ) for organ in ORGANS},
        "Learning rate": {"learning_rate": {"color": _VALIDATION_COLOR}},
    }
    epochs = epochs_of(history)
    charts = []
    for title, styles in curves.items():
        drawn = {name: style for name, style in styles.items() if has_values(history, name)}
        if drawn:
            charts.append(chart(title, lambda axes, drawn=drawn: _draw_curves(axes, history, epochs, drawn)))
    return charts


def epochs_of(history: pd.DataFrame) -> pd.Series:
    """The numbers of the epochs, counted from 1 where the history does not tell them."""
    return history["epoch"] if "epoch" in history else pd.Series(np.arange(1, len(history) + 1))


def has_values(history: pd.DataFrame, column: str) -> bool:
    """Whether there is a finite value in a column of this name."""
    return column in history and bool(np.isfinite(history[column]).any())


def _draw_boxes(axes: Axes, present: pd.DataFrame, score: str) -> None:
    jitter = np.random.default_rng(0)
    faint = {"color": INK, "alpha": 0.45}
    for place, organ in enumerate(ORGANS):
        values = present.loc[present["organ"] == organ, score]
        values = values[np.isfinite(values)].to_numpy()
        if not values.size:
            continue
        axes.boxplot(
            values, positions=[place], orientation="horizontal", widths=0.55, showfliers=False, boxprops=faint,
            medianprops={"color": INK, "linewidth": 1.8}, whiskerprops=faint, capprops=faint,
        )  # fmt: skip
        places = place + jitter.uniform(-0.18, 0.18, values.size)
        axes.scatter(values, places, s=22, alpha=0.8, linewidths=0, **organ_style(organ))
    axes.set_yticks(range(len(ORGANS)), [organ.replace("_", " ") for organ in ORGANS])
    axes.set_ylim(len(ORGANS) - 0.5, -0.5)
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


def _draw_dice_of_volumes(axes: Axes, present: pd.DataFrame) -> None:
    for organ in ORGANS:
        own = present[present["organ"] == organ]
        axes.scatter(own["truth_ml"], own["dice"], marker=_MARKERS[organ], **_marks(organ))
    axes.set_xscale("log")
    _plain_log(axes.xaxis)
    axes.set(xlabel="reference, ml", ylabel="Dice", ylim=(min(0.5, present["dice"].min()) - 0.02, 1.01))
    axes.legend(frameon=False, labelcolor=INK)


def _plain_log(axis: Axis) -> None:
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 50 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if value < 1e5 else f"{value / 1e6:,g} M"))
    axis.set_minor_formatter(NullFormatter())


def _draw_volumes(axes: Axes, present: pd.DataFrame) -> None:
    top = max(present["truth_ml"].max(), present["prediction_ml"].max()) * 1.05
    axes.plot([0, top], [0, top], color=INK, alpha=0.4, linewidth=1, linestyle=(0, (4, 3)))
    for organ in ORGANS:
        own = present[present["organ"] == organ]
        marks = {"marker": _MARKERS[organ], "clip_on": False, **_marks(organ)}
        axes.scatter(own["truth_ml"], own["prediction_ml"], **marks)
    axes.set(xlim=(0, top), ylim=(0, top), xlabel="reference", ylabel="predicted")
    axes.legend(loc="upper left", frameon=False, labelcolor=INK)


def _marks(organ: str) -> dict:
    return {"s": 26, "alpha": 0.8, "linewidths": 0, **organ_style(organ)}


def _draw_reliability(axes: Axes, calibration: dict) -> None:
    axes.plot([0, 1], [0, 1], color=INK, alpha=0.4, linewidth=1, linestyle=(0, (4, 3)))
    for organ, own in calibration.items():
        if own["bins"]:
            bins = pd.DataFrame(own["bins"])
            line = {"marker": _MARKERS[organ], "markersize": 5, "linewidth": 1.6, "clip_on": False}
            axes.plot(bins["predicted"], bins["observed"], **line, **organ_style(organ))
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted", ylabel="observed")
    axes.legend(loc="upper left", frameon=False, labelcolor=INK)


def _draw_voxels(axes: Axes, calibration: dict) -> None:
    for organ, own in calibration.items():
        if own["bins"]:
            bins = pd.DataFrame(own["bins"])
            line = {"marker": _MARKERS[organ], "markersize": 5, "linewidth": 1.6}
            axes.plot(bins["predicted"], bins["voxels"], **line, **organ_style(organ))
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
    if "learning_rate" in styles and rates.min() > 0 and rates.max() > 10 * rates.min():
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    if len(styles) > 1:
        axes.legend(frameon=False, labelcolor=INK)
