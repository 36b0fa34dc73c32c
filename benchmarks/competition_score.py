"""The competition's score, compared with an independent referee: agreement on real contours, and seconds per scan.

Predictions are derived from the reference: shifted, extended by 3 and by 6 slices, with a single false pixel per label,
with a label that is missing from the prediction, and with one that is missing from the reference. Both sides read the
same tables in the competition's format, in a fresh process each, alternately. The referee is a script with the
arguments TRUTH.csv PREDICTION.csv DATA whose last line is JSON with score, dice and hausdorff by the organizers' text,
and score_volume, dice_volume and hausdorff_volume in the form of public notebooks; its rounding is turned off.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

ROUNDS = 3
QUICK_SCANS = 1
# The referee's names and those of evaluation.json.
NAMES = {
    "score": "score",
    "dice": "dice_2d",
    "hausdorff": "hausdorff",
    "score_volume": "score_volume",
    "dice_volume": "dice",
    "hausdorff_volume": "hausdorff_volume",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one scan; under 3 minutes")
    parser.add_argument("--data", type=Path, required=True, help="a table of contours with width, height, pw, ph")
    parser.add_argument("--referee", type=Path, required=True, help="the script that scores a table of predictions")
    parser.add_argument("--peer-python", default=sys.executable, help="Python that runs the referee (this one)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="1 is enough to check agreement (%(default)s)")
    parser.add_argument("--measure", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        side, folder = options.measure
        print(json.dumps(measure(side, Path(folder), options.referee)))
        return
    with tempfile.TemporaryDirectory() as name:
        scans = write_tables(options.data, QUICK_SCANS if options.quick else None, Path(name))
        print(f"{scans} scans, {len(VARIANTS)} predictions each, {options.rounds} rounds")
        given = ["--data", str(options.data), "--referee", str(options.referee)]
        pythons = {"ours": sys.executable, "referee": options.peer_python}
        rounds = [
            {side: run([python, __file__, *given, "--measure", side, name]) for side, python in pythons.items()}
            for _ in range(options.rounds)
        ]
    report(rounds, scans)


def write_tables(contours, count, folder):
    """Write truth.csv and prediction.csv for each variant, and the files whose names give the sizes of the slices."""
    from gitseg_tf.data.readers.rle import mask_to_rle, rle_to_mask
    from gitseg_tf.labels import UWMGI

    table = pd.read_csv(contours, keep_default_na=False)
    scans = list(table.groupby(table["id"].str.rsplit("_slice_", n=1).str[0]))[:count]
    parts = {variant: ([], []) for variant in VARIANTS}
    for n, (scan, rows) in enumerate(scans):
        height, width = int(rows["height"].iloc[0]), int(rows["width"].iloc[0])
        numbers = sorted(rows["id"].str.rsplit("_", n=1).str[1].astype(int).unique())
        images = folder / "data" / "train" / scan.split("_")[0] / scan / "scans"
        images.mkdir(parents=True)
        for number in numbers:
            (images / f"slice_{number:04d}_{width}_{height}_1.50_1.50.png").touch()
        truth = np.zeros((len(UWMGI), len(numbers), height, width), bool)
        for name, label, rle in zip(rows["id"], rows["class"], rows["segmentation"], strict=True):
            number = numbers.index(int(name.rsplit("_", 1)[1]))
            truth[UWMGI.index(label), number] = rle_to_mask(rle, (height, width))
        for variant, change in VARIANTS.items():
            for masks, listed in zip(change(truth, np.random.default_rng(n), n), parts[variant], strict=True):
                listed += [
                    (f"{scan}_slice_{number:04d}", label, mask_to_rle(mask[z]))
                    for label, mask in zip(UWMGI.names, masks, strict=True)
                    for z, number in enumerate(numbers)
                ]
    for variant, tables in parts.items():
        (folder / variant).mkdir()
        for name, listed in zip(("truth", "prediction"), tables, strict=True):
            frame = pd.DataFrame(listed, columns=["id", "class", "segmentation"])
            frame.to_csv(folder / variant / f"{name}.csv", index=False)
    return len(scans)


def shifted(truth, rng, n):
    return truth, np.roll(truth, (1, 2, -3), (1, 2, 3))


def extended(slices):
    def change(truth, rng, n):
        prediction = truth.copy()
        for step in range(1, slices + 1):
            prediction[:, step:] |= truth[:, :-step]
            prediction[:, :-step] |= truth[:, step:]
        return truth, prediction

    return change


def with_false_pixels(truth, rng, n):
    prediction = truth.copy()
    for mask in prediction:
        mask[tuple(rng.integers(size) for size in mask.shape)] = True
    return truth, prediction


def without_a_predicted_label(truth, rng, n):
    prediction = truth.copy()
    prediction[n % len(truth)] = False
    return truth, prediction


def without_a_reference_label(truth, rng, n):
    return without_a_predicted_label(truth, rng, n)[::-1]


VARIANTS = {
    "shifted": shifted,
    "extended by 3 slices": extended(3),
    "extended by 6 slices": extended(6),
    "single false pixels": with_false_pixels,
    "label not predicted": without_a_predicted_label,
    "label not in the reference": without_a_reference_label,
}


def measure(side, folder, referee):
    """Score all variants; return by variant the scores and the seconds, from tables to scores."""
    score = of_referee(referee) if side == "referee" else ours
    measured = {}
    for variant in VARIANTS:
        start = time.perf_counter()
        scores = score(*(folder / variant / f"{name}.csv" for name in ("truth", "prediction")), folder / "data")
        measured[variant] = {"scores": scores, "seconds": time.perf_counter() - start}
    return measured


def of_referee(path):
    """Load the referee's script as a function that gives its last line without rounding."""
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location("referee", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.round = lambda value, digits=None: value

    def score(*arguments):
        sys.argv[1:] = map(str, arguments)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            module.main()
        return json.loads(printed.getvalue().splitlines()[-1])

    return score


def ours(truth, prediction, data):
    from gitseg_tf.data.readers.base import SLICE_MM
    from gitseg_tf.evaluation.metrics.scores import score_scan, summarize
    from gitseg_tf.labels import UWMGI

    masks = [read_masks(path, data) for path in (truth, prediction)]
    rows = []
    for scan, reference in masks[0].items():
        rows += score_scan(
            scan, scan.split("_")[0], reference, masks[1][scan], labels=UWMGI, spacing=(SLICE_MM, 1.5, 1.5)
        )
    summary = summarize(pd.DataFrame(rows))
    return {theirs: summary[name] for theirs, name in NAMES.items()}


def read_masks(path, data):
    from gitseg_tf.data.readers.rle import rle_to_mask
    from gitseg_tf.labels import UWMGI

    table = pd.read_csv(path, keep_default_na=False)
    masks = {}
    for scan, rows in table.groupby(table["id"].str.rsplit("_slice_", n=1).str[0]):
        files = sorted((data / "train").glob(f"*/{scan}/scans/*.png"))
        numbers = {int(file.stem.split("_")[1]): z for z, file in enumerate(files)}
        width, height = map(int, files[0].stem.split("_")[2:4])
        masks[scan] = np.zeros((len(UWMGI), len(numbers), height, width), bool)
        for name, label, rle in zip(rows["id"], rows["class"], rows["segmentation"], strict=True):
            if rle:
                z = numbers[int(name.rsplit("_", 1)[1])]
                masks[scan][UWMGI.index(label), z] = rle_to_mask(rle, (height, width))
    return masks


def run(command):
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with exit status {process.returncode}")
    return json.loads(process.stdout.splitlines()[-1])


def report(rounds, scans):
    print(f"\n{'':40}" + "".join(f"{name:>18}" for name in NAMES) + f"{'s/scan ours':>14}{'referee':>10}")
    worst, totals = 0.0, {"ours": 0.0, "referee": 0.0}
    for variant in VARIANTS:
        first = {side: rounds[0][side][variant]["scores"] for side in totals}
        differences = {name: abs(first["ours"][name] - first["referee"][name]) for name in NAMES}
        seconds = {side: statistics.median(one[side][variant]["seconds"] for one in rounds) / scans for side in totals}
        totals = {side: totals[side] + seconds[side] / len(VARIANTS) for side in totals}
        worst = max(worst, *differences.values())
        for title, values in (*first.items(), ("difference", differences)):
            form = "18.2e" if title == "difference" else "18.6f"
            end = f"{seconds['ours']:14.3f}{seconds['referee']:10.2f}" if title == "difference" else ""
            print(f"{variant + ', ' + title:40}" + "".join(f"{values[name]:{form}}" for name in NAMES) + end)
    print(f"\nlargest difference {worst:.2e}")
    claims = [
        {
            "claim": f"largest difference from the referee, of {len(NAMES)} means and {len(VARIANTS)} predictions",
            "ours": float(f"{worst:.2e}"),
            "peer": None,
            "unit": "1",
            "ratio": None,
            "target": 1e-4,
        },
        {
            "claim": "all scores of a scan against the referee's two forms, from tables",
            "ours": round(totals["ours"], 4),
            "peer": round(totals["referee"], 4),
            "unit": "s/scan",
            "ratio": round(totals["referee"] / totals["ours"], 2),
        },
    ]
    for claim in claims:
        print(json.dumps(claim))
    if worst > 1e-4:
        sys.exit("the scores differ by more than 1e-4")


if __name__ == "__main__":
    main()
