"""Damaged files of run folders, cross-validations and exports."""

import json
import shutil

import pytest
import yaml
from helpers.damage import Tally, damaged_bytes, damaged_json, damaged_yaml, generator

from gitseg_tf.evaluation.statistics.compare import compare, read_evaluation
from gitseg_tf.export.savedmodel import write_assets
from gitseg_tf.runs.cross_validation import read_cross_validation
from gitseg_tf.runs.folder import read_history
from gitseg_tf.runs.run import load_run
from gitseg_tf.viewer.catalog import open_library

pytestmark = pytest.mark.slow


@pytest.fixture
def run(untrained, tmp_path):
    """A copy of an evaluated run."""
    folder = tmp_path / "run"
    shutil.copytree(untrained, folder, ignore=shutil.ignore_patterns("report*", "*.png"))
    (folder / "history.csv").write_text(
        "epoch,loss,dice,val_loss,val_dice,learning_rate,seconds\n1,0.9,0.1,0.9,0.2,0.001,3.5\n2,0.8,0.2,0.8,,0.001,3.4\n"
    )
    return folder


def test_configs_of_runs(run, tmp_path):
    rng, tally = generator(50), Tally()
    config = run / "config.yaml"
    content = config.read_bytes()
    tree = yaml.safe_load(content)
    # A run's config lists every key; a short one is parsed faster.
    tree = {key: tree[key] for key in ("name", "labels", "channels", "provenance", "evaluation")} | {
        "data": {"input_size": [32, 32], "fold": 1}
    }
    tuned = {
        "postprocess": {"stomach": {"threshold": 0.4}},
        "evaluation": {"tta": {"flip": True}},
        "provenance": {"tuned": {"fold": 1, "cases": 2, "scans": 3}},
    }
    folds = tree | {"provenance": {"folds": [["case1"], ["case2"]], "dataset": "x"}}
    for n in range(300):
        if n % 3 == 0:
            config.write_bytes(damaged_yaml(rng, tree))
            tally(config.read_bytes()[:200], lambda: write_assets(load_run(run), tmp_path, {}))
        elif n % 3 == 1:
            (run / "postprocess.yaml").write_bytes(damaged_yaml(rng, tuned))
            tally((run / "postprocess.yaml").read_bytes(), load_run, run)
            (run / "postprocess.yaml").unlink()
        else:
            (tmp_path / "cross_validation.yaml").write_bytes(damaged_yaml(rng, folds))
            tally((tmp_path / "cross_validation.yaml").read_bytes()[:200], read_cross_validation, tmp_path)
        config.write_bytes(content)
    tally.check(300, accepted=20, refused=50)


def test_histories(run):
    from gitseg_tf.runs.cross_validation import _is_trained

    rng, tally = generator(51), Tally()
    path, config = run / "history.csv", load_run(run).config
    content = path.read_bytes()
    for n in range(600):
        path.write_bytes(
            damaged_bytes(rng, content)
            if n % 5
            else content.replace(b"0.1", bytes(rng.choice([b"", b"x", b"nan", b"1e999", b'"', b"1,2", b"\0"])))
        )
        tally(path.read_bytes(), read_history, run)
        tally(path.read_bytes(), _is_trained, run, config)
    tally.check(1200, accepted=100, refused=100)


def test_evaluations(run, untrained, tmp_path):
    rng, tally = generator(52), Tally()
    loaded, path, table = load_run(run), run / "evaluation.json", run / "evaluation.csv"
    tree, content = json.loads(path.read_text()), table.read_bytes()
    other = read_evaluation(untrained)
    for n in range(120):
        if n % 4:
            path.write_bytes(damaged_json(rng, tree))
        else:
            table.write_bytes(damaged_bytes(rng, content))
        compared = compare if n % 3 == 0 else lambda *evaluations: None  # takes most of the time
        tally(("compare", path.read_bytes()[:200]), lambda compared=compared: compared(read_evaluation(run), other))
        tally(("view", path.read_bytes()[:200]), open_library, run)
        tally(("card", path.read_bytes()[:200]), write_assets, loaded, tmp_path, {})
        path.write_text(json.dumps(tree))
        table.write_bytes(content)
    tally.check(360, accepted=50, refused=50)


def test_weights(run, monkeypatch):
    from gitseg_tf.models.build import build_model
    from gitseg_tf.runs.network import load_model

    rng, tally = generator(53), Tally(60)
    loaded = load_run(run)
    model = build_model(loaded.config)  # once, because building takes most of the time
    monkeypatch.setattr("gitseg_tf.runs.network.build_model", lambda *arguments: model)
    content = loaded.weights.read_bytes()
    for n in range(150):
        loaded.weights.write_bytes(damaged_bytes(rng, content, 0, 4000 if n % 2 else None))
        tally(n, load_model, loaded)
    tally.check(150, accepted=3, refused=10)


def test_progress_within_an_epoch():
    from gitseg_tf.training.callbacks.checkpoints import RunningEpoch

    rng, tally = generator(54), Tally()
    for _n in range(300):
        text = damaged_json(rng, {"steps": 3, "measures": [1.0, [2.0, 3.0]]})
        tally(text[:100], RunningEpoch().deserialize, text)
    tally.check(300, accepted=20, refused=50)
