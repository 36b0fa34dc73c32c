import json
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from gitseg_tf.cli import main
from gitseg_tf.config import load_config, save_config
from gitseg_tf.training.search import grid, process
from gitseg_tf.training.search.grid import draw_grid, failures, read_grid, run_grid, table_lines

pytestmark = pytest.mark.process


@pytest.fixture
def read(tmp_path):
    """read(text, base, overrides) reads a grid file with that text."""

    def reading(text, base=None, overrides=None):
        (tmp_path / "grid.yaml").write_text(text)
        return read_grid(tmp_path / "grid.yaml", base, overrides or {})

    return reading


TWO_BY_TWO = "training.learning_rate: [1e-3, 0.01]\nmodel.filters: [4, 8]\n"


def test_a_grid_combines_all_values_on_top_of_the_base_and_overrides(read, tmp_path):
    (tmp_path / "base.yaml").write_text("training: {epochs: 7}\n")
    trials = read(TWO_BY_TWO, tmp_path / "base.yaml", {"seed": 3})
    assert [(t.config.training.learning_rate, t.config.model.filters) for t in trials] == [
        (0.001, 4),
        (0.001, 8),
        (0.01, 4),
        (0.01, 8),
    ]
    assert {(t.config.training.epochs, t.config.seed) for t in trials} == {(7, 3)}


def test_runs_are_named_after_the_varied_keys(read):
    sizes = read("data.input_size: [[32, 32], [64, 64]]\n")
    assert [trial.name for trial in sizes] == ["input_size-_32_32", "input_size-_64_64"]
    assert read(TWO_BY_TWO)[3].name == "learning_rate-0.01_filters-8"
    both = read("augment.affine.p: [0.1]\naugment.flip.p: [0.2]\n")
    assert both[0].name == "augment.affine.p-0.1_augment.flip.p-0.2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training.epoch: [1, 2]", "did you mean training.epochs"),
        ("training.epochs: [1, 0]", "training.epochs=0: config: training.epochs must be"),
        ("training.epochs: 3", "training.epochs is 3; give a list"),
        ("training.epochs: []", "give a list"),
        ("training: {epochs: [1, 2]}", "give a list"),
        ("training.epochs: [1, 1]", "lists a value twice"),
        ("", "is empty"),
        ("[1, 2]", "must be a mapping"),
        ("seed: [1, 2]", "is also set by an override"),
        ("data.path: [a/b, a//b]", "two runs would have the name"),
        ("training.epochs: {low: 1, high: 9}", "training.epochs is a range, which has no combinations"),
        ("data.fold: [0, null]", "run fold-None: data.fold is null"),
    ],
)
def test_an_invalid_grid_is_refused(read, refusal, text, expected):
    assert expected in refusal(read, text, None, {"seed": 0})


def finish(trial, out, score=0.5, epochs=1, monitored="val_dice"):
    """Write the files of a finished run."""
    run = out / trial.name
    (run / "export" / "1").mkdir(parents=True, exist_ok=True)
    save_config(trial.config, run / "config.yaml")
    (run / "export" / "1" / "saved_model.pb").touch()
    (run / "evaluation.json").write_text(json.dumps({"score": score, "dice": score / 2, "hausdorff": score / 3}))
    rows = [{"epoch": e + 1, monitored: score - 0.1 * e, "seconds": 10.5} for e in range(epochs)]
    pd.DataFrame(rows).to_csv(run / "history.csv", index=False)


@pytest.fixture
def commands(read, tmp_path, monkeypatch):
    """The runs of the grid and the names of the runs that were started; the run with 0.01 and 4 fails."""
    trials = read(TWO_BY_TWO, None, {"training.epochs": 2})
    called, configs = [], {trial.name: trial.config for trial in trials}

    @contextmanager
    def call(command, stdout, **more):
        name = command[-2].rsplit("/", 1)[-1]
        called.append(name)
        assert command[:4] == [sys.executable, "-m", "gitseg_tf", "train"] and command[-1] == "--resume"
        assert load_config(command[5]) == configs[name]
        if name == "learning_rate-0.01_filters-4":
            stdout.write("epoch 1\ngitseg: epoch 1, step 3: the loss is nan\n")
            yield SimpleNamespace(returncode=1, wait=lambda: 1)
            return
        finish(next(t for t in trials if t.name == name), tmp_path / "out", 0.1 * len(called), 2)
        yield SimpleNamespace(returncode=0, wait=lambda: 0)

    monkeypatch.setattr(process.subprocess, "Popen", call)
    return SimpleNamespace(trials=trials, called=called, configs=configs, out=tmp_path / "out")


def test_a_failed_run_does_not_stop_the_others_and_the_best_is_listed_first(commands, caplog):
    caplog.set_level("INFO", "gitseg_tf")
    table = run_grid(commands.trials, commands.out)
    assert commands.called == [t.name for t in commands.trials]
    assert table["run"].tolist() == [commands.called[k] for k in (3, 1, 0, 2)]
    assert table["score"].tolist()[:3] == pytest.approx([0.4, 0.2, 0.1])
    assert failures(table) == ["learning_rate-0.01_filters-4"]
    assert "step 3: the loss is nan" in table["status"].iloc[3] and "exit status 1" in table["status"].iloc[3]
    best = table.iloc[0]
    assert (best["training.learning_rate"], best["model.filters"], best["epochs"]) == (0.01, 8, 2)
    assert best[["dice", "hausdorff", "val_dice", "seconds"]].tolist() == pytest.approx([0.2, 0.4 / 3, 0.4, 21.0])
    assert caplog.messages[0].startswith("grid       4 runs of 2 epochs, in")
    written = pd.read_csv(commands.out / "grid.csv")
    assert written["run"].tolist() == table["run"].tolist() and "status" in written
    assert (commands.out / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_the_metric_of_the_config_ranks_the_runs(read, tmp_path):
    trials = read("model.filters: [4, 8]", None, {"evaluation.metric": "score_volume"})
    for trial, score, volume in zip(trials, (0.9, 0.8), (0.6, 0.7), strict=True):
        finish(trial, tmp_path, score, monitored="val_score_volume")
        (tmp_path / trial.name / "evaluation.json").write_text(
            json.dumps({"score": score, "dice": 0.5, "hausdorff": 0.5, "score_volume": volume})
        )
    table = grid.compare(trials, tmp_path, {})
    assert table["model.filters"].tolist() == [8, 4] and table["score_volume"].tolist() == [0.7, 0.6]
    assert table["val_score_volume"].tolist() == [0.8, 0.9] and "val_dice" not in table
    grid.draw_grid(tmp_path / "grid.png", table, tmp_path, "score_volume")
    assert "score_volume" in table_lines(table).splitlines()[0].split()


def test_runs_that_are_chosen_by_different_metrics_cannot_be_compared(read, refusal):
    assert "evaluation.metric differs between runs" in refusal(read, "evaluation.metric: [dice, score]", None, {})


def test_finished_runs_are_skipped_and_unfinished_ones_resumed(commands, caplog):
    finish(commands.trials[0], commands.out, 0.9, epochs=2)
    finish(commands.trials[1], commands.out, 0.8, epochs=2)
    (commands.out / commands.trials[1].name / "evaluation.json").unlink()
    (commands.out / commands.trials[1].name / "export/1/saved_model.pb").unlink()
    (commands.out / commands.trials[1].name / "export/1").rmdir()
    caplog.set_level("INFO", "gitseg_tf")
    table = run_grid(commands.trials[:2], commands.out)
    assert commands.called == [commands.trials[1].name] and "1 of them already finished" in caplog.messages[0]
    assert set(table["status"]) == {"finished"} and table["score"].max() == 0.9


def test_a_run_with_a_different_config_is_refused(commands, read, refusal):
    finish(commands.trials[0], commands.out)
    others = read(TWO_BY_TWO, None, {"training.epochs": 2, "data.batch_size": 4})
    message = refusal(run_grid, others, commands.out)
    assert commands.trials[0].name in message and "a different data" in message and not commands.called


@pytest.mark.parametrize(
    ("key", "value"), [("early_stopping_patience", 3), ("checkpoint_minutes", 7.0), ("wandb", "project")]
)
def test_a_grid_can_change_what_a_resumed_run_can_change(commands, read, key, value):
    finish(commands.trials[0], commands.out, epochs=2)
    assert getattr(commands.trials[0].config.training, key) != value
    others = read(TWO_BY_TWO, None, {"training.epochs": 2, f"training.{key}": value})
    assert run_grid(others[:1], commands.out)["status"].tolist() == ["finished"] and not commands.called


def test_a_grid_in_the_folder_of_a_search_is_refused(commands, refusal):
    commands.out.mkdir()
    (commands.out / "study.journal").touch()
    assert "is a search" in refusal(run_grid, commands.trials, commands.out) and not commands.called


@pytest.mark.parametrize(("name", "value"), [("TF_CONFIG", "{}"), ("SLURM_STEP_NUM_TASKS", "2")])
def test_a_grid_with_several_workers_is_refused(commands, refusal, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert "several workers" in refusal(run_grid, commands.trials, commands.out) and not commands.out.exists()


def test_a_grid_with_more_epochs_resumes_its_runs(commands, read):
    finish(commands.trials[0], commands.out, epochs=2)
    longer = read("training.learning_rate: [0.001]\nmodel.filters: [4]\n", None, {"training.epochs": 3})
    (trial,) = longer
    assert trial.name == commands.trials[0].name and trial.config.training.epochs == 3
    commands.configs[trial.name] = trial.config  # what the started command must be given
    run_grid(longer, commands.out)
    assert commands.called == [trial.name]


def test_the_printed_table_lists_keys_and_results(commands):
    text = table_lines(run_grid(commands.trials, commands.out))
    header, *rows = text.splitlines()
    assert header.split()[:4] == ["learning_rate", "filters", "score", "dice"] and len(rows) == 4
    assert rows[0].split()[:3] == ["0.01", "8", "0.4"] and rows[3].split()[-1] == "failed"


def test_a_grid_of_failed_runs_can_be_plotted(tmp_path):
    table = pd.DataFrame([{"run": "a", "dice": np.nan, "seconds": np.nan, "status": "exit status 1: no"}])
    draw_grid(tmp_path / "grid.png", table, tmp_path)
    assert (tmp_path / "grid.png").is_file()


def test_the_grid_command_trains_in_subprocesses_and_reports_failures(tiny_dataset, tmp_path):
    fold = [scan.id for scan in tiny_dataset.scans_of([1])]
    (tmp_path / "two.yaml").write_text(f"data.exclude_scans: [[{', '.join(fold)}], []]\n")
    tiny = ["data.input_size=[32, 32]", "model.filters=4", "data.window_slices=1"]
    command = [sys.executable, "-m", "gitseg_tf", "grid", "two.yaml", "--data", tiny_dataset.root]
    command += ["--fold", "1", "--epochs", "1", "--batch-size", "4", "--precision", "float32"]
    command += [part for key in tiny for part in ("--set", key)]
    completed = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)
    assert completed.returncode == 1
    assert completed.stdout.startswith("grid       2 runs of 1 epoch, in runs/two")
    assert completed.stderr.strip().startswith("gitseg: 1 of 2 runs failed: exclude_scans-_case")
    table = pd.read_csv(tmp_path / "runs/two/grid.csv")
    assert table["status"][0] == "finished" and "excludes all scans of fold 1" in table["status"][1]
    run = tmp_path / "runs/two" / table["run"][0]
    assert (run / "export/1/saved_model.pb").is_file()
    assert table["score"][0] == json.loads((run / "evaluation.json").read_text())["score"]


def test_an_unknown_key_stops_the_grid_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("training.epochs: [1]\ntraining.rate: [1, 2]\n")
    assert main(["grid", "bad.yaml"]) == 1
    assert "unknown key training.rate" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]
