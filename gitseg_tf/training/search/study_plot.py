"""Table and plot of a search."""

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gitseg_tf.config.evaluation import METRICS
from gitseg_tf.core.paths import AnyPath, written_locally
from gitseg_tf.core.text import table_lines
from gitseg_tf.errors import RunError
from gitseg_tf.runs.folder import read_history
from gitseg_tf.training.search.space import Range, Search, Values

_COLUMNS = 3
_MOST_SLICES = 9
_DONE, _PRUNED, _FAILED, _BEST = "C0", "0.6", "C3", "C1"


def search_lines(table: pd.DataFrame, search: Search, width: int | None, most: int = 10) -> list[str]:
    """Format the best trials as text.

    Args:
        table: from `study.run_search`.
        search: what varied.
        width: characters per line; None sets no limit.
        most: number of trials to show.

    Returns:
        The lines: name, status, metric, the best epoch's validation, epochs, seconds and the values.
    """
    metric = search.base.evaluation.metric
    rows = table.head(most)
    status = rows["status"].where(rows["status"].isin(["finished", "pruned"]), "failed")
    columns: list[tuple[str, list[str]]] = [("status", status.tolist())]
    for name, digits in (
        (metric, ".4f"),
        (search.base.evaluation.monitored, ".4f"),
        ("epochs", ".0f"),
        ("seconds", ".0f"),
    ):
        columns.append((name, ["-" if pd.isna(value) else f"{value:{digits}}" for value in rows[name]]))
    short = [key.rpartition(".")[2] for key in search.space]
    for key, name in zip(search.space, short, strict=True):
        columns.append((name if short.count(name) == 1 else key, [cell(value) for value in rows[key]]))
    padded = []
    for title, cells in columns:
        size = 2 + max(map(len, (title, *cells)))
        padded.append((title.rjust(size), [cell.rjust(size) for cell in cells]))
    lines = table_lines(rows["run"].tolist(), padded, width)
    return lines + ([f"... and {len(table) - most} more"] if len(table) > most else [])


def draw_search(path: AnyPath, table: pd.DataFrame, out: AnyPath, search: Search) -> None:
    """Plot the metric of the trials in their order, their validation over the epochs, and the metric over each value.

    Args:
        path: the PNG; an existing file is replaced.
        table: from `study.run_search`.
        out: the search's folder.
        search: what varied.
    """
    metric, monitored = search.base.evaluation.metric, search.base.evaluation.monitored
    title = METRICS.facts(metric)["title"]
    table = table.sort_values("run", ignore_index=True)
    keys = [*search.space][:_MOST_SLICES]
    rows = 1 + math.ceil(len(keys) / _COLUMNS)
    figure = Figure(figsize=(11, 3.4 * rows), dpi=100, layout="constrained")
    grid = figure.add_gridspec(rows, 2 * _COLUMNS)
    history, curves = figure.add_subplot(grid[0, :_COLUMNS]), figure.add_subplot(grid[0, _COLUMNS:])
    _draw_history(history, table, metric, monitored)
    history.set(title=f"{title[0].upper()}{title[1:]} of each trial", xlabel="trial")
    for name, status in zip(table["run"], table["status"], strict=True):
        _draw_curve(curves, out / name, monitored, _color(status))
    curves.set(title=f"Validation: {title}", xlabel="epoch")
    for axes in (history, curves):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.2)
    for position, key in enumerate(keys):
        row, column = 1 + position // _COLUMNS, 2 * (position % _COLUMNS)
        axes = figure.add_subplot(grid[row, column : column + 2])
        _draw_slice(axes, table, key, search.space[key], (metric, monitored))
    with written_locally(path) as file:
        figure.savefig(file)


def _color(status: str) -> str:
    return {"finished": _DONE, "pruned": _PRUNED}.get(status, _FAILED)


def _draw_history(axes: Axes, table: pd.DataFrame, metric: str, monitored: str) -> None:
    numbers = table.index + 1
    done, pruned = (table["status"] == status for status in ("finished", "pruned"))
    failed = ~done & ~pruned
    axes.plot(numbers[done], table.loc[done, metric], "o", color=_DONE, label="finished")
    if pruned.any():
        label = "pruned: its best validation"
        axes.plot(numbers[pruned], table.loc[pruned, monitored], "o", mfc="none", color=_PRUNED, label=label)
    if failed.any():
        bottom = axes.get_ylim()[0]
        axes.plot(numbers[failed], [bottom] * int(failed.sum()), "x", color=_FAILED, label="failed", clip_on=False)
    best = table[metric].where(done).cummax().ffill()
    axes.step(numbers, best, where="post", color=_BEST, label="best so far")
    axes.set_xlim(0.5, len(table) + 0.5)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=4, frameon=False)


def _draw_curve(axes: Axes, run: AnyPath, monitored: str, color: str) -> None:
    try:
        rows = read_history(run)
    except RunError:
        return
    if rows:
        points = [row["epoch"] for row in rows], [row.get(monitored, math.nan) for row in rows]
        axes.plot(*points, color=color, marker="o", ms=3, lw=1, alpha=0.8)


def _draw_slice(axes: Axes, table: pd.DataFrame, key: str, values: Values, columns: tuple[str, str]) -> None:
    """Plot the metric of finished trials and the best validation of pruned ones over the values of a key."""
    for status, column, fill in (("finished", columns[0], _DONE), ("pruned", columns[1], "none")):
        part = table[table["status"] == status]
        if isinstance(values, Range):
            places = part[key].astype(float)
        else:
            places = part[key].map(lambda value: [*map(str, values)].index(str(value)))
        axes.plot(places, part[column], "o", mfc=fill, color=_color(status), alpha=0.8)
    if isinstance(values, Range):
        axes.set_xscale("log" if values.log else "linear")
    else:
        axes.set_xticks(range(len(values)), [str(value) for value in values])
        axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set(xlabel=key, ylabel=METRICS.facts(columns[0])["title"])
    axes.grid(alpha=0.2)


def cell(value: Any) -> str:
    """Format a config value for a table or a log line."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
