"""What the winners' recipe gains: networks along three axes and a 3-D network, compared with the best of them.

    python benchmarks/recipe.py [--data COHORT --train CASES --test CASES] [--minutes M] [--quick]

Each member is trained for as many epochs as fit into the given minutes, on fold 0 of the patients of --train; a
discarded pilot run of two epochs measures how long they take. `gitseg ensemble --tune` chooses weights and
post-processing on the held-out fold. Then the members, with the post-processing that `gitseg tune` chooses for each on
the same fold, and the ensemble, with equal and with tuned weights, segment the patients of --test, whom nothing was
trained or tuned on. Without --data, a phantom is generated. There is no peer: each member had the same minutes as the
one to which the ensemble is compared. With --out, a script that was killed continues with what is missing.
"""

import argparse
import json
import shutil
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pandas as pd
import yaml
from accuracy import part_of, run, scores
from stored import phantom_in, require_same_options, stored

from gitseg_tf.cli import main as command_line

ROOT = Path(__file__).resolve().parent.parent
PLANES = ("axial", "coronal", "sagittal")
VOLUME = ["data.patch=[16,96,96]", "data.batch_size=2", "model.architecture=unet3d", "augment.dropout.p=0"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="two epochs for each member, on a small phantom, and --metric dice"
    )
    parser.add_argument("--data", type=Path, help="a cohort with train.csv (a generated phantom)")
    parser.add_argument(
        "--train", default="case1,case2,case3,case4", help="patients to train and tune on (%(default)s)"
    )
    parser.add_argument("--test", default="case5", help="patients to score (%(default)s)")
    parser.add_argument("--folds", type=int, default=3, help="folds of --train; one is held out (%(default)s)")
    parser.add_argument("--minutes", type=float, default=20, help="minutes of training for each member (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--config",
        type=Path,
        default=ROOT / "configs" / "accuracy.yaml",
        help="the 2.5-D members' recipe (%(default)s)",
    )
    parser.add_argument("--metric", default="score", help="what weights and post-processing maximize (%(default)s)")
    parser.add_argument("--out", type=Path, help="keep runs and tables in this folder")
    options = parser.parse_args()
    if options.quick:
        options.metric = "dice"  # the score takes longer to tune
    with tempfile.TemporaryDirectory() as workspace:
        workspace = options.out or Path(workspace)
        workspace.mkdir(parents=True, exist_ok=True)
        require_same_options(workspace, options)
        slices = 24 if options.quick else 80
        options.data = options.data or phantom_in(workspace / "phantom", cases=5, days=1, slices=slices)
        parts = {name: part_of(options.data, getattr(options, name), workspace / name) for name in ("train", "test")}
        gitseg(workspace, "convert", parts["train"], workspace / "records", "--folds", options.folds, "--resume")
        members = {name: train(options, name, workspace) for name in (*PLANES, "volume")}
        report(options, stored(workspace / "scores.json", lambda: scored(options, members, parts["test"], workspace)))


def gitseg(workspace, command, *arguments):
    """Run a gitseg command with its output in a log; all but training in this process, to import TensorFlow once."""
    log = workspace / f"{command}.log"
    if command == "train":
        run([sys.executable, "-m", "gitseg_tf", command, *arguments], log)
        return
    with open(log, "w") as file, redirect_stdout(file), redirect_stderr(file):
        status = command_line([command, *map(str, arguments)])
    if status:
        sys.exit(f"gitseg {command} failed:\n{log.read_text()[-2000:]}")


def settings_of(options, name):
    """The settings of a member, for --set."""
    settings = [f"seed={options.seed}", *(VOLUME if name == "volume" else [f"data.plane={name}"])]
    # Scores of whole scans after each epoch would take the time of training.
    settings.append("evaluation.metric=dice")
    if options.quick:
        settings += ["data.input_size=[96,96]", "model.filters=8", "model.levels=4"]
    return [part for setting in settings for part in ("--set", setting)]


def train(options, name, workspace):
    """Train a member for the given minutes; return its folder."""

    def training(epochs, folder):
        what = ["--config", options.config, "--data", workspace / "records", "--fold", 0]
        gitseg(workspace, "train", *what, *settings_of(options, name), "--epochs", epochs, "--resume", "--out", folder)
        return pd.read_csv(folder / "history.csv").seconds.tolist()

    epochs = 2
    if not options.quick:
        first, second = training(2, workspace / f"{name}-pilot")
        epochs = max(1 + int((60 * options.minutes - first) / second), 1)
    seconds = sum(training(epochs, workspace / name))
    print(f"{name:10}{epochs:4} epochs in {seconds / 60:.1f} minutes", flush=True)
    return workspace / name


def scored(options, members, test, workspace):
    """Predict and score the test patients with each member and with the ensemble."""
    rows = {}
    ensemble, equal = workspace / "ensemble", workspace / "equal"
    for folder in (ensemble, equal, workspace / "predictions"):
        shutil.rmtree(folder, ignore_errors=True)  # left by a script that was killed
    gitseg(workspace, "ensemble", *members.values(), "--out", ensemble, "--tune", "--metric", options.metric)
    tree = yaml.safe_load((ensemble / "ensemble.yaml").read_text())
    print("weights   ", {Path(entry["run"]).name: entry["weight"] for entry in tree["members"]}, flush=True)
    gitseg(workspace, "ensemble", *members.values(), "--out", equal)
    untuned = yaml.safe_load((equal / "ensemble.yaml").read_text())
    (equal / "ensemble.yaml").write_text(yaml.safe_dump(untuned | {"postprocess": tree["postprocess"]}))
    for folder in members.values():
        gitseg(workspace, "tune", folder, "--metric", options.metric)
    for name, folder in (members | {"equal": equal, "tuned": ensemble}).items():
        gitseg(workspace, "predict", folder, test, workspace / "predictions" / name)
        means = scores(test, workspace / "predictions" / name / "submission.csv")
        rows[name] = {key: float(means[key]) for key in ("score", "dice")}
    return {name: rows[name] for name in (*members, "equal", "tuned")}


def report(options, rows):
    print(f"\n{'':24}{'score':>9}{'Dice':>9}")
    for name, means in rows.items():
        title = {"equal": "ensemble, equal weights", "tuned": "ensemble, tuned weights"}.get(name, name)
        print(f"{title:24}{means['score']:9.4f}{means['dice']:9.4f}")
    training = "two epochs" if options.quick else f"{options.minutes:g} minutes of training"
    for key in ("score", "dice"):
        best = max((name for name in rows if name not in ("equal", "tuned")), key=lambda name: rows[name][key])
        single, fused = rows[best][key], rows["tuned"][key]
        claim = f"{key} of the ensemble and of its best member, {best}, {training} each"
        line = {"claim": claim, "ours": round(fused, 4), "peer": round(single, 4), "unit": key}
        print(
            json.dumps(line | {"ratio": round(fused / single, 3) if single else None, "gain": round(fused - single, 4)})
        )


if __name__ == "__main__":
    main()
