"""Searches with a fake objective, and one whose process is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from gitseg_tf.cli import main
from gitseg_tf.config import load_config
from gitseg_tf.errors import DependencyError, RunError
from gitseg_tf.training.search import study
from gitseg_tf.training.search.process import EpochReport
from gitseg_tf.training.search.space import read_search
from gitseg_tf.training.search.study import run_search
from gitseg_tf.training.search.study_plot import draw_search, search_lines

optuna = pytest.importorskip("optuna")

SPACE = """
training.learning_rate: {low: 1e-4, high: 0.1, log: true}
model.filters: {low: 4, high: 32, step: 4}
model.dropout: {low: 0, high: 0.5}
data.input_size: [[32, 32], [64, 64]]
"""


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """A picture takes longer than a search with a fake objective."""
    monkeypatch.setattr(study, "draw_search", lambda *_: None)


@pytest.fixture
def searched(tmp_path):
    """searched(text, epochs=3) is a search with that text."""

    def search(text=SPACE, **overrides):
        (tmp_path / "space.yaml").write_text(text)
        keys = {key.replace("__", "."): value for key, value in {"training__epochs": 3, **overrides}.items()}
        return read_search(tmp_path / "space.yaml", None, keys)

    return search


class Trainings:
    """A fake objective that writes the files of a run; `curve(name, config)` gives the metric of each epoch."""

    def __init__(self, out, curve=None):
        self.out, self.configs, self.epochs = out, {}, {}
        self.curve = curve or (
            lambda name, config: [0.1, 0.2, 0.9 - abs(np.log10(config.training.learning_rate) + 2.5)]
        )

    def __call__(self, name, config, after_epoch):
        self.configs[name] = config
        values, run = self.curve(name, config), self.out / name
        run.mkdir(exist_ok=True)
        for epoch, value in enumerate(values, 1):
            rows = [{"epoch": e, "val_dice": v, "seconds": 1.5} for e, v in enumerate(values[:epoch], 1)]
            pd.DataFrame(rows).to_csv(run / "history.csv", index=False)
            self.epochs[name] = epoch
            if after_epoch(epoch, value):
                return None
        (run / "evaluation.json").write_text(json.dumps({"score": 0.5, "dice": values[-1], "hausdorff": 0.1}))
        return values[-1]

    def values(self, name):
        config = self.configs[name]
        return (
            config.training.learning_rate,
            config.model.filters,
            config.model.dropout,
            config.data.input_size,
        )


def trials_in(out):
    """The trials in the journal, read by Optuna itself."""
    backend = optuna.storages.journal.JournalFileBackend(str(out / "study.journal"))
    return optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(backend)).trials


def test_trials_sample_the_ranges_and_the_best_config_is_written(searched, tmp_path, caplog):
    caplog.set_level("INFO", "gitseg_tf")
    out, search = tmp_path / "out", searched()
    trainings = Trainings(out)
    table = run_search(search, out, trials=15, prune_after=100, objective=trainings)
    rates, filters, dropouts, sizes = map(set, zip(*map(trainings.values, trainings.configs), strict=True))
    assert len(rates) == 15 and 1e-4 <= min(rates) < 1e-3 and 1e-2 < max(rates) <= 0.1
    assert filters <= set(range(4, 33, 4)) and len(filters) > 3 and all(type(n) is int for n in filters)
    assert 0 <= min(dropouts) < max(dropouts) <= 0.5 and sizes == {(32, 32), (64, 64)}
    best = table["run"].iloc[0]
    assert load_config(out / "best.yaml") == trainings.configs[best]
    assert table["dice"].iloc[0] == max(t.value for t in trials_in(out)) == table["dice"].max()
    written = pd.read_csv(out / "grid.csv")
    assert written["run"].tolist() == table["run"].tolist() and set(written["status"]) == {"finished"}
    assert caplog.messages[0].startswith("search     15 trials of 3 epochs, in")


def test_the_sampler_learns_from_the_trials(searched, tmp_path):
    search, distances = searched("training.learning_rate: {low: 1e-4, high: 0.1, log: true}\n"), []

    def objective(name, config, after_epoch):
        distances.append(abs(np.log10(config.training.learning_rate) + 2.5))
        return 0.9 - distances[-1]

    run_search(search, tmp_path / "out", trials=30, objective=objective)
    assert np.median(distances[20:]) < 0.35  # 0.75 for random values


def test_the_picture_shows_all_states_of_trials(searched, tmp_path):
    search = searched()
    table = pd.DataFrame({"run": ["trial-001", "trial-002", "trial-003"], "status": ["finished", "pruned", "signal 9"]})
    table["training.learning_rate"], table["model.filters"], table["model.dropout"] = [1e-3, 1e-2, 1e-4], [4, 8, 4], 0.1
    table["data.input_size"] = [[32, 32], [64, 64], [32, 32]]
    table["dice"], table["val_dice"] = [0.8, np.nan, np.nan], [0.79, 0.5, np.nan]
    for states in ([0, 1, 2], [1], [2]):
        draw_search(tmp_path / "grid.png", table.iloc[states], tmp_path, search)
        width, height = Image.open(tmp_path / "grid.png").size
        assert width >= 1000 and height >= 600


def test_a_trial_below_the_median_of_the_earlier_ones_is_pruned(searched, tmp_path, caplog):
    caplog.set_level("INFO", "gitseg_tf")
    curves = {
        "trial-001": [0.1, 0.5, 0.6, 0.7],  # the first two are never pruned
        "trial-002": [0.3, 0.3, 0.8, 0.9],
        "trial-003": [0.1, 0.45, 0.75, 0.8],  # above the medians: 0.4 of (0.5, 0.3), and 0.7 of (0.6, 0.8)
        "trial-004": [0.0, 0.4, 0.9, 0.9],  # epoch 2: best 0.4, median of (0.5, 0.3, 0.45) is 0.45
        "trial-005": [0.5, 0.2, 0.2, 0.2],  # epoch 3: best 0.5, median of (0.6, 0.8, 0.75) is 0.75
        "trial-006": [0.4, 0.5, 0.76, 0.1],  # below the median of (0.7, 0.9, 0.8) only after the last epoch
    }
    trainings = Trainings(tmp_path / "out", lambda name, config: curves[name])
    search = searched(training__epochs=4)
    table = run_search(search, tmp_path / "out", trials=6, prune_after=2, objective=trainings).set_index("run")
    assert trainings.epochs == {
        "trial-001": 4,
        "trial-002": 4,
        "trial-003": 4,
        "trial-004": 2,
        "trial-005": 3,
        "trial-006": 4,
    }
    assert table["status"].sort_index().tolist() == ["finished"] * 3 + ["pruned"] * 2 + ["finished"]
    assert table["epochs"].sort_index().tolist() == [4, 4, 4, 2, 3, 4] and np.isnan(table["dice"]["trial-004"])
    states = [trial.state.name for trial in trials_in(tmp_path / "out")]
    assert states == ["COMPLETE"] * 3 + ["PRUNED"] * 2 + ["COMPLETE"]
    assert any(m.startswith("pruned     trial-004 after epoch 2: its val_dice") for m in caplog.messages)


def test_an_interrupted_search_ends_as_if_it_had_never_stopped(searched, tmp_path):
    search, whole, parts = searched(), Trainings(tmp_path / "whole"), Trainings(tmp_path / "parts")
    expected = run_search(search, tmp_path / "whole", trials=14, prune_after=3, objective=whole)
    begun = []

    def interrupted(name, config, after_epoch):
        begun.append(name)
        if len(begun) in (2, 3, 9):  # as a kill would: the journal has no result of the trial
            after_epoch(1, 0.1)
            raise KeyboardInterrupt
        return parts(name, config, after_epoch)

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run_search(search, tmp_path / "parts", trials=14, prune_after=3, objective=interrupted)
    table = run_search(search, tmp_path / "parts", trials=14, prune_after=3, objective=interrupted)
    assert begun == [f"trial-{k:03d}" for k in (1, 2, 2, 2, 3, 4, 5, 6, 7, 7, *range(8, 15))]
    assert {name: whole.values(name) for name in whole.configs} == {name: parts.values(name) for name in parts.configs}
    columns = ["run", "training.learning_rate", "dice", "status"]
    pd.testing.assert_frame_equal(table[columns], expected[columns])
    states = [trial.state.name for trial in trials_in(tmp_path / "parts")]
    assert states.count("FAIL") == 3 and len(states) == 14 + 3


def test_more_trials_can_be_added_and_finished_ones_are_kept(searched, tmp_path):
    search, trainings = searched(), Trainings(tmp_path / "out")
    assert len(run_search(search, tmp_path / "out", trials=2, objective=trainings)) == 2
    trainings.configs.clear()
    table = run_search(search, tmp_path / "out", trials=4, objective=trainings)
    assert [*trainings.configs] == ["trial-003", "trial-004"] and len(table) == 4


def test_a_failed_trial_does_not_stop_the_others(searched, tmp_path, monkeypatch):
    trainings = Trainings(tmp_path / "out", lambda name, config: [0.1, 0.2, 0.3])

    def objective(name, config, after_epoch):
        if name == "trial-001":
            raise RunError("exit status 1: the loss is nan")
        if name == "trial-002":
            return float("nan")
        return trainings(name, config, after_epoch)

    table = run_search(searched(), tmp_path / "out", trials=3, objective=objective).set_index("run")
    assert table["status"]["trial-001"] == "exit status 1: the loss is nan"
    assert "has no dice" in table["status"]["trial-002"] and table["status"]["trial-003"] == "finished"
    assert len(run_search(searched(), tmp_path / "out", trials=3, objective=objective)) == 3  # not tried again


def test_a_combination_that_the_config_refuses_fails_without_training(searched, tmp_path):
    search = searched("model.levels: [3, 6]\ndata.input_size: [[32, 32], [64, 64]]\n")
    object.__setattr__(search, "config", lambda values: load_config(None, {"model.filters": 0}))
    trainings = Trainings(tmp_path / "out")
    table = run_search(search, tmp_path / "out", trials=1, objective=trainings)
    assert "model.filters must be" in table["status"].iloc[0] and not trainings.configs


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"text": SPACE.replace("0.1", "0.2")}, "space.training.learning_rate.high was 0.1 and is now 0.2"),
        ({"training__epochs": 4}, "training.epochs was 3 and is now 4"),
        ({"dataset": "another"}, "dataset was 'one' and is now 'another'"),
    ],
)
def test_a_search_with_other_settings_is_refused(searched, tmp_path, refusal, change, expected):
    trainings = Trainings(tmp_path / "out")
    run_search(searched(), tmp_path / "out", trials=1, dataset="one", objective=trainings)
    dataset = change.pop("dataset", "one")
    message = refusal(run_search, searched(**change), tmp_path / "out", trials=2, dataset=dataset, objective=trainings)
    assert expected in message and len(trainings.configs) == 1


def test_a_search_may_continue_with_moved_data(searched, tmp_path):
    trainings = Trainings(tmp_path / "out")
    for k, path in enumerate(("a", "b"), 1):
        search = searched(data__path=path)
        assert len(run_search(search, tmp_path / "out", trials=k, dataset="one", objective=trainings)) == k


@pytest.mark.parametrize("name", ["config.yaml", "grid.csv"])
def test_a_folder_with_a_run_or_a_grid_is_refused(searched, tmp_path, refusal, name):
    (tmp_path / name).touch()
    assert "choose another folder" in refusal(run_search, searched(), tmp_path, trials=1)


def test_a_journal_that_was_cut_while_it_was_written_is_repaired(searched, tmp_path):
    search, trainings, out = searched(), Trainings(tmp_path / "out"), tmp_path / "out"
    run_search(search, out, trials=2, objective=trainings)
    journal = out / "study.journal"
    # A kill within the last line, while Optuna's own lock was held.
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:7])
    os.symlink(journal, out / "study.journal.lock")
    start = time.monotonic()
    table = run_search(search, out, trials=2, objective=trainings)
    assert set(table["status"]) == {"finished"} and time.monotonic() - start < 20
    assert [trial.state.name for trial in trials_in(out)] == ["COMPLETE", "FAIL", "COMPLETE"]


def test_a_damaged_journal_is_reported(searched, tmp_path, refusal):
    run_search(searched(), tmp_path / "out", trials=1, objective=Trainings(tmp_path / "out"))
    journal = tmp_path / "out" / "study.journal"
    journal.write_bytes(b"not JSON\n" + journal.read_bytes())
    message = refusal(run_search, searched(), tmp_path / "out", trials=1)
    assert "study.journal: is damaged" in message


def test_without_optuna_the_command_names_the_extra(searched, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(DependencyError, match=r"pip install 'gitseg-tf\[search\]'"):
        run_search(searched(), tmp_path / "out", trials=1)
    assert not (tmp_path / "out").exists()


def test_pruning_options_need_a_number_of_trials(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["grid", "space.yaml", "--prune-after", "3"])
    assert caught.value.code == 2 and "--prune-after needs --trials" in capsys.readouterr().err


def test_the_printed_table_fits_into_80_columns(searched, tmp_path):
    search, trainings = searched(), Trainings(tmp_path / "out")
    table = run_search(search, tmp_path / "out", trials=12, objective=trainings)
    lines = search_lines(table, search, 80)
    assert max(map(len, lines)) <= 80 and lines[-1] == "... and 2 more"
    text = "\n".join(search_lines(table, search, None))
    assert lines[0].split()[:2] == ["status", "dice"] and "learning_rate" in text and "val_dice" in text
    row = text.splitlines()[1].split()
    assert row[:2] == [table["run"].iloc[0], "finished"] and float(row[2]) == pytest.approx(
        table["dice"].max(), abs=1e-4
    )


def test_an_epoch_is_answered_and_the_end_of_the_search_stops_the_training():
    here, there = socket.socketpair()
    report = EpochReport(there.detach())
    received = []

    def answer():
        received.append(here.recv(100))
        here.sendall(b"+")
        received.append(here.recv(100))
        here.close()

    thread = threading.Thread(target=answer)
    thread.start()
    assert report(1, 0.25) is False and not report.stopped
    assert report(2, float("nan")) is True and report.stopped
    thread.join()
    assert received == [b"1 0.25\n", b"2 nan\n"]
    assert report(3, 0.5) is True


TINY = ["data.input_size=[32, 32]", "model.levels=3", "data.window_slices=1", "data.fold=1", "data.batch_size=8"]
TINY += ["training.precision=float32", "training.strategy=one_device", "evaluation.threshold=0.1"]


@pytest.mark.slow
@pytest.mark.process
def test_a_search_that_is_killed_within_a_trial_is_resumed(tiny_dataset, tmp_path):
    space = "training.learning_rate: [0.02, 0.0]\nmodel.filters: {low: 4, high: 8, step: 4}\n"
    (tmp_path / "space.yaml").write_text(space.replace("0.0]", "1e-7]"))
    command = [sys.executable, "-m", "gitseg_tf", "grid", "space.yaml", "--data", str(tiny_dataset.root)]
    command += ["--epochs", "6", "--trials", "4", "--prune-after", "1"]
    command += [part for key in TINY for part in ("--set", key)]
    out = tmp_path / "runs/space"
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    second = out / "trial-002" / "history.csv"
    deadline = time.monotonic() + 300
    while not second.is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = json.loads((out / "trial-001/evaluation.json").read_text())
    changed = (out / "trial-001/evaluation.json").stat().st_mtime_ns
    parameters = [trial.params for trial in trials_in(out)]
    assert [trial.state.name for trial in trials_in(out)] == ["COMPLETE", "RUNNING"]

    completed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    trials = trials_in(out)
    assert [t.state.name for t in trials][:2] == ["COMPLETE", "FAIL"] and len(trials) == 5
    assert [trials[0].params, trials[2].params] == parameters and trials[2].user_attrs["run"] == "trial-002"
    assert trials[0].value == finished["dice"] and (out / "trial-001/evaluation.json").stat().st_mtime_ns == changed
    table = pd.read_csv(out / "grid.csv").set_index("run")
    assert len(table) == 4 and set(table["status"]) <= {"finished", "pruned"}
    for name, row in table.iterrows():
        epochs = len(pd.read_csv(out / name / "history.csv"))
        assert epochs == row["epochs"] and (out / name / "evaluation.json").is_file() == (row["status"] == "finished")
        assert (epochs == 6) == (row["status"] == "finished")
    pruned = table.index[table["status"] == "pruned"]
    assert len(pruned), "learning rates of 1e-7 cannot keep up"
    assert all("stopped    by the search" in (out / f"{name}.log").read_text() for name in pruned)
    best = load_config(out / "best.yaml")
    assert best.training.learning_rate == 0.02 and best.training.epochs == 6
    assert "train with gitseg train --config runs/space/best.yaml" in completed.stdout
