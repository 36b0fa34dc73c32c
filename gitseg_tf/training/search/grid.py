"""Grid search: train a grid of experiments one after the other, and compare them. Does not import TensorFlow."""

import itertools
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from gitseg_tf.config import Config, load_config
from gitseg_tf.config.evaluation import METRICS
from gitseg_tf.core.locks import locked
from gitseg_tf.core.paths import AnyPath, as_path, write_atomically, written_locally
from gitseg_tf.core.text import plural
from gitseg_tf.core.trees import parse_json
from gitseg_tf.errors import ConfigError, GitsegError, RunError, first_line
from gitseg_tf.training.distribute.cluster import has_workers
from gitseg_tf.training.run_folder import MAY_CHANGE
from gitseg_tf.training.search.process import train_run
from gitseg_tf.training.search.space import JOURNAL, Range, config_value, read_values

logger = logging.getLogger(__name__)

_LONGEST_NAME = 120
_SCORES = ("score", "dice", "hausdorff")


@dataclass(frozen=True)
class Trial:
    """A run of the grid: its name, the values of the varying keys, and its complete config."""

    name: str
    values: dict[str, Any]
    config: Config


def read_grid(path: str | AnyPath, base: str | AnyPath | None, overrides: dict[str, Any]) -> list[Trial]:
    """Read a grid: all combinations of its values, each a valid config.

    Args:
        path: YAML of lists by dotted key, such as `training.learning_rate: [0.001, 0.003]`.
        base: YAML of the base experiment; None is the built-in default.
        overrides: dotted keys on top of the base, for all runs.

    Returns:
        The trials; the last key varies fastest.

    Raises:
        ConfigError: invalid YAML, a value that is not a list, an empty list or one with duplicates, or a combination
            that is not a valid config or does not hold out a fold.
    """
    lists: dict[str, list[Any]] = {}
    for key, listed in read_values(as_path(path), overrides).items():
        if isinstance(listed, Range):
            fix = "give a list, or a number of trials"
            raise ConfigError(f"{path}: {key} is a range, which has no combinations; {fix}")
        lists[key] = listed
    trials: dict[str, Trial] = {}
    for combination in itertools.product(*lists.values()):
        values = dict(zip(lists, combination, strict=True))
        try:
            config = load_config(base, overrides | values)
        except GitsegError as error:
            assigned = ", ".join(f"{key}={value}" for key, value in values.items())
            raise ConfigError(f"{path}: {assigned}: {error}") from None
        values = {key: config_value(config, key) for key in values}
        name = _name(values)
        if config.data.fold is None:
            raise ConfigError(
                f"{path}: run {name}: data.fold is null; set it, because runs are compared on a held-out fold"
            )
        if name in trials:
            raise ConfigError(f"{path}: two runs would have the name {name}; use shorter values, or two grids")
        trials[name] = Trial(name, values, config)
    if len({trial.config.evaluation.metric for trial in trials.values()}) > 1:
        raise ConfigError(f"{path}: evaluation.metric differs between runs; choose one, by which they are compared")
    return list(trials.values())


def run_grid(trials: list[Trial], out: str | AnyPath) -> pd.DataFrame:
    """Train the trials, each in a separate process, and compare them.

    Finished runs are kept, interrupted ones are resumed. A run that fails does not stop the others.

    Args:
        trials: from `read_grid`.
        out: the grid's folder on this machine. Each run has NAME/, NAME.yaml (its config) and NAME.log (its output);
            grid.csv, updated after each run, and grid.png compare them.

    Returns:
        The table of grid.csv: one row per run, the highest score first; status is "finished" or the error.

    Raises:
        ConfigError: the folder is a run, or contains a run of that name with another config, or this process is one of
            several workers.
        GitsegError: another grid is running in the folder.
    """
    if has_workers():
        fix = "unset TF_CONFIG and start one task, or train the runs one by one"
        raise ConfigError(f"a grid is trained from one process and cannot use several workers; {fix}")
    out = Path(out)
    names = {"config.yaml", "history.csv"} & {path.name for path in out.iterdir()} if out.is_dir() else set()
    if names:
        raise ConfigError(f"{out}: is a run; choose another folder")
    if (out / JOURNAL).exists():
        raise ConfigError(f"{out}: is a search; choose another folder, or give the number of trials to continue it")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, wait=False):
        for trial in trials:
            _check_same(out / trial.name, trial)
        done = [trial for trial in trials if _is_finished(out / trial.name, trial)]
        more = f", {len(done)} of them already finished" if done else ""
        epochs = trials[0].config.training.epochs
        logger.info("grid       %s of %s%s, in %s", plural(len(trials), "run"), plural(epochs, "epoch"), more, out)
        status = {}
        for number, trial in enumerate(trials, 1):
            if trial not in done:
                log = out / f"{trial.name}.log"
                logger.info("run %2d/%d  %s, output in %s", number, len(trials), trial.name, log)
                status[trial.name] = train_run(trial.config, out, trial.name)
                if status[trial.name] is not None:
                    logger.info("failed     %s: %s", trial.name, status[trial.name])
            table = compare(trials[:number], out, status)
            write_atomically(out / "grid.csv", table.to_csv(index=False).encode())
        draw_grid(out / "grid.png", table, out, trials[0].config.evaluation.metric)
    return table


def compare(trials: list[Trial], out: AnyPath, status: dict[str, str | None]) -> pd.DataFrame:
    """Tabulate the results of the runs, the one with the highest evaluation.metric first.

    Args:
        trials: trials in any state.
        out: the grid's folder.
        status: error by name of the run; None or no entry if there was no error.

    Returns:
        Columns run, the grid's keys, score, dice, hausdorff and the metric (of evaluation.json), val_dice or that of
        the metric (the best epoch's), epochs, seconds (of all epochs, from history.csv) and status.
    """
    evaluation = trials[0].config.evaluation
    shown, monitored = tuple(dict.fromkeys((*_SCORES, evaluation.metric))), evaluation.monitored
    rows = []
    for trial in trials:
        run, row = out / trial.name, {"run": trial.name, **trial.values}
        row |= dict.fromkeys((*shown, monitored, "epochs", "seconds"), float("nan"))
        if (run / "evaluation.json").is_file():
            with _naming_damage(run / "evaluation.json"):
                scores = parse_json((run / "evaluation.json").read_text(encoding="utf-8"))
                row |= {name: float(scores[name]) for name in shown if scores.get(name) is not None}
        if (run / "history.csv").is_file():
            history = _history(run, monitored)
            row |= {monitored: history[monitored].max(), "seconds": history["seconds"].sum()}
            row["epochs"] = len(history)
        rows.append(row | {"status": status.get(trial.name) or "finished"})
    table = pd.DataFrame(rows).astype(dict.fromkeys(shown, float))
    return table.sort_values(evaluation.metric, ascending=False, kind="stable", ignore_index=True)


def table_lines(table: pd.DataFrame) -> str:
    """Format the comparison as text: the varying keys, and the results."""
    shown = table.drop(columns=["run", "status"])
    shown.columns = [name.rpartition(".")[2] if "." in name else name for name in shown.columns]
    shown["epochs"] = shown["epochs"].map(lambda epochs: "-" if pd.isna(epochs) else f"{epochs:.0f}")
    shown["seconds"] = shown["seconds"].map(lambda seconds: "-" if pd.isna(seconds) else f"{seconds:.0f}")
    shown[""] = ["" if status == "finished" else "failed" for status in table["status"]]
    return shown.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.4g}")


def draw_grid(path: AnyPath, table: pd.DataFrame, out: AnyPath, metric: str = "dice") -> None:
    """Plot the metric of each run's validation over its epochs, and that of its evaluation.

    Args:
        path: the PNG; an existing file is replaced.
        table: from `compare`.
        out: the grid's folder.
        metric: evaluation.metric of the runs.
    """
    title, monitored = METRICS.facts(metric)["title"], f"val_{metric}"
    figure = Figure(figsize=(11, max(3.4, 0.35 * len(table) + 1.6)), dpi=100, layout="constrained")
    curves, bars = figure.subplots(1, 2)
    positions = range(len(table))
    colors = [f"C{position % 10}" for position in positions]
    for position, name in enumerate(table["run"]):
        history = out / name / "history.csv"
        if history.is_file():
            rows = _history(out / name, monitored)
            style = ("-", "--", ":")[position // 10 % 3]
            marker = "o" if len(rows) < 3 else None
            curves.plot(rows["epoch"], rows[monitored], style, color=colors[position], label=name, marker=marker)
    curves.set(title=f"Validation: {title}", xlabel="epoch")
    curves.xaxis.get_major_locator().set_params(integer=True)
    bars.barh(positions, table[metric].fillna(0), color=colors, height=0.7)
    for position, (_, row) in zip(positions, table.iterrows(), strict=True):
        result = f"{row[metric]:.3f} ({row['seconds']:.0f} s)" if row["status"] == "finished" else "failed"
        bars.text(0.02, position, f"{row['run']}: {result}", va="center", fontsize=8)
    bars.set(title=f"{title[0].upper()}{title[1:]} and training time", xlim=(0, 1), yticks=[])
    bars.invert_yaxis()
    for axes in (curves, bars):
        axes.grid(alpha=0.2)
    with written_locally(path) as file:
        figure.savefig(file)


def failures(table: pd.DataFrame) -> list[str]:
    """List the runs that did not finish."""
    return table.loc[table["status"] != "finished", "run"].tolist()


def _is_finished(run: AnyPath, trial: Trial) -> bool:
    """Check that the run was scored and exported after all epochs of the trial."""
    if not (run / "export" / "1" / "saved_model.pb").is_file() or not (run / "evaluation.json").is_file():
        return False
    return len(_history(run, trial.config.evaluation.monitored)) >= trial.config.training.epochs


def _history(run: AnyPath, monitored: str) -> pd.DataFrame:
    with _naming_damage(run / "history.csv"):
        return pd.read_csv(run / "history.csv").astype({"epoch": float, monitored: float, "seconds": float})


@contextmanager
def _naming_damage(path: AnyPath) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise RunError(f"{path}: is damaged ({first_line(error)}); remove the folder of this run and repeat") from None


def _check_same(run: AnyPath, trial: Trial) -> None:
    """Check that an existing run has the config of the trial, except for keys that may change on resuming."""
    if not (run / "config.yaml").is_file():
        return
    free: dict[str, Any] = {"name": True, "provenance": True, "labels": True, "channels": True, **MAY_CHANGE}
    was, wanted = (c.model_dump(mode="json", exclude=free) for c in (load_config(run / "config.yaml"), trial.config))
    for section, before in was.items():
        if before != wanted[section]:
            raise ConfigError(f"{run}: was trained with a different {section} section; choose another folder")


def _name(values: dict[str, Any]) -> str:
    short = [key.rpartition(".")[2] for key in values]
    keys = short if len(set(short)) == len(short) else list(values)
    parts = (f"{key}-{value}" for key, value in zip(keys, values.values(), strict=True))
    return re.sub(r"[^\w.-]+", "_", "_".join(parts)).strip("_")[:_LONGEST_NAME]
