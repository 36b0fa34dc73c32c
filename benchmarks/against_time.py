"""Shared by accuracy.py and nnunet.py: trainings of several lengths on both sides, resumed from a CSV, and plotted."""

import csv
import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

ROOT = Path(__file__).resolve().parent.parent
KEY = ["side", "recipe", "data", "minutes", "seed"]
COLORS = {"ours": "C0", "peer": "C1"}


def add_arguments(parser, minutes, peer_minutes):
    parser.add_argument("--quick", action="store_true", help="seconds of training on a generated data set, one seed")
    parser.add_argument("--minutes", type=float, nargs="+", default=minutes, help="of our trainings (%(default)s)")
    parser.add_argument("--peer-minutes", type=float, nargs="*", default=peer_minutes, help="of the peer's trainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, help="keep runs, results.csv and plots here, and continue what is there")


def run(command, log):
    """Run a command with its output in a log; return its last line."""
    with open(log, "w") as file:
        done = subprocess.run([*map(str, command)], stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{log.read_text()[-2000:]}")
    return (log.read_text().splitlines() or [""])[-1]


class Results:
    """The table of all points; each is appended to a CSV at once, and not measured again when the script is repeated.

    Args:
        path: the CSV; columns KEY and the scores of `measure`.
        data: name of the data set, by which points are recognized.
    """

    def __init__(self, path, data):
        self.path, self.data = path, str(data)
        text = path.read_text() if path.is_file() else ""
        whole = text[: text.rfind("\n") + 1]  # a killed script may have left half a line
        self.rows = list(csv.DictReader(io.StringIO(whole)))
        if others := {row["data"] for row in self.rows} - {self.data}:
            sys.exit(f"{path}: has results of {', '.join(sorted(others))}, not of {data}; choose another --out")
        if whole != text:
            path.write_text(whole)

    def point(self, side, recipe, minutes, seed, measure):
        """Measure a point, unless the table has it: `measure()` trains, and returns the scores by name."""
        key = dict(zip(KEY, map(str, (side, recipe, self.data, float(minutes), seed)), strict=True))
        if any(all(row[name] == value for name, value in key.items()) for row in self.rows):
            return
        row = key | {name: str(value) for name, value in measure().items()}
        begins = not self.path.is_file() or not self.path.stat().st_size
        with open(self.path, "a", newline="") as file:
            writer = csv.DictWriter(file, [*row], lineterminator="\n")
            if begins:
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)
        print(" ".join(f"{name} {shown(value)}" for name, value in row.items() if name != "data"), flush=True)

    def table(self):
        table = pd.DataFrame(self.rows)
        numbers = [name for name in table.columns if name not in ("side", "recipe", "data")]
        return table.astype(dict.fromkeys(numbers, float)).sort_values(KEY, ignore_index=True)


def shown(value):
    try:
        return f"{float(value):.4f}".rstrip("0").rstrip(".")
    except ValueError:
        return value


def recipe_of(path):
    """The name of a recipe in the table: auto, or the file's name and a digest, because an edited one is another."""
    return path if path == "auto" else f"{Path(path).name} {hashlib.sha256(Path(path).read_bytes()).hexdigest()[:6]}"


def train_ours(config, records, *, minutes, seed, out):
    """Train for some minutes in a new folder, without a held-out fold; return the minutes that the epochs took.

    `--config auto` plans for the minutes itself. For a file, a pilot of two epochs tells how many epochs fit.
    """
    what = ["--data", records, "--fold", "none", "--set", f"seed={seed}"]
    if config == "auto":
        what = ["--config", config, "--minutes", minutes, *what]
    else:
        what = ["--config", config, *what]
        what += ["--epochs", epochs_within(minutes, what, out.parent / f"pilot-{recipe_of(config)}".replace(" ", "-"))]
    shutil.rmtree(out, ignore_errors=True)  # a training that was killed
    run([sys.executable, "train.py", *what, "--out", out], out.with_name(f"{out.name}.log"))
    return pd.read_csv(out / "history.csv").seconds.sum() / 60


def epochs_within(minutes, what, pilot):
    if not (pilot / "history.csv").is_file() or len(pd.read_csv(pilot / "history.csv")) < 2:
        shutil.rmtree(pilot, ignore_errors=True)
        run([sys.executable, "train.py", *what, "--epochs", 2, "--out", pilot], pilot.with_name(f"{pilot.name}.log"))
    first, second = pd.read_csv(pilot / "history.csv").seconds[:2]
    epochs = max(1, 1 + int((0.99 * 60 * minutes - first) / second))
    print(f"ours: {first:.1f} s for the first epoch, {second:.1f} s for the second: {epochs} epochs", flush=True)
    return epochs


def measure_all(options, results, recipe, peer_recipe, ours, peer):
    """Measure all points, both sides alternately; `ours(minutes, seed)` and `peer(minutes, seed)` return scores."""
    recipe, peer_recipe = recipe_of(recipe), recipe_of(peer_recipe)
    rounds = [(m, seed) for seed in options.seeds for m in sorted({*options.minutes, *options.peer_minutes})]
    for minutes, seed in rounds:
        start = time.monotonic()
        if minutes in options.minutes:
            results.point("ours", recipe, minutes, seed, lambda m=minutes, s=seed: ours(m, s))
        if minutes in options.peer_minutes and options.peer_python:
            results.point("peer", peer_recipe, minutes, seed, lambda m=minutes, s=seed: peer(m, s))
        if time.monotonic() - start > 1:
            print(f"           {(time.monotonic() - start) / 60:.1f} minutes with start-up and prediction", flush=True)


def print_table(table, columns):
    print("\nmeans over the seeds")
    print(table.groupby(["side", "recipe", "minutes"])[columns].mean().to_string(float_format="%.4f"))


def plot(table, titles, path):
    """Plot each score against the minutes, as PNG and SVG: a line through the means, a dot per seed.

    Args:
        table: from `Results.table`.
        titles: title by column.
        path: without suffix.
    """
    figure = Figure(figsize=(5.6 * len(titles), 4), dpi=120, layout="constrained")
    for axes, (column, title) in zip(figure.subplots(1, len(titles), squeeze=False)[0], titles.items(), strict=True):
        for number, ((side, recipe), part) in enumerate(table.groupby(["side", "recipe"], sort=True)):
            color = COLORS[side] if number < 2 else f"C{number}"
            means = part.groupby("minutes")[column].mean()
            label = f"{'gitseg' if side == 'ours' else 'peer'}, {Path(recipe).stem}"
            axes.plot(means.index, means, "-", color=color, label=label)
            axes.plot(part["minutes"], part[column], "o", ms=4, color=color)
            last = means.index[-1]
            axes.annotate(f"{means[last]:.3f}", (last, means[last]), (4, 4), textcoords="offset points", fontsize=8)
        ticks = sorted(set(table["minutes"]))
        axes.set(xscale="log", xlabel="minutes of training", title=title)
        axes.set_xticks(ticks)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.4)
        axes.grid(alpha=0.25)
        axes.legend(loc="lower right", fontsize=8)
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix))


def print_claims(table, column, what):
    """Print a JSON line for each number of minutes, and one for the minutes that reach the peer's score."""
    means = table.groupby(["side", "minutes"])[column].mean()
    ours, peer = (means[side] if side in means else pd.Series(dtype=float) for side in ("ours", "peer"))
    seeds = table["seed"].nunique()
    for minutes in sorted({*ours.index, *peer.index}):
        text = f"{what} after {minutes:g} minutes of training, mean of {seeds} seed{'s' * (seeds > 1)}"
        print_claim(text, ours.get(minutes), peer.get(minutes), what, better=lambda one, other: one / other)
    for minutes in sorted(peer.index):
        reached = min((m for m, value in ours.items() if value >= peer[minutes]), default=None)
        text = f"minutes of training to the {what} of the peer's {minutes:g} minutes"
        print_claim(text, reached, minutes, "minutes", better=lambda one, other: other / one)


def print_claim(claim, ours, peer, unit, better):
    one, other = (None if v is None or math.isnan(v) else round(float(v), 4) for v in (ours, peer))
    ratio = None if one is None or not other else round(better(one, other), 3)
    print(json.dumps({"claim": claim, "ours": one, "peer": other, "unit": unit, "ratio": ratio}))
