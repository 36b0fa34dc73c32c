"""Accuracy after some minutes of training on two cores, compared with segmentation-models-pytorch.

    python benchmarks/accuracy.py --peer-python PATH [--data COHORT --train CASES --test CASES] [--minutes 2 20]

Neither side uses pretrained weights. Ours is `gitseg train --config configs/accuracy.yaml` without a held-out fold, for
as many epochs as fit into the given minutes; a discarded pilot run of two epochs measures how long they take. Each
point is a training of its own, and minutes are training time on both sides, without start-up, conversion and
prediction. Each side predicts the patients of --test, and both tables are scored by the same code, following the
competition's rules. Without --data, a phantom is generated. With --out, a script that was killed continues with the
missing points.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from against_time import ROOT, Results, add_arguments, measure_all, plot, print_claims, print_table, run, train_ours

from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.data.readers.rle import rle_to_mask
from gitseg_tf.evaluation.metrics.scores import score_scan, summarize
from gitseg_tf.labels import UWMGI
from gitseg_tf.phantom import make_phantom

OWN_PEER = ROOT / "benchmarks" / "peers" / "accuracy_torch.py"
TITLES = {
    "score": "competition score, organizers' text",
    "score_volume": "competition score, volume form",
    "dice": "3-D Dice",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, minutes=[20], peer_minutes=None)
    parser.add_argument("--data", type=Path, help="a cohort with train.csv (a generated phantom)")
    parser.add_argument("--train", default="case1,case2,case3", help="patients to train on (%(default)s)")
    parser.add_argument("--test", default="case4,case5", help="patients to score (%(default)s)")
    parser.add_argument(
        "--config",
        type=recipe,
        default=ROOT / "configs" / "accuracy.yaml",
        help="our recipe: a file, or auto, which plans for the minutes (%(default)s)",
    )
    parser.add_argument("--peer-python", help="a Python with torch, segmentation-models-pytorch and albumentations")
    parser.add_argument("--peer", type=Path, default=OWN_PEER, help="the peer's script (%(default)s)")
    parser.add_argument(
        "--referee", type=Path, help="a scoring script, called with TRUTH PREDICTION DATA; its last line is JSON"
    )
    options = parser.parse_args()
    if options.quick:
        options.minutes, options.peer_minutes, options.seeds = [0.5], None, options.seeds[:1]
    if options.peer_minutes is None:
        options.peer_minutes = options.minutes
    with tempfile.TemporaryDirectory() as temporary:
        workspace = (options.out or Path(temporary)).resolve()
        workspace.mkdir(parents=True, exist_ok=True)
        measure(options, workspace)


def recipe(text):
    return text if text == "auto" else Path(text).resolve(strict=True)


def measure(options, workspace):
    slices = {"days": 1, "slices": 40} if options.quick else {"days": 2, "slices": 80}
    generated = workspace / "phantom"
    if not options.data and not (generated / "train.csv").is_file():
        shutil.rmtree(generated, ignore_errors=True)
        make_phantom(generated, cases=5, **slices)
    options.data = (options.data or generated).resolve()
    results = Results(workspace / "results.csv", f"{options.data.name}, {options.train}, {options.test}")
    parts = {name: part_of(options.data, getattr(options, name), workspace / name) for name in ("train", "test")}
    records = workspace / "records"
    if not (records / "dataset.json").is_file():
        convert = [sys.executable, "-m", "gitseg_tf", "convert", parts["train"], records]
        run([*convert, "--folds", 2, "--resume"], workspace / "convert.log")

    def ours(minutes, seed):
        out = workspace / f"ours-{Path(options.config).stem}-{minutes:g}-{seed}"
        trained = train_ours(options.config, records, minutes=minutes, seed=seed, out=out)
        command = [sys.executable, "-m", "gitseg_tf", "predict", out, parts["test"], out / "out"]
        run(command, workspace / "predict.log")
        return scored(options, parts["test"], out / "out" / "submission.csv") | {"trained_minutes": trained}

    def peer(minutes, seed):
        table = workspace / f"peer-{minutes:g}-{seed}.csv"
        what = ["--train", options.train, "--test", options.test, "--minutes", minutes, "--seed", seed]
        run([options.peer_python, options.peer, options.data, table, *what], table.with_suffix(".log"))
        return scored(options, parts["test"], table) | {"trained_minutes": minutes}

    measure_all(options, results, options.config, options.peer, ours, peer)
    table = results.table()
    print_table(table, [*TITLES, "hausdorff", "trained_minutes"])
    if not options.peer_python:
        print("without --peer-python, the peer is not measured")
    plot(table, TITLES, workspace / "accuracy_against_minutes")
    for column, what in (("dice", "3-D Dice"), ("score", "competition score")):
        print_claims(table, column, what)


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


def scored(options, cohort, table):
    if options.referee:
        command = [sys.executable, options.referee, cohort / "train.csv", table, cohort]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
        means = json.loads(done.stdout.splitlines()[-1])
        means["dice"] = means["dice_volume"]  # 3-D, as in evaluation.json
    else:
        means = scores(cohort, table)
    names = {"score": "score", "score_volume": "score_volume", "dice": "dice", "hausdorff": "hausdorff_volume"}
    return {key: float(means[name]) for key, name in names.items()}


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


if __name__ == "__main__":
    main()
