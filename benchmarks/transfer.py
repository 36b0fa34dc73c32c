"""The gain of starting from other weights, at equal training time on two cores.

    python benchmarks/transfer.py [--data COHORT --train CASES --test CASES] [--minutes 20] [--quick]

All sides train configs/accuracy.yaml on the patients of --train for the same number of minutes, without a held-out
fold, and predict those of --test:

    random           the plain encoder from random weights
    phantom          the same, from the network of a run on a generated phantom (--init)
    phantom_frozen   the same, with the loaded layers frozen for the first tenth of the epochs
    lite0_random     EfficientNet-Lite0 from random weights
    lite0_imagenet   EfficientNet-Lite0 from its ImageNet weights

A discarded pilot run of two epochs measures how many epochs fit into the given minutes, for each encoder. Minutes are
training time, without start-up, conversion and prediction; the training of the phantom's run is not counted, because it
serves any number of other runs. Without --data, the cohort is another phantom, which shows only that the script works.
With --out, a script that was killed continues with the missing runs.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import pandas as pd
from accuracy import ROOT, part_of, run, scores
from stored import phantom_in, require_same_options, stored

LITE0 = {"model.backbone": "efficientnet_lite0"}
SIDES = {
    "random": {},
    "phantom": {"model.init": "SOURCE"},
    "phantom_frozen": {"model.init": "SOURCE", "training.freeze_epochs": "TENTH", "training.unfreeze_warmup_epochs": 1},
    "lite0_random": LITE0,
    "lite0_imagenet": LITE0 | {"model.pretrained": "imagenet"},
}
# What is compared with what.
CLAIMS = (("phantom", "random"), ("phantom_frozen", "random"), ("lite0_imagenet", "lite0_random"),
          ("lite0_imagenet", "random"))  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two epochs of three sides on small scans, one seed")
    parser.add_argument("--data", type=Path, help="a cohort with train.csv (a generated phantom)")
    parser.add_argument("--train", default="case1,case2,case3", help="patients to train on (%(default)s)")
    parser.add_argument("--test", default="case4,case5", help="patients to score (%(default)s)")
    parser.add_argument("--minutes", type=float, default=20, help="minutes of training per run (%(default)s)")
    parser.add_argument("--source-epochs", type=int, default=12, help="epochs of the phantom's run (%(default)s)")
    parser.add_argument("--source-cases", type=int, default=12, help="patients of the phantom (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "accuracy.yaml", help="(%(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of all sides")
    parser.add_argument("--out", type=Path, help="keep runs and tables in this folder")
    options = parser.parse_args()
    slices = 80
    if options.quick:
        options.minutes, options.seeds, slices = 0.0, options.seeds[:1], 24
        options.source_epochs, options.source_cases = 2, 2
        options.sides = ["random", "phantom", "lite0_imagenet"]
        options.set.append("data.input_size=[64, 64]")
    with tempfile.TemporaryDirectory() as workspace:
        workspace = options.out or Path(workspace)
        workspace.mkdir(parents=True, exist_ok=True)
        require_same_options(workspace, options, may_change=("seeds", "sides"))
        compare(options, workspace, slices)


def compare(options, workspace, slices):
    options.data = options.data or phantom_in(workspace / "cohort", cases=5, days=1, slices=slices, seed=1)
    parts = {name: part_of(options.data, getattr(options, name), workspace / name) for name in ("train", "test")}
    records = converted(parts["train"], workspace / "records")
    source = None
    if any(SIDES[side].get("model.init") for side in options.sides):
        cohort = phantom_in(workspace / "phantom", cases=options.source_cases, days=1, slices=slices, seed=100)
        source = workspace / "source"
        data = converted(cohort, workspace / "phantom_records")
        seconds = train(options, data, source, {}, options.source_epochs, 0)
        print(f"phantom: {options.source_epochs} epochs in {sum(seconds) / 60:.1f} minutes", flush=True)
    epochs, results = {}, {side: [] for side in options.sides}
    for side in options.sides:
        backbone = SIDES[side].get("model.backbone", "plain")
        if options.quick:
            epochs[backbone] = 2
        elif backbone not in epochs:
            pilot = train(options, records, workspace / f"pilot-{backbone}", backbone_keys(side), 2, 0)
            epochs[backbone] = max(2, 1 + int((0.99 * 60 * options.minutes - pilot[0]) / pilot[1]))
            print(f"{backbone}: {pilot[1]:.1f} s per epoch, {epochs[backbone]} epochs", flush=True)
    for seed in options.seeds:  # alternately, so that a slower hour of the machine affects all sides
        for side in options.sides:
            count = epochs[SIDES[side].get("model.backbone", "plain")]
            one = stored(
                workspace / f"{side}-{seed}.json",
                lambda side=side, seed=seed, count=count: one_run(
                    options, workspace, side, source, count, seed, records, parts["test"]
                ),
            )
            print(f"{side} seed {seed}: " + ", ".join(f"{key} {value:.4g}" for key, value in one.items()), flush=True)
            results[side].append(one)
    report(options, results)


def backbone_keys(side):
    return {key: value for key, value in SIDES[side].items() if key == "model.backbone"}


def converted(cohort, records):
    command = [sys.executable, "-m", "gitseg_tf", "convert", cohort, records]
    run([*command, "--folds", 2, "--resume"], records.with_suffix(".log"))
    return records


def train(options, records, out, keys, epochs, seed):
    """Train a network, or resume its training; return the seconds of each epoch."""
    assignments = [*options.set, f"seed={seed}", *(f"{key}={value}" for key, value in keys.items())]
    given = [word for assignment in assignments for word in ("--set", assignment)]
    command = [sys.executable, "train.py", "--config", options.config, "--data", records, "--fold", "none", *given]
    run([*command, "--epochs", epochs, "--resume", "--out", out], out.with_suffix(".log"))
    return pd.read_csv(out / "history.csv").seconds.tolist()


def one_run(options, workspace, side, source, epochs, seed, records, test):
    places = {"SOURCE": source, "TENTH": max(1, min(epochs // 10, epochs - 2))}
    keys = {key: places.get(value, value) for key, value in SIDES[side].items()}
    if side == "phantom_frozen" and epochs <= 2:
        keys["training.unfreeze_warmup_epochs"] = 0
    out = workspace / f"{side}-{seed}"
    seconds = sum(train(options, records, out, keys, epochs, seed))
    run([sys.executable, "-m", "gitseg_tf", "predict", out, test, out / "out"], out.with_suffix(".predict.log"))
    means = scores(test, out / "out" / "submission.csv")
    return {"dice": float(means["dice"]), "score": float(means["score"]), "minutes": seconds / 60, "epochs": epochs}


def report(options, results):
    print(f"\n{'':16}{'seed':>5}{'3-D Dice':>10}{'score':>9}{'epochs':>8}{'minutes':>9}")
    for side, rounds in results.items():
        for seed, one in zip(options.seeds, rounds, strict=True):
            print(f"{side:16}{seed:5}{one['dice']:10.4f}{one['score']:9.4f}{one['epochs']:8}{one['minutes']:9.2f}")
    means = {side: statistics.mean(one["dice"] for one in rounds) for side, rounds in results.items()}
    for ours, peer in CLAIMS:
        if ours in means and peer in means:
            length = "2 epochs" if options.quick else f"{options.minutes:g} minutes"
            claim = f"3-D Dice from {ours} against {peer} weights after {length} of training"
            facts = {"claim": claim, "ours": round(means[ours], 4), "peer": round(means[peer], 4), "unit": "Dice"}
            print(json.dumps(facts | {"ratio": round(means[ours] / max(means[peer], 1e-9), 3)}))


if __name__ == "__main__":
    main()
