"""Incomplete and imperfect labels: what is lost without some annotations, and how many annotation errors are found.

    python benchmarks/labels.py [--part missing unlabeled errors] [--data COHORT] [--quick]

Without --data, a phantom is generated, one scan per patient. The cohort must have the competition's layout. Each part
compares two trainings in the same run, with the same number of steps, scored on patients that neither has seen:

- missing: all labels of the training scans, against one label unannotated in half of them.
- unlabeled: all training scans annotated, against a quarter of them. The others get pseudo-labels of the runs of a
  cross-validation on that quarter. The quarter alone is shown, too.
- errors: `gitseg inspect` of a cross-validation whose annotations have an error in 5% of the scans. The claim is the
  share of these scans among the first 10%, which is 0.1 for a random order.

With --out, a script that was killed continues with what is missing.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from stored import phantom_in, require_same_options

from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.data.readers.rle import mask_to_rle
from gitseg_tf.labels import UWMGI

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("missing", "unlabeled", "errors")
SETTINGS = {"data.input_size": "[96,96]", "data.window_slices": 3, "model.filters": 12}
# Slices of errors that concern a part of a scan, millimeters of contours that are too large, slices of a shift.
PART, TOO_LARGE_MM, SHIFT = 6, 6.0, 4


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: everything)")
    parser.add_argument("--quick", action="store_true", help="few scans and steps, one seed")
    parser.add_argument("--data", type=Path, help="a cohort with train.csv, of 20 patients or more (a phantom)")
    parser.add_argument("--cases", type=int, default=80, help="patients of the phantom (%(default)s)")
    parser.add_argument("--label", default="stomach", help="the label to remove (%(default)s)")
    parser.add_argument("--steps", type=int, default=1500, help="training steps (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="keep cohorts and runs in this folder")
    options = parser.parse_args()
    if options.quick:
        options.cases, options.steps, options.seeds = 12, 60, options.seeds[:1]
    with tempfile.TemporaryDirectory() as workspace:
        options.work = options.out or Path(workspace)
        options.work.mkdir(parents=True, exist_ok=True)
        require_same_options(options.work, options, may_change=("work", "part", "seeds"))
        slices = 24 if options.quick else 40
        options.data = options.data or phantom_in(options.work / "phantom", cases=options.cases, days=1, slices=slices)
        options.rows = list(csv.reader((options.data / "train.csv").open(newline="")))[1:]
        cases = sorted({row[0].split("_")[0] for row in options.rows}, key=lambda case: (len(case), case))
        options.test, options.train = cases[: len(cases) // 4], cases[len(cases) // 4 :]
        for part in options.part:
            {"missing": missing, "unlabeled": unlabeled, "errors": errors}[part](options)


def missing(options):
    """One label unannotated in half of the scans."""
    results = defaultdict(list)
    test = converted(options, "test", options.test, options.rows, folds=1)
    for seed in options.seeds:
        chosen = set(np.random.default_rng(seed).permutation(options.train)[: len(options.train) // 2].tolist())
        rows = [r for r in options.rows if not (r[0].split("_")[0] in chosen and r[1] == options.label)]
        results["all"].append(with_all_annotations(options, seed, test))
        half = converted(options, f"half-{seed}", options.train, rows, folds=2)
        results["half"].append(dice(train(options, half, f"half-{seed}", ["--fold", "none", *seeded(seed)]), test))
    table(f"{options.label} annotated in all scans or in half of them", results)
    means = {name: pd.DataFrame(each).mean() for name, each in results.items()}
    for title, labels in (("the other labels", others(options.label)), (options.label, [options.label])):
        claim(
            f"Dice of {title} with {options.label} annotated in half of the scans, against all", "Dice",
            means["half"][labels].mean(), means["all"][labels].mean(),
        )  # fmt: skip


def unlabeled(options):
    """A quarter of the scans annotated, and pseudo-labels for the others."""
    results = defaultdict(list)
    test = converted(options, "test", options.test, options.rows, folds=1)
    for seed in options.seeds:
        kept = set(np.random.default_rng(seed).permutation(options.train)[: max(3, len(options.train) // 4)].tolist())
        rows = [row for row in options.rows if row[0].split("_")[0] in kept]
        quarter = converted(options, f"quarter-{seed}", options.train, rows, folds=2 if options.quick else 3)
        results["all"].append(with_all_annotations(options, seed, test))
        alone = train(options, quarter, f"quarter-{seed}", ["--fold", "none", *seeded(seed)])
        results["quarter"].append(dice(alone, test))
        teacher = train(options, quarter, f"teacher-{seed}", ["--fold", "all", *seeded(seed)])
        pseudo = options.work / "records" / f"pseudo-{seed}"
        gitseg("pseudo-label", teacher, quarter, pseudo, "--resume")
        student = train(options, pseudo, f"student-{seed}", ["--fold", "none", *seeded(seed)])
        results["quarter and pseudo-labels"].append(dice(student, test))
    table("a quarter of the annotations", results)
    means = {name: pd.DataFrame(each).mean().mean() for name, each in results.items()}
    for name in ("quarter and pseudo-labels", "quarter"):
        claim(f"Dice with a {name}, against all annotations", "Dice", means[name], means["all"])


def with_all_annotations(options, seed, test):
    """Train on all annotations; parts share the run."""
    records = converted(options, "all", options.train, options.rows, folds=2)
    return dice(train(options, records, f"all-{seed}", ["--fold", "none", *seeded(seed)]), test)


def errors(options):
    """Annotation errors in 5% of the scans."""
    found, planted, lines = 0, 0, []
    for seed in options.seeds:
        cases = options.train + options.test
        rng = np.random.default_rng(seed)
        wrong = rng.permutation(sorted({scan_of(row) for row in options.rows}))[: max(1, round(0.05 * len(cases)))]
        kinds = dict(zip(wrong.tolist(), np.roll(list(ERRORS), -seed * len(wrong)).tolist() * len(wrong), strict=False))
        rows = with_errors(options.data, options.rows, kinds)
        records = converted(options, f"errors-{seed}", cases, rows, folds=2 if options.quick else 5)
        run = train(options, records, f"errors-{seed}", ["--fold", "all", *seeded(seed)])
        page = options.work / f"errors-{seed}.html"
        gitseg("inspect", run, "--out", page)
        ranks = pd.read_csv(page.with_suffix(".csv")).groupby("scan")["rank"].first()
        first = max(1, round(0.1 * len(ranks)))
        for scan, kind in kinds.items():
            lines.append(f"seed {seed}: {kind} in {scan} is at rank {ranks[scan]} of {len(ranks)}")
            found, planted = found + (ranks[scan] <= first), planted + 1
    print("\nannotation errors in 5% of the scans", *lines, sep="\n")
    claim("share of the planted annotation errors among the first 10% of gitseg inspect", "share", found / planted, 0.1)


def exchanged(masks, rng, pixel_mm):
    """Two labels have each other's contours."""
    one, other = rng.permutation(len(masks))[:2]
    masks[[one, other]] = masks[[other, one]]


def shifted(masks, rng, pixel_mm):
    """All contours are some slices off."""
    masks[:] = np.roll(masks, SHIFT, axis=1)
    masks[:, :SHIFT] = False


def incomplete(masks, rng, pixel_mm):
    """A label is missing on some slices."""
    k, part = some_slices(masks, rng)
    masks[k, part] = False


def wrong_label(masks, rng, pixel_mm):
    """On some slices, a label has the name of another one."""
    k, part = some_slices(masks, rng)
    other = (k + 1 + rng.integers(len(masks) - 1)) % len(masks)
    masks[other, part] |= masks[k, part]
    masks[k, part] = False


def too_large(masks, rng, pixel_mm):
    """The contours of a label are too large."""
    k, size = rng.integers(len(masks)), 2 * round(TOO_LARGE_MM / pixel_mm) + 1
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    for plane in masks[k]:
        plane[:] = cv2.dilate(plane.astype(np.uint8), disk) > 0


ERRORS = {f.__name__: f for f in (exchanged, shifted, incomplete, wrong_label, too_large)}


def some_slices(masks, rng):
    """Choose a label that is present, and adjacent slices in its middle."""
    k = rng.choice(np.flatnonzero(masks.any((1, 2, 3))))
    slices = np.flatnonzero(masks[k].any((1, 2)))
    start = max(0, (len(slices) - PART) // 2)
    return k, slices[start : start + PART]


def with_errors(cohort, rows, kinds):
    """Return the rows of the table with an error of the given kind in some scans."""
    changed = {}
    for scan in read_cohort(cohort).scans:
        if scan.id in kinds:
            masks = scan.read_annotation().masks.copy()
            ERRORS[kinds[scan.id]](masks, np.random.default_rng(len(scan.id) + sum(map(ord, scan.id))), scan.spacing[1])
            for k, name in enumerate(UWMGI.names):
                changed |= {(i, name): mask_to_rle(m) for i, m in zip(scan.slice_ids, masks[k], strict=True)}
    return [[i, name, changed.get((i, name), text)] for i, name, text in rows]


def converted(options, name, cases, rows, folds):
    """Convert the scans of some patients with some rows of the table."""
    cohort, records = options.work / "cohorts" / name, options.work / "records" / name
    if (records / "dataset.json").is_file():  # written last
        return records
    shutil.rmtree(cohort, ignore_errors=True)
    (cohort / "train").mkdir(parents=True)
    for case in cases:  # links to files, because linked folders are not searched
        shutil.copytree((options.data / "train" / case).resolve(), cohort / "train" / case, copy_function=os.symlink)
    with (cohort / "train.csv").open("w", newline="") as file:
        kept = [row for row in rows if row[0].split("_")[0] in set(cases)]
        csv.writer(file).writerows([("id", "class", "segmentation"), *kept])
    gitseg("convert", cohort, records, "--folds", folds, "--resume")
    return records


def train(options, records, name, more):
    """Train for about the given number of steps, or resume the training; return the folder of the run."""
    out = options.work / "runs" / name
    index = json.loads((records / "dataset.json").read_text())
    scans = [scan for shard in index["shards"] if shard["fold"] != -1 for scan in shard["scans"]]
    windows = sum(scan["shape"][0] for scan in scans) * (1 if "none" in more else 1 - 1 / index["folds"]["count"])
    epochs = max(1, round(options.steps * 16 / windows))
    settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    gitseg("train", "--data", records, "--out", out, "--epochs", epochs, "--resume", *settings, *more)
    return out


def seeded(seed):
    return "--set", f"seed={seed}"


def dice(run, records):
    """Score a run on a dataset: the 3-D Dice of each label."""
    if not (run / "evaluations").exists():
        gitseg("evaluate", run, "--data", records)
    (scores,) = run.glob("evaluations/*/evaluation.json")
    return {name: means["dice"] for name, means in json.loads(scores.read_text())["labels"].items()}


def gitseg(*words):
    command = [sys.executable, "-m", "gitseg_tf", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"gitseg {' '.join(map(str, words))} failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")


def scan_of(row):
    return row[0].split("_slice_")[0]


def others(label):
    return [name for name in UWMGI.names if name != label]


def table(title, results):
    print(f"\n{title}: 3-D Dice\n{'':27}{'seed':>5}" + "".join(f"{name:>14}" for name in UWMGI.names))
    for name, rounds in results.items():
        for seed, one in enumerate(rounds):
            print(f"{name:27}{seed:5}" + "".join(f"{one[label]:14.4f}" for label in UWMGI.names), flush=True)


def claim(text, unit, ours, peer):
    ours, peer = round(float(ours), 4), round(float(peer), 4)
    print(json.dumps({"claim": text, "ours": ours, "peer": peer, "unit": unit, "ratio": round(ours / peer, 4)}))


if __name__ == "__main__":
    main()
