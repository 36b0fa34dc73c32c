"""Accuracy after a fixed number of minutes of training on two cores, compared with segmentation-models-pytorch.

    python benchmarks/accuracy.py --peer-python PATH [--data COHORT --train CASES --test CASES] [--quick]

Neither side uses pretrained weights. Ours is `gitseg train --config configs/accuracy.yaml` without a held-out fold, for
as many epochs as fit into the given minutes; a discarded pilot run of two epochs measures how long they take. Minutes
are training time on both sides, without start-up, conversion and prediction. Each side predicts the patients of --test,
and both tables are scored by the same code, following the competition's rules. Without --data, a phantom is generated.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.data.readers.rle import rle_to_mask
from gitseg_tf.evaluation.metrics.scores import score_scan, summarize
from gitseg_tf.labels import UWMGI
from gitseg_tf.phantom import make_phantom

ROOT = Path(__file__).resolve().parent.parent
OWN_PEER = ROOT / "benchmarks" / "peers" / "accuracy_torch.py"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="half a minute of training, one seed")
    parser.add_argument("--data", type=Path, help="a cohort with train.csv (a generated phantom)")
    parser.add_argument("--train", default="case1,case2,case3", help="patients to train on (%(default)s)")
    parser.add_argument("--test", default="case4,case5", help="patients to score (%(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=20, help="minutes of training, per side and seed (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--config", type=Path, default=ROOT / "configs" / "accuracy.yaml", help="our recipe (%(default)s)"
    )
    parser.add_argument("--peer-python", help="a Python with torch, segmentation-models-pytorch and albumentations")
    parser.add_argument("--peer", type=Path, default=OWN_PEER, help="the peer's script (%(default)s)")
    parser.add_argument(
        "--referee", type=Path, help="a scoring script, called with TRUTH PREDICTION DATA; its last line is JSON"
    )
    parser.add_argument("--out", type=Path, help="keep runs and tables in this folder")
    options = parser.parse_args()
    if options.quick:
        options.minutes, options.seeds = 0.5, options.seeds[:1]
    with tempfile.TemporaryDirectory() as workspace:
        workspace = options.out or Path(workspace)
        workspace.mkdir(parents=True, exist_ok=True)
        options.data = options.data or make_phantom(
            workspace / "phantom", cases=5, days=1 if options.quick else 2, slices=40 if options.quick else 80
        )
        parts = {name: part_of(options.data, getattr(options, name), workspace / name) for name in ("train", "test")}
        epochs = epochs_within(options, parts["train"], workspace)
        results = {"ours": [], "peer": []}
        for seed in options.seeds:
            results["ours"].append(ours(options, parts, epochs, seed, workspace))
            if options.peer_python:
                results["peer"].append(peer(options, seed, workspace))
    report(options, results)


def part_of(cohort, cases, folder):
    """Create a cohort of links to the files of some patients, with their rows of the table."""
    cases = cases.split(",")
    (folder / "train").mkdir(parents=True, exist_ok=True)
    for case in cases:
        # Link files instead of folders, because linked folders are not searched.
        if not (folder / "train" / case).exists():
            source = (cohort / "train" / case).resolve(strict=True)
            shutil.copytree(source, folder / "train" / case, copy_function=os.symlink)
    with open(cohort / "train.csv", newline="") as whole, open(folder / "train.csv", "w", newline="") as part:
        rows = csv.reader(whole)
        csv.writer(part).writerows([next(rows), *(row for row in rows if row[0].split("_")[0] in cases)])
    return folder


def run(command, log):
    """Run a command with its output in a log; return the seconds that it took."""
    start = time.monotonic()
    with open(log, "w") as file:
        done = subprocess.run([*map(str, command)], stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{log.read_text()[-2000:]}")
    return time.monotonic() - start


def train(options, cohort, epochs, seed, out):
    """Train our side; return the seconds of each epoch."""
    records = out.parent / "records"
    if not records.exists():
        run([sys.executable, "-m", "gitseg_tf", "convert", cohort, records, "--folds", 2], out.parent / "convert.log")
    what = ["--config", options.config, "--data", records, "--fold", "none", "--set", f"seed={seed}"]
    run([sys.executable, "train.py", *what, "--epochs", epochs, "--out", out], out.with_suffix(".log"))
    return pd.read_csv(out / "history.csv").seconds.tolist()


def epochs_within(options, cohort, workspace):
    first, second = train(options, cohort, 2, options.seeds[0], workspace / "pilot")
    epochs = 1 + int((0.99 * 60 * options.minutes - first) / second)
    print(f"ours: {first:.1f} s for the first epoch, {second:.1f} s for the second: {epochs} epochs", flush=True)
    return max(epochs, 1)


def ours(options, parts, epochs, seed, workspace):
    folder = workspace / f"ours-{seed}"
    seconds = sum(train(options, parts["train"], epochs, seed, folder))
    run(
        [sys.executable, "-m", "gitseg_tf", "predict", folder, parts["test"], folder / "out"], workspace / "predict.log"
    )
    return scored(options, "ours", seed, parts["test"], folder / "out" / "submission.csv", seconds)


def peer(options, seed, workspace):
    table = workspace / f"peer-{seed}.csv"
    what = ["--train", options.train, "--test", options.test, "--minutes", options.minutes, "--seed", seed]
    run([options.peer_python, options.peer, options.data, table, *what], table.with_suffix(".log"))
    return scored(options, "peer", seed, workspace / "test", table, 60 * options.minutes)


def scored(options, side, seed, cohort, table, seconds):
    if options.referee:
        command = [sys.executable, options.referee, cohort / "train.csv", table, cohort]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
        means = json.loads(done.stdout.splitlines()[-1])
        means["dice"] = means["dice_volume"]  # 3-D, as in evaluation.json
    else:
        means = scores(cohort, table)
    names = {"score": "score", "score_volume": "score_volume", "dice": "dice", "hausdorff": "hausdorff_volume"}
    result = {key: float(means[name]) for key, name in names.items()} | {"minutes": seconds / 60}
    print(f"{side} seed {seed}: " + ", ".join(f"{key} {value:.4f}" for key, value in result.items()), flush=True)
    return result


def scores(cohort, table):
    predicted = pd.read_csv(table, keep_default_na=False)
    runs = dict(zip(zip(predicted["id"], predicted["class"], strict=True), predicted.iloc[:, 2], strict=True))
    rows = []
    for scan in read_cohort(cohort).scans:
        masks = np.zeros((len(UWMGI), *scan.shape), bool)
        for z, number in enumerate(scan.numbers):
            for k, label in enumerate(UWMGI.names):
                masks[k, z] = rle_to_mask(runs[f"{scan.id}_slice_{number:04d}", label], scan.shape[1:])
        rows += score_scan(scan.id, scan.case, scan.read_annotation().masks, masks, labels=UWMGI, spacing=scan.spacing)
    return summarize(pd.DataFrame(rows))


def report(options, results):
    print(f"\n{'':6}{'seed':>5}{'score':>9}{'volume form':>13}{'Dice':>9}{'Hausdorff':>11}{'minutes':>9}")
    for side, rounds in results.items():
        for seed, one in zip(options.seeds, rounds, strict=False):
            scores_of = f"{one['score']:9.4f}{one['score_volume']:13.4f}{one['dice']:9.4f}{one['hausdorff']:11.4f}"
            print(f"{side:6}{seed:5}{scores_of}{one['minutes']:9.1f}")
    if not options.peer_python:
        print("without --peer-python, the peer is not measured")
    means = {
        side: round(statistics.mean(one["score"] for one in rounds), 4) if rounds else None
        for side, rounds in results.items()
    }
    ratio = round(means["ours"] / means["peer"], 3) if means["peer"] else None
    claim = {
        "claim": f"competition score after {options.minutes:g} minutes of training, mean of {len(options.seeds)} seeds"
    }
    print(json.dumps(claim | means | {"unit": "score", "ratio": ratio}))


if __name__ == "__main__":
    main()
