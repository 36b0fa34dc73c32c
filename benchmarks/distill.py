"""Distillation: how much of a teacher's gain over a single network a student keeps, and what it costs to run.

    python benchmarks/distill.py [--data COHORT --train CASES --test CASES] [--minutes M] [--seeds 0 1] [--quick]

The teacher is a cross-validation of the patients of --train, whose networks train for the given minutes each. The
student and the single network are the same config, trained on all of these patients for the same minutes; only the
student sees the teacher's probabilities. All three predict the patients of --test, whom none has seen. The gain kept is
(student - single) / (teacher - single); it means little if the teacher gains less than the noise between seeds, which
the table shows. Latency is the median time to segment one scan, measured in turn. Without --data, a phantom is
generated. Preparing the teacher's probabilities is not part of the student's time; it is printed. With --out, a script
that was killed continues with what is missing.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from accuracy import part_of, run
from stored import phantom_in, require_same_options, stored

from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.evaluation.metrics.scores import score_scan, summarize
from gitseg_tf.inference.predictor import load_predictor

ROOT = Path(__file__).resolve().parent.parent
QUICK_EPOCHS = 8
GITSEG = (sys.executable, "-m", "gitseg_tf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 short epochs, two folds, one seed")
    parser.add_argument("--data", type=Path, help="a cohort with train.csv (a generated phantom)")
    parser.add_argument("--train", default="case1,case2,case3,case4", help="patients to train on (%(default)s)")
    parser.add_argument("--test", default="case5,case6", help="patients to score (%(default)s)")
    parser.add_argument("--minutes", type=float, default=20, help="minutes of training per network (%(default)s)")
    parser.add_argument("--folds", type=int, default=4, help="networks of the teacher (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--weight", type=float, default=0.5, help="training.loss.distillation.weight (%(default)s)")
    parser.add_argument("--members", default="unseen", choices=["unseen", "all"], help="as for gitseg distill")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "accuracy.yaml")
    parser.add_argument("--out", type=Path, help="keep runs in this folder")
    options = parser.parse_args()
    options.more = []
    if options.quick:
        options.folds, options.seeds = 2, options.seeds[:1]
        options.more = ["data.input_size=[64, 64]", "data.batch_size=4", "model.filters=8", "postprocess={}"]
        options.more += ["training.learning_rate=0.005"]
    with tempfile.TemporaryDirectory() as workspace:
        workspace = options.out or Path(workspace)
        workspace.mkdir(parents=True, exist_ok=True)
        require_same_options(workspace, options, may_change=("seeds",))
        slices = 24 if options.quick else 80
        cohort = options.data or phantom_in(workspace / "phantom", cases=6, days=1, slices=slices)
        parts = {name: part_of(cohort, getattr(options, name), workspace / name) for name in ("train", "test")}
        records = workspace / "records"
        convert = [*GITSEG, "convert", parts["train"], records, "--folds", options.folds, "--resume"]
        run(convert, workspace / "convert.log")
        rounds = [
            stored(
                workspace / f"seed{seed}.json",
                lambda seed=seed: measure(options, records, parts["test"], seed, workspace / f"seed{seed}"),
            )
            for seed in options.seeds
        ]
    report(options, rounds)


def train(options, records: Path, out: Path, *, fold, epochs: int, seed: int, more=()) -> list[float]:
    """Train a network, or resume its training; return the seconds of each epoch."""
    keys = [f"seed={seed}", *options.more, *more]
    what = ["--config", options.config, "--data", records, "--fold", fold, "--epochs", epochs, "--resume"]
    settings = [word for key in keys for word in ("--set", key)]
    run([*GITSEG, "train", *what, *settings, "--out", out], out.with_suffix(".log"))
    return pd.read_csv(out / "history.csv").seconds.tolist() if fold != "all" else []


def epochs_within(options, records: Path, out: Path, more=()) -> int:
    """Measure how many epochs fit into the minutes, with a discarded pilot run of two epochs."""
    if options.quick:
        return QUICK_EPOCHS
    first, second = train(options, records, out, fold="none", epochs=2, seed=0, more=more)
    return max(1 + int((0.99 * 60 * options.minutes - first) / second), 1)


def measure(options, records: Path, test: Path, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Train teacher, student and single network with a seed; return the scores and the latency of each."""
    folder.mkdir(exist_ok=True)
    epochs = epochs_within(options, records, folder / "pilot")
    # A fold of the teacher trains on fewer patients than the others, so the same time is more epochs.
    share = 1 - 1 / options.folds
    train(options, records, folder / "cv", fold="all", epochs=max(round(epochs / share), 1), seed=seed)
    train(options, records, folder / "single", fold="none", epochs=epochs, seed=seed)
    start = time.monotonic()
    distilled = folder / "distilled"
    if not (distilled / "dataset.json").is_file():
        shutil.rmtree(distilled, ignore_errors=True)
        run(
            [*GITSEG, "distill", folder / "cv", records, distilled, "--members", options.members],
            folder / "distill.log",
        )
    print(f"seed {seed}: {epochs} epochs; distill took {time.monotonic() - start:.0f} s", flush=True)
    weight = [f"training.loss.distillation.weight={options.weight}"]
    of_student = epochs_within(options, distilled, folder / "student-pilot", weight)
    train(options, distilled, folder / "student", fold="none", epochs=of_student, seed=seed, more=weight)
    models = {"teacher": folder / "cv", "single": folder / "single", "student": folder / "student"}
    return scored({name: load_predictor(path) for name, path in models.items()}, test)


def scored(predictors: dict, test: Path) -> dict[str, dict[str, float]]:
    """Predict each scan with all models in turn, after a warm-up, and score the masks."""
    rows, seconds = {name: [] for name in predictors}, {name: [] for name in predictors}
    scans = read_cohort(test).scans
    for predictor in predictors.values():
        predictor.predict(scans[0].read_volume())
    for scan in scans:
        volume, annotation = scan.read_volume(), scan.read_annotation()
        _ = volume.percentiles  # measured with the reading of a scan
        for name, predictor in predictors.items():
            times = []
            for _ in range(3):
                start = time.monotonic()
                masks = predictor.predict(volume).masks
                times.append(time.monotonic() - start)
            seconds[name].append(statistics.median(times))
            rows[name] += score_scan(
                scan.id, scan.case, annotation, masks, labels=predictor.labels, spacing=scan.spacing
            )
    means = {name: summarize(pd.DataFrame(of_model)) for name, of_model in rows.items()}
    return {
        name: {"score": mean["score"], "dice": mean["dice"], "seconds": statistics.median(seconds[name])}
        for name, mean in means.items()
    }


def report(options, rounds: list[dict[str, dict[str, float]]]) -> None:
    print(f"\n{'':10}{'seed':>5}{'score':>9}{'Dice':>9}{'s a scan':>10}")
    for seed, models in zip(options.seeds, rounds, strict=True):
        for name, one in models.items():
            print(f"{name:10}{seed:5}{one['score']:9.4f}{one['dice']:9.4f}{one['seconds']:10.3f}")
    mean = {
        name: {key: statistics.mean(models[name][key] for models in rounds) for key in ("score", "dice", "seconds")}
        for name in rounds[0]
    }
    teacher, single, student = (mean[name] for name in ("teacher", "single", "student"))
    gain = teacher["score"] - single["score"]
    kept = (student["score"] - single["score"]) / gain if gain > 0 else None
    print(f"teacher gains {gain:+.4f}, student {student['score'] - single['score']:+.4f}")
    length = f"{QUICK_EPOCHS} epochs" if options.quick else f"{options.minutes:g} minutes"
    after = f"after {length} a network, mean of {len(options.seeds)} seeds"
    print(line(f"score of the student against the same network without a teacher, {after}", student, single, "score"))
    share = None if kept is None else round(kept, 3)
    print(json.dumps({"claim": f"gain kept, {after}", "ours": share, "peer": None, "unit": "share", "ratio": None}))
    print(line("time of the student against the teacher's, per scan", student, teacher, "seconds", lower=True))
    print(line("time of the student against the single network's, per scan", student, single, "seconds", lower=True))


def line(claim: str, ours: dict, peer: dict, key: str, *, lower: bool = False) -> str:
    """Format a claim as JSON; the ratio is above 1 when ours is better."""
    above, below = (peer[key], ours[key]) if lower else (ours[key], peer[key])
    ratio = round(above / below, 3) if below else None
    unit = "s" if key == "seconds" else key
    return json.dumps(
        {
            "claim": claim,
            "ours": round(ours[key], 4),
            "peer": round(peer[key], 4),
            "unit": unit,
            "ratio": ratio,
        }
    )


if __name__ == "__main__":
    main()
