"""A small grid of experiments, one after the other, and how they compare. It needs no TensorFlow itself."""

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from gitseg_tf.config import Config, load_config, read_yaml, save_config
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, as_path, write_atomically, written_locally
from gitseg_tf.locks import locked
from gitseg_tf.training.cluster import has_workers
from gitseg_tf.training.run_folder import MAY_CHANGE

_LONGEST_NAME = 120
_SHOWN = ("score", "dice", "hausdorff", "val_dice", "epochs", "seconds")


@dataclass(frozen=True)
class Trial:
    """A run of the grid: its name, the keys in which it differs from the others, and its whole config."""

    name: str
    values: dict[str, Any]
    config: Config


def read_grid(path: str | AnyPath, base: str | AnyPath | None, overrides: dict[str, Any]) -> list[Trial]:
    """All combinations of a grid, each checked.

    Args:
        path: YAML of lists by dotted key, such as `training.learning_rate: [0.001, 0.003]`.
        base: YAML of the experiment that they change; None is the embedded default.
        overrides: dotted keys on top of the base, for all runs.

    Returns:
        The trials; the last key changes fastest.

    Raises:
        InputError: no YAML, a value that is no list, a list that is empty or has a value twice, or a combination that
            is no valid config or holds no fold out.
    """
    lists = read_yaml(as_path(path))
    if not lists:
        raise InputError(f"{path}: is empty; give lists by key, such as training.learning_rate: [0.001, 0.003]")
    for key, values in lists.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{path}: {key} is {values!r}; give a list of values, such as [0.001, 0.003]")
        if key in overrides:
            raise InputError(f"{path}: {key} is set by the command line too; leave it out there or here")
        if len({json.dumps(value) for value in values}) < len(values):
            raise InputError(f"{path}: {key} has a value twice: {values}")
    trials = {}
    for combination in itertools.product(*lists.values()):
        values = dict(zip(lists, combination, strict=True))
        try:
            config = load_config(base, overrides | values)
        except InputError as error:
            told = ", ".join(f"{key}={value}" for key, value in values.items())
            raise InputError(f"{path}: {told}: {error}") from None
        values = {key: _value(config, key) for key in values}
        name = _name(values)
        if config.data.fold is None:
            raise InputError(f"{path}: run {name}: data.fold is null; runs are compared on a fold that is held out")
        if name in trials:
            raise InputError(f"{path}: two runs would be named {name}; use shorter values, or two grids")
        trials[name] = Trial(name, values, config)
    return list(trials.values())


def run_grid(trials: list[Trial], out: str | AnyPath, say: Callable[[str], None] = print) -> pd.DataFrame:
    """Train the trials, each in a process of its own, and compare them.

    A run that is finished is left as it is, an interrupted one is resumed. One that fails does not stop the others.

    Args:
        trials: from `read_grid`.
        out: the grid's folder on this machine. Each run gets NAME/, NAME.yaml (its config) and NAME.log (what it
            printed); grid.csv and grid.png compare them, and are written anew after each run.
        say: takes lines for the user.

    Returns:
        The table of grid.csv: a run a row, the highest score first; status is "finished", or what went wrong.

    Raises:
        InputError: a run of that name with another config is there, another grid is running in the folder, or this
            process is one of several workers.
    """
    if has_workers():
        cure = "unset TF_CONFIG and start one task, or train run after run with train.py"
        raise InputError(f"gitseg grid: runs in one process, not in several workers; {cure}")
    out = Path(out)
    names = {"config.yaml", "history.csv"} & {path.name for path in out.iterdir()} if out.is_dir() else set()
    if names:
        raise InputError(f"{out}: is a run; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, False, say):
        for trial in trials:
            _check_same(out / trial.name, trial)
        done = [trial for trial in trials if _is_finished(out / trial.name, trial)]
        more = f", {len(done)} of them finished already" if done else ""
        say(f"grid       {len(trials)} runs of {trials[0].config.training.epochs} epochs{more}, in {out}")
        status = {}
        for number, trial in enumerate(trials, 1):
            if trial not in done:
                say(f"run {number:>2}/{len(trials)}  {trial.name}, printing to {out / f'{trial.name}.log'}")
                status[trial.name] = _train(out, trial)
                if status[trial.name] is not None:
                    say(f"failed     {trial.name}: {status[trial.name]}")
            table = compare(trials[:number], out, status)
            write_atomically(out / "grid.csv", table.to_csv(index=False).encode())
        draw_grid(out / "grid.png", table, out)
    return table


def compare(trials: list[Trial], out: AnyPath, status: dict[str, str | None]) -> pd.DataFrame:
    """The runs' results, a row each, the highest score first.

    Args:
        trials: in any state.
        out: the grid's folder.
        status: what went wrong, by name; None or no entry is nothing.

    Returns:
        Columns run, the grid's keys, score, dice, hausdorff (of evaluation.json), val_dice (the best epoch's), epochs,
        seconds (of all epochs, from history.csv) and status.
    """
    rows = []
    for trial in trials:
        run, row = out / trial.name, {"run": trial.name, **trial.values}
        row |= dict.fromkeys(_SHOWN, float("nan"))
        if (run / "evaluation.json").is_file():
            found = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
            row |= {name: found[name] for name in ("score", "dice", "hausdorff")}
        if (run / "history.csv").is_file():
            history = pd.read_csv(run / "history.csv")
            row |= {"val_dice": history["val_dice"].max(), "seconds": history["seconds"].sum()}
            row["epochs"] = len(history)
        rows.append(row | {"status": status.get(trial.name) or "finished"})
    return pd.DataFrame(rows).sort_values("score", ascending=False, kind="stable", ignore_index=True)


def table_lines(table: pd.DataFrame) -> str:
    """The comparison as text: the keys that vary, and the results."""
    shown = table.drop(columns=["run", "status"])
    shown.columns = [name.rpartition(".")[2] if "." in name else name for name in shown.columns]
    shown["epochs"] = shown["epochs"].map(lambda epochs: "-" if pd.isna(epochs) else f"{epochs:.0f}")
    shown["seconds"] = shown["seconds"].map(lambda seconds: "-" if pd.isna(seconds) else f"{seconds:.0f}")
    shown[""] = ["" if status == "finished" else "failed" for status in table["status"]]
    return shown.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.4g}")


def draw_grid(path: AnyPath, table: pd.DataFrame, out: AnyPath) -> None:
    """Draw validation Dice over the epochs of each run, and their final scores.

    Args:
        path: the PNG; replaced if it is there.
        table: from `compare`.
        out: the grid's folder.
    """
    figure = Figure(figsize=(11, max(3.4, 0.35 * len(table) + 1.6)), dpi=100, layout="constrained")
    curves, bars = figure.subplots(1, 2)
    places = range(len(table))
    colors = [f"C{place % 10}" for place in places]
    for place, name in enumerate(table["run"]):
        history = out / name / "history.csv"
        if history.is_file():
            rows = pd.read_csv(history)
            style = ("-", "--", ":")[place // 10 % 3]
            marker = "o" if len(rows) < 3 else None
            curves.plot(rows["epoch"], rows["val_dice"], style, color=colors[place], label=name, marker=marker)
    curves.set(title="Dice of the held-out patients", xlabel="epoch")
    curves.xaxis.get_major_locator().set_params(integer=True)
    bars.barh(places, table["score"].fillna(0), color=colors, height=0.7)
    for place, row in table.iterrows():
        told = f"{row['score']:.3f} ({row['seconds']:.0f} s)" if row["status"] == "finished" else "failed"
        bars.text(0.02, place, f"{row['run']}: {told}", va="center", fontsize=8)
    bars.set(title="Score, and time of training", xlim=(0, 1), yticks=[])
    bars.invert_yaxis()
    for axes in (curves, bars):
        axes.grid(alpha=0.2)
    with written_locally(path) as file:
        figure.savefig(file)


def failures(table: pd.DataFrame) -> list[str]:
    """The runs that did not finish."""
    return table.loc[table["status"] != "finished", "run"].tolist()


def _train(out: Path, trial: Trial) -> str | None:
    """Train, score and export a trial; what went wrong, or None."""
    settings = out / f"{trial.name}.yaml"
    save_config(trial.config, settings)
    # A process of its own: memory and TensorFlow's state are clean, and a crash is that of one run.
    command = [sys.executable, "-m", "gitseg_tf", "train"]
    command += ["--config", str(settings), "--out", str(out / trial.name), "--resume"]
    with open(out / f"{trial.name}.log", "a+", encoding="utf-8") as log:
        before = log.seek(0, 2)
        # Unbuffered, so that the lines of both streams stand in the order in which they were said.
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        ended = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment)
        log.seek(before)
        printed = log.read().strip().splitlines()
    if ended.returncode == 0:
        return None
    how = f"exit status {ended.returncode}" if ended.returncode > 0 else f"signal {-ended.returncode}"
    last = printed[-1].removeprefix("gitseg: ") if printed else "it printed nothing"
    return f"{how}: {last}"


def _is_finished(run: AnyPath, trial: Trial) -> bool:
    """Scored and exported, after as many epochs as the trial has."""
    if not (run / "export" / "1" / "saved_model.pb").is_file() or not (run / "evaluation.json").is_file():
        return False
    return len(pd.read_csv(run / "history.csv")) >= trial.config.training.epochs


def _check_same(run: AnyPath, trial: Trial) -> None:
    """Refuse a run that was begun with another config, but for what a resumed run may change."""
    if not (run / "config.yaml").is_file():
        return
    free = {"name": True, "provenance": True, **MAY_CHANGE}
    was, wanted = (c.model_dump(mode="json", exclude=free) for c in (load_config(run / "config.yaml"), trial.config))
    for section, before in was.items():
        if before != wanted[section]:
            raise InputError(f"{run}: was trained with another {section}; choose another --out")


def _value(config: Config, key: str) -> Any:
    """A key's value as the config reads it: YAML takes 1e-3 for text."""
    value: Any = config.model_dump(mode="json")
    for name in key.split("."):
        value = value[name]
    return value


def _name(values: dict[str, Any]) -> str:
    short = [key.rpartition(".")[2] for key in values]
    keys = short if len(set(short)) == len(short) else list(values)
    parts = (f"{key}-{value}" for key, value in zip(keys, values.values(), strict=True))
    return re.sub(r"[^\w.-]+", "_", "_".join(parts)).strip("_")[:_LONGEST_NAME]
