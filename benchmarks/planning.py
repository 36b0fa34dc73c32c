"""Plans compared with recipes made by hand, at equal time: Dice, predicted and real minutes, and memory.

    python benchmarks/planning.py [--gi COHORT] [--hippocampus DIR] [--minutes 20] [--memory GIB] [--out DIR] [--quick]

For each dataset, `gitseg train --config auto` is trained for --minutes, and the recipe made by hand, or
configs/default.yaml where there is none, for as many epochs as the same training time allows: a discarded pilot run of
two epochs measures how long they take. Both hold out the same fold, and are scored on it by their evaluation.json.
Datasets: the phantom; a synthetic CT cohort with 8 labels, some small and two with a side, which this script makes; and
cohorts that are given. The memory is the highest resident memory of the process tree, sampled ten times a second. With
--out, a script that was killed continues with what is missing.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import psutil
from scipy import ndimage
from stored import phantom_in, require_same_options, stored

from gitseg_tf.config import load_config
from gitseg_tf.planning.machine import MEMORY_SHARE, this_machine

ROOT = Path(__file__).resolve().parent.parent
# As found by hand: the whole volume in one patch.
HIPPOCAMPUS = {
    "data.input_size": [64, 64], "data.patch": [32, 64, 64], "data.batch_size": 4, "model.architecture": "unet3d",
    "model.filters": 16, "evaluation.batch_size": 4,
}  # fmt: skip
WITHIN, ABOVE_DEFAULT, TIME_ERROR = 0.005, 0.02, 0.15
CT_SPACING, CT_SHAPE = (5.0, 1.6, 1.6), (28, 192, 192)
# Center (z, y, x) and radii in mm from the middle of the body, and Hounsfield units.
CT_LABELS = {
    "liver": ((-10, -15, -50), (45, 55, 55), 110),
    "spleen": ((-5, 25, 75), (30, 25, 20), 120),
    "kidney_left": ((15, 35, 50), (35, 18, 17), 140),
    "kidney_right": ((18, 35, -50), (35, 18, 17), 140),
    "aorta": ((0, 20, 8), (200, 9, 9), 170),
    "gallbladder": ((0, -35, -30), (14, 11, 9), 10),
    "adrenal_left": ((-18, 28, 28), (9, 5, 7), 75),
    "adrenal_right": ((-18, 28, -28), (9, 5, 7), 75),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small phantom and CT, a quarter of a minute each")
    parser.add_argument("--gi", type=Path, help="a rendered GI cohort, compared with configs/accuracy.yaml")
    parser.add_argument("--hippocampus", type=Path, help="the hippocampus data in nnU-Net's layout")
    parser.add_argument("--minutes", type=float, default=20, help="training time of each side (%(default)s)")
    parser.add_argument("--memory", type=float, help="memory limit in GiB (80%% of the machine's)")
    parser.add_argument("--only", nargs="+", help="names of datasets: phantom, ct, gi, hippocampus")
    parser.add_argument("--out", type=Path, help="keep runs in this folder")
    options = parser.parse_args()
    if options.quick:
        options.minutes, options.gi, options.hippocampus = 0.25, None, None
    memory = options.memory or round(MEMORY_SHARE * this_machine().memory_gib, 1)
    with tempfile.TemporaryDirectory() as workspace:
        workspace = (options.out or Path(workspace)).resolve()
        workspace.mkdir(parents=True, exist_ok=True)
        require_same_options(workspace, options, may_change=("only",))
        rows = []
        for name, cohort, recipe, by_hand in datasets(options, workspace):
            if not options.only or name in options.only:
                rows.append(compare(name, cohort, recipe, by_hand, options.minutes, memory, workspace / name))
    report(rows, memory)


def datasets(options, workspace):
    """Yield (name, cohort, recipe, whether it was made for such data)."""
    small = {"cases": 3, "days": 1, "slices": 24} if options.quick else {}
    yield "phantom", phantom_in(workspace / "phantom-cohort", **small), "cpu", True
    yield "ct", make_ct(workspace / "ct-cohort", 4 if options.quick else 24), "default", False
    if options.gi:
        yield "gi", options.gi.resolve(), "accuracy", True
    if options.hippocampus:
        yield "hippocampus", options.hippocampus.resolve(), HIPPOCAMPUS, True


def make_ct(folder, scans, seed=0):
    """Write an anisotropic CT cohort in nnU-Net's layout: organs as noisy ellipsoids in a body with fat, air around."""
    if (folder / "dataset.json").exists():
        return folder
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    mm = [np.arange(n) * step - (n - 1) * step / 2 for n, step in zip(CT_SHAPE, CT_SPACING, strict=True)]
    for number in range(scans):
        warp = [
            ndimage.gaussian_filter(rng.normal(size=CT_SHAPE), (3, 12, 12)) for _ in range(3)
        ]  # a smooth displacement of a few mm, so that no outline is an ellipsoid
        z, y, x = (
            axis + 4 * field / field.std() for axis, field in zip(np.meshgrid(*mm, indexing="ij"), warp, strict=True)
        )
        size = rng.uniform(0.88, 1.12)
        image = np.full(CT_SHAPE, -1000.0)
        body = (y / (95 * size)) ** 2 + (x / (130 * size)) ** 2 < 1
        image[body] = -90
        image[(y / (82 * size)) ** 2 + (x / (115 * size)) ** 2 < 1] = 45
        labels = np.zeros(CT_SHAPE, np.uint8)
        for value, (center, radii, hounsfield) in enumerate(CT_LABELS.values(), 1):
            place = size * np.array(center) + rng.normal(0, 3, 3)
            shape = size * np.array(radii) * rng.uniform(0.85, 1.15, 3)
            inside = sum(((c - p) / r) ** 2 for c, p, r in zip((z, y, x), place, shape, strict=True)) < 1
            labels[inside], image[inside] = value, hounsfield + rng.normal(0, 6)
        image = ndimage.gaussian_filter(image, (0, 0.7, 0.7)) + rng.normal(0, 18, CT_SHAPE)
        affine = np.diag([*CT_SPACING[::-1], 1.0])
        for name, voxels in (("imagesTr", image.astype(np.int16)), ("labelsTr", labels)):
            ending = "_0000" if name == "imagesTr" else ""
            # Slices run from head to feet, rows from front to back, columns from right to left.
            stored = nibabel.Nifti1Image(voxels[::-1, ::-1].transpose(2, 1, 0), affine)
            nibabel.save(stored, folder / name / f"ct_{number:03d}{ending}.nii.gz")
    tree = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "numTraining": scans}
    tree["labels"] = {"background": 0} | {name: value for value, name in enumerate(CT_LABELS, 1)}
    (folder / "dataset.json").write_text(json.dumps(tree))
    return folder


def gitseg(*arguments, log):
    """Run a command; return its highest resident memory in GiB, including its child processes."""
    command = [sys.executable, "-m", "gitseg_tf", *map(str, arguments)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
        tree, peak = psutil.Process(process.pid), 0
        while process.poll() is None:
            resident = 0
            try:
                for one in (tree, *tree.children(recursive=True)):
                    resident += one.memory_info().rss
            except psutil.Error:
                pass  # a process has just ended
            peak = max(peak, resident)
            time.sleep(0.1)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")
    return peak / 2**30


def compare(name, cohort, recipe, by_hand, minutes, memory, folder):
    folder.mkdir(exist_ok=True)
    folds = 2 if sum(1 for _ in cohort.rglob("*.nii.gz")) in range(1, 12) or (name == "phantom" and minutes < 1) else 5
    records = folder / "records"
    gitseg("convert", cohort, records, "--folds", folds, "--resume", log=folder / "convert.log")
    auto = folder / "auto"

    def planned():
        shutil.rmtree(auto, ignore_errors=True)  # left by a script that was killed
        what = ["--config", "auto", "--minutes", minutes, "--memory", memory, "--data", records]
        return gitseg("train", *what, "--out", auto, log=folder / "auto.log")

    peak = stored(folder / "peak.json", planned)
    keys = ["--config", recipe] if isinstance(recipe, str) else []
    if not isinstance(recipe, str):
        keys = [part for key, value in recipe.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    common = ["train", *keys, "--data", records, "--resume"]
    gitseg(*common, "--epochs", 2, "--out", folder / "pilot", log=folder / "pilot.log")
    first, second = pd.read_csv(folder / "pilot" / "history.csv").seconds
    epochs = max(1 + int((60 * minutes - first) / second), 1)
    gitseg(*common, "--epochs", epochs, "--out", folder / "hand", log=folder / "hand.log")
    return {
        "data": name, "recipe": recipe if isinstance(recipe, str) else "by hand", "by_hand": by_hand,
        "auto": dice(auto), "hand": dice(folder / "hand"), "peak": peak, "real": trained_minutes(auto),
        "planned": load_config(auto / "config.yaml").provenance["plan"]["minutes"],
        "hand_minutes": trained_minutes(folder / "hand"),
    }  # fmt: skip


def trained_minutes(run):
    return pd.read_csv(run / "history.csv").seconds.sum() / 60


def dice(run):
    """The mean over the labels of the 3-D Dice on the held-out fold."""
    labels = json.loads((run / "evaluation.json").read_text())["labels"].values()
    return float(np.nanmean([label["dice"] for label in labels]))


def report(rows, memory):
    print(f"{'data':12}{'plan':>8}{'recipe':>8}  {'recipe is':10}{'planned':>9}{'real':>7}{'recipe':>8}{'GiB':>6}")
    for row in rows:
        print(
            f"{row['data']:12}{row['auto']:8.4f}{row['hand']:8.4f}  {row['recipe']:10}{row['planned']:9.2f}"
            f"{row['real']:7.2f}{row['hand_minutes']:8.2f}{row['peak']:6.1f}"
        )
    for row in rows:
        goal = f"within {WITHIN} of" if row["by_hand"] else f"at least {ABOVE_DEFAULT} above"
        for claim, ours, peer, unit, ratio in (
            (f"{row['data']}: Dice of the plan, {goal} the recipe", row["auto"], row["hand"], "Dice",
             row["auto"] / max(row["hand"], 1e-9)),
            (f"{row['data']}: real minutes, within {TIME_ERROR:.0%} of the plan", row["real"], row["planned"],
             "minutes", row["planned"] / row["real"]),
            (f"{row['data']}: memory, at most the limit", row["peak"], memory, "GiB", memory / row["peak"]),
        ):  # fmt: skip
            line = {"claim": claim, "ours": round(ours, 4), "peer": round(peer, 4), "unit": unit}
            print(json.dumps(line | {"ratio": round(ratio, 3)}))


if __name__ == "__main__":
    main()
