import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

from gitseg_tf.cli import main
from gitseg_tf.config import load_config, save_config
from gitseg_tf.core.locks import locked
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.errors import GitsegError
from gitseg_tf.evaluation.metrics.scores import summarize
from gitseg_tf.labels import UWMGI
from gitseg_tf.runs.cross_validation import MARKER, fold_runs, read_cross_validation
from gitseg_tf.runs.run import load_run
from gitseg_tf.training import cross_validation
from gitseg_tf.training.cross_validation import choose_cross_validation, train_folds
from gitseg_tf.training.trainer import train

pytestmark = pytest.mark.process

SETTINGS = {
    "name": "tiny",
    "data.input_size": [32, 32],
    "data.window_slices": 1,
    "data.batch_size": 8,
    "model.filters": 4,
    "model.levels": 2,
    "augment.dropout.p": 0.0,
    "training.epochs": 2,
    "training.learning_rate": 3e-2,
    "training.strategy": "one_device",
    "training.precision": "float32",
    "training.deterministic": True,
    "evaluation.threshold": 0.1,
}


def configured(**changes):
    return load_config(None, SETTINGS | {key.replace("__", "."): value for key, value in changes.items()})


# Without TensorFlow: which folds are trained, and errors.


def finish(run, config, epochs=2, exported=None):
    """Write the files of a finished run that a cross-validation checks."""
    (run / "export" / "1" / "assets.extra").mkdir(parents=True, exist_ok=True)
    save_config(config, run / "config.yaml")
    save_config(exported or config, run / "export" / "1" / "assets.extra" / "config.yaml")
    (run / "export" / "1" / "saved_model.pb").touch()
    (run / "evaluation.json").write_text("{}")
    pd.DataFrame({"epoch": range(1, epochs + 1), "epochs_without_gain": range(epochs)}).to_csv(run / "history.csv")


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """The calls of `train` as (fold, whether it resumes); fold `fails` exits with status 1."""
    seen = SimpleNamespace(called=[], fails=None, out=tmp_path / "cv", inherited=[])

    def call(command, pass_fds, env):
        assert command[:6] == [sys.executable, "-m", "gitseg_tf", "train", "--config", str(seen.out / MARKER)]
        fold = int(command[command.index("--fold") + 1])
        run = seen.out / f"fold{fold}"
        assert command[command.index("--out") + 1] == str(run)
        seen.called.append((fold, "--resume" in command))
        seen.inherited += pass_fds
        if fold == seen.fails:
            return SimpleNamespace(returncode=1)
        finish(run, load_config(seen.out / MARKER, {"data.fold": fold}))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(cross_validation.subprocess, "run", call)
    return seen


def test_each_fold_gets_a_run_and_is_logged(commands, tiny_dataset, caplog):
    caplog.set_level("INFO", "gitseg_tf")
    train_folds(configured(), tiny_dataset, commands.out)
    assert commands.called == [(0, False), (1, False), (2, False)]
    assert fold_runs(commands.out) == [commands.out / f"fold{fold}" for fold in range(3)]
    assert caplog.messages[0] == f"folds      3, one after the other, in {commands.out}"
    assert caplog.messages[2].startswith(f"fold 2/3   {commands.out / 'fold1'}, which holds out case")


def test_the_marker_file_records_the_config_and_the_patients_of_each_fold(commands, tiny_dataset):
    commands.fails = 0
    with pytest.raises(GitsegError):
        train_folds(configured(data__fold=2), tiny_dataset, commands.out)
    index = json.loads((tiny_dataset.root / "dataset.json").read_text())["folds"]["cases"]
    folds = read_cross_validation(commands.out)
    assert [set(cases) for cases in folds.cases] == [{c for c, k in index.items() if k == fold} for fold in range(3)]
    assert folds.config.model_copy(update={"provenance": {}}) == configured(data__fold=0).for_dataset(UWMGI, ("image",))


def test_a_failed_fold_stops_the_cross_validation_with_a_one_line_error(commands, tiny_dataset, refusal):
    commands.fails = 1
    message = refusal(train_folds, configured(), tiny_dataset, commands.out)
    assert commands.called == [(0, False), (1, False)]
    assert "fold 1 ended with exit status 1" in message and f"resume the cross-validation in {commands.out}" in message


def test_finished_folds_are_skipped_and_an_interrupted_one_is_resumed(commands, tiny_dataset, refusal, caplog):
    commands.fails = 1
    refusal(train_folds, configured(), tiny_dataset, commands.out)
    (commands.out / "fold1").mkdir()
    save_config(configured(data__fold=1), commands.out / "fold1" / "config.yaml")
    commands.called.clear()
    commands.fails = None
    caplog.set_level("INFO", "gitseg_tf")
    caplog.clear()
    train_folds(configured(), tiny_dataset, commands.out, resume=True)
    assert commands.called == [(1, True), (2, False)] and "1 of them already finished" in caplog.messages[0]
    commands.called.clear()
    assert not train_folds(configured(), tiny_dataset, commands.out, resume=True).unfinished()
    assert commands.called == []


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda run: (run / "evaluation.json").unlink(),
        lambda run: (run / "export/1/assets.extra/config.yaml").unlink(),
        lambda run: (run / "export/1/saved_model.pb").unlink(),  # the last file copied to a bucket
        lambda run: (run / "export/1").rename(run / "export/.1.partial"),  # killed during the export
        lambda run: finish(run, configured(), epochs=1),
        lambda run: (run / "history.csv").write_text(""),
        lambda run: finish(run, configured(), exported=configured(training__epochs=1)),
    ],
)
def test_a_run_is_finished_only_with_all_epochs_scores_and_their_export(commands, tiny_dataset, corrupt):
    folds = train_folds(configured(), tiny_dataset, commands.out)
    assert folds.unfinished() == []
    corrupt(commands.out / "fold2")
    assert folds.unfinished() == [2]


def test_a_later_export_version_counts_as_finished(commands, tiny_dataset):
    folds = train_folds(configured(), tiny_dataset, commands.out)
    shutil.copytree(commands.out / "fold2/export/1", commands.out / "fold2/export/3")
    shutil.rmtree(commands.out / "fold2/export/1")
    assert folds.unfinished() == []
    shutil.rmtree(commands.out / "fold2/export")
    assert folds.unfinished() == [2]


def test_a_run_that_stopped_early_counts_as_finished(commands, tiny_dataset):
    config = configured(training__epochs=9, training__early_stopping_patience=2)
    folds = cross_validation.CrossValidation(commands.out, config, (("case1",), ("case2",)))
    finish(commands.out / "fold0", config, epochs=3)
    finish(commands.out / "fold1", config, epochs=2)
    assert folds.unfinished() == [1]


def test_more_epochs_resume_all_folds(commands, tiny_dataset):
    train_folds(configured(), tiny_dataset, commands.out)
    commands.called.clear()
    train_folds(configured(training__epochs=4), tiny_dataset, commands.out, resume=True)
    assert commands.called == [(0, True), (1, True), (2, True)]


def test_a_fold_killed_before_its_config_was_written_starts_over(commands, tiny_dataset):
    (commands.out / "fold0" / "checkpoints").mkdir(parents=True)
    (commands.out / "fold0" / ".config.yaml.123.tmp").touch()
    (commands.out / "fold1").mkdir()
    (commands.out / "fold1" / "notes.txt").touch()
    train_folds(configured(), tiny_dataset, commands.out, resume=True)
    assert commands.called[0] == (0, False) and not (commands.out / "fold0" / "checkpoints").exists()
    assert (commands.out / "fold1" / "notes.txt").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model__filters": 8}, "model.filters was 4 and is now 8"),
        ({"evaluation__threshold": 0.5}, "evaluation.threshold was 0.1 and is now 0.5"),
        ({"postprocess__stomach__keep_largest_component": True}, "postprocess."),
        ({"seed": 1}, "seed was 0 and is now 1"),
    ],
)
def test_a_different_config_is_refused(commands, tiny_dataset, refusal, changes, expected):
    train_folds(configured(), tiny_dataset, commands.out)
    before = (commands.out / MARKER).read_bytes()
    commands.called.clear()
    assert expected in refusal(train_folds, configured(**changes), tiny_dataset, commands.out, resume=True)
    assert not commands.called and (commands.out / MARKER).read_bytes() == before


def test_a_different_dataset_and_different_folds_are_refused(
    commands, tiny_cohort, make_cohort, tiny_dataset, refusal, tmp_path
):
    train_folds(configured(), tiny_dataset, commands.out)
    two = convert(tiny_cohort.root, tmp_path / "two", folds=2, seed=0, workers=1)
    assert "different patients" in refusal(train_folds, configured(), two, commands.out, resume=True)
    few = make_cohort(tmp_path / "cohort", [(f"case{k}_day0", (40, 64), range(1, 9)) for k in range(3)])
    other = convert(few.root, tmp_path / "other", folds=3, seed=0, workers=1)
    assert "a dataset other than" in refusal(train_folds, configured(), other, commands.out, resume=True)


def test_a_fold_with_all_scans_excluded_is_refused_before_training(commands, tiny_dataset, refusal):
    excluded = [scan.id for scan in tiny_dataset.scans_of([2])]
    message = refusal(train_folds, configured(data__exclude_scans=excluded), tiny_dataset, commands.out)
    assert "all scans of fold 2" in message and not commands.called and not commands.out.exists()


def test_several_workers_are_refused(commands, tiny_dataset, refusal, monkeypatch):
    multi = configured(training__strategy="multiworker")
    assert "cannot use several workers" in refusal(train_folds, multi, tiny_dataset, commands.out)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert "with data.fold 0, 1" in refusal(train_folds, configured(), tiny_dataset, commands.out)
    assert not commands.out.exists()


def test_a_folder_that_is_not_a_cross_validation_is_refused(refusal, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    assert "is not empty and is not a cross-validation" in refusal(choose_cross_validation, tmp_path / "notes", "x")
    (tmp_path / "run").mkdir()
    save_config(configured(), tmp_path / "run" / "config.yaml")
    assert "is a single run" in refusal(choose_cross_validation, tmp_path / "run", "x", resume=True)
    (tmp_path / "cv").mkdir()
    (tmp_path / "cv" / ".lock").touch()  # killed before it had a marker
    assert choose_cross_validation(tmp_path / "cv", "x") == tmp_path / "cv"
    save_config(configured(), tmp_path / "cv" / MARKER)
    assert "already contains a cross-validation; resume it" in refusal(choose_cross_validation, tmp_path / "cv", "x")
    assert choose_cross_validation(tmp_path / "cv", "x", resume=True) == tmp_path / "cv"
    assert "provenance.folds" in refusal(read_cross_validation, tmp_path / "cv")


def test_the_default_folder_is_numbered_and_resume_uses_the_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(choose_cross_validation(None, "x")) == "runs/x-folds"
    (tmp_path / "runs/x-folds").mkdir(parents=True)
    save_config(configured(), tmp_path / "runs/x-folds" / MARKER)
    assert str(choose_cross_validation(None, "x")) == "runs/x-folds-2"
    assert str(choose_cross_validation(None, "x", resume=True)) == "runs/x-folds"


def test_a_fold_subprocess_holds_the_lock_after_its_parent_dies(tiny_dataset, tmp_path):
    """Otherwise a second process could resume the run that the orphan still writes."""
    orphan = tmp_path / "orphan.py"
    orphan.write_text("import time\nprint('training', flush=True)\ntime.sleep(60)\n")
    code = (
        "import subprocess, sys\nfrom gitseg_tf.training import cross_validation as c\n"
        "from gitseg_tf.data.tfrecords.dataset import load_dataset\nfrom gitseg_tf.config import load_config\n"
        "run = subprocess.run\n"
        f"c.subprocess.run = lambda command, **more: run([sys.executable, {str(orphan)!r}], **more)\n"
        f"c.train_folds(load_config(), load_dataset({str(tiny_dataset.root)!r}), {str(tmp_path / 'cv')!r})\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while parent.stdout.readline() != "training\n":
            assert parent.poll() is None
        parent.kill()
        parent.wait()
        with pytest.raises(GitsegError, match="is writing to this folder"), locked(tmp_path / "cv", wait=False):
            pass
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.stdout.close()
    with locked(tmp_path / "cv", wait=True):
        pass


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["train", "--set", "data.fold=all"], 1, "a cross-validation trains all folds in turn"),
        (["train", "--fold", "every"], 2, "must be a number, none or all"),
        (["lr-find", "--fold", "all"], 2, "must be a number or none"),
        (["train", "--fold", "all", "--overfit-batches", "1"], 2, "choose one --fold"),
    ],
)
def test_fold_all_is_accepted_only_by_train(arguments, status, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        ended = main(arguments)
    except SystemExit as stop:
        ended = stop.code
    assert ended == status and expected in capsys.readouterr().err and not list(tmp_path.iterdir())


# With TensorFlow: one real cross-validation, killed in its second fold and resumed.


def history_of(run):
    with open(run / "history.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def killed_when(marker, command, log):
    """Run a command and kill it with its children as soon as a file exists."""
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        deadline = time.monotonic() + 300
        while not marker.is_file():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


@pytest.fixture(scope="module")
def validated(tiny_dataset, tmp_path_factory):
    """A cross-validation that was killed after an epoch of the second fold, and resumed."""
    folder = tmp_path_factory.mktemp("folds")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(configured().model_dump(mode="json")))
    command = [sys.executable, "-m", "gitseg_tf", "train", "--fold", "all", "--out", str(folder / "cv")]
    command += ["--config", str(folder / "tiny.yaml"), "--data", str(tiny_dataset.root)]
    seen = SimpleNamespace(out=folder / "cv", log=folder / "log.txt")
    seen.killed = killed_when(seen.out / "fold1" / "checkpoints" / "state" / "checkpoint", command, seen.log)
    seen.left = {str(p.relative_to(seen.out)): p.stat().st_mtime_ns for p in seen.out.rglob("*") if p.is_file()}
    completed = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=600)
    assert completed.returncode == 0, completed.stderr[-3000:]
    seen.printed = completed.stdout
    return seen


def test_a_killed_cross_validation_resumes_where_it_stopped(validated):
    assert validated.killed == -signal.SIGKILL
    assert "fold0/export/1/saved_model.pb" in validated.left and "fold1/export/1/saved_model.pb" not in validated.left
    assert not [name for name in validated.left if name.startswith("fold2")]
    for name, changed in validated.left.items():
        if name.startswith("fold0/"):
            assert (validated.out / name).stat().st_mtime_ns == changed
    lines = validated.printed.splitlines()
    assert lines[0].startswith("folds      3, one after the other, 1 of them already finished")
    begun = [line.split()[1] for line in lines if "holds out" in line]
    assert begun == ["2/3", "3/3"] and any(line.startswith("resuming") and "fold1" in line for line in lines)


def test_a_resumed_fold_finishes_like_one_trained_alone(validated, tiny_dataset, tmp_path):
    alone = train(configured(data__fold=1), tiny_dataset, tmp_path / "alone")
    assert history_of(validated.out / "fold1") == history_of(alone.path) and len(history_of(alone.path)) == 2
    assert load_run(validated.out / "fold1").config.data.fold == 1


def test_every_scan_is_scored_by_the_run_that_held_it_out(validated, tiny_cohort, tiny_dataset):
    rows = pd.read_csv(validated.out / "evaluation.csv")
    summary = json.loads((validated.out / "evaluation.json").read_text())
    assert sorted(rows["scan"].unique()) == sorted(scan.id for scan in tiny_cohort.scans) and len(rows) == 3 * 9
    for fold, fold_rows in rows.groupby("fold"):
        run = validated.out / f"fold{fold}"
        assert not set(fold_rows["case"]) & set(load_run(run).config.provenance["trained_on"])
        by_run = pd.read_csv(run / "evaluation.csv")
        pd.testing.assert_frame_equal(fold_rows.drop(columns="fold").reset_index(drop=True), by_run)
        alone = json.loads((run / "evaluation.json").read_text())
        assert summary["folds"][str(fold)]["dice"] == pytest.approx(alone["dice"])
    assert rows["dice"].max() > 0.2 and rows.groupby("fold")["dice"].mean().nunique() == 3
    assert summary["fold"] == "all" and summary["cases"] == 6
    assert summary["score"] == pytest.approx(summarize(rows)["score"])
    low, high = summary["intervals"]["score"]
    assert low < summary["score"] < high
    assert "Cross-validation cv" in (validated.out / "report.html").read_text()
    rows = [line.split()[:2] for line in validated.printed.splitlines() if line.split()[:1] == ["fold"]]
    assert rows[-3:] == [["fold", k] for k in "012"]


def test_each_fold_is_a_complete_run(validated):
    for run in fold_runs(validated.out):
        names = ("config.yaml", "history.csv", "evaluation.csv", "report.html", "export/1/saved_model.pb")
        assert [name for name in names if not (run / name).is_file()] == []


@pytest.fixture
def copied(validated, tmp_path):
    return shutil.copytree(validated.out, tmp_path / "cv")


def error_line(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_evaluate_predicts_again_with_the_current_weights(copied, validated, capsys):
    shutil.copy(copied / "fold1/checkpoints/best.weights.h5", copied / "fold0/checkpoints/best.weights.h5")
    assert main(["evaluate", str(copied)]) == 0
    assert "fold 2 " in capsys.readouterr().out
    before, after = (pd.read_csv(path / "evaluation.csv") for path in (validated.out, copied))
    changed = [
        not np.allclose(before[before["fold"] == k]["score"], after[after["fold"] == k]["score"]) for k in range(3)
    ]
    assert changed == [True, False, False]


def test_evaluate_predicts_with_the_requested_augmentation(copied, validated, capsys):
    """Each fold scores like its run alone with that augmentation; the missing flips in training are reported once."""
    save_config(load_config(copied / MARKER, {"augment.flip.p": 0}), copied / MARKER)
    facts = {"provenance": {"tuned": {"fold": 0, "cases": [], "scans": []}}}
    tuned = {"evaluation": {"tta": {"scales": [0.9]}}} | facts
    (copied / "fold0" / "postprocess.yaml").write_text(yaml.safe_dump(tuned))
    line = error_line(capsys, "evaluate", copied)
    assert "differ in test-time augmentation (scale 0.9; none)" in line and "set evaluation.tta" in line
    assert main(["evaluate", str(copied), "--tta", "flip"]) == 0
    printed = capsys.readouterr().err
    assert printed.count("without flips") == 1 and f"warning: {copied}: was trained without flips" in printed
    summary = json.loads((copied / "evaluation.json").read_text())
    assert summary["tta"] == {"flip": True, "scales": []}
    assert "horizontal flip" in (copied / "report.html").read_text()
    rows = pd.read_csv(copied / "evaluation.csv")
    assert main(["evaluate", str(copied), "--fold", "1", "--tta", "flip"]) == 0
    by_run, plain = (pd.read_csv(path / "fold1/evaluation.csv") for path in (copied, validated.out))
    pd.testing.assert_frame_equal(rows[rows["fold"] == 1].drop(columns="fold").reset_index(drop=True), by_run)
    assert not np.allclose(plain["score"], by_run["score"], equal_nan=True)


def test_evaluate_scores_a_single_fold_with_its_run(copied, capsys):
    (copied / "fold1/evaluation.csv").unlink()
    assert main(["evaluate", str(copied), "--fold", "1"]) == 0
    written = pd.read_csv(copied / "fold1/evaluation.csv")
    assert set(written["case"]) == set(read_cross_validation(copied).cases[1])
    assert "has folds 0 to 2, not 3" in error_line(capsys, "evaluate", copied, "--fold", "3")


def test_an_inconsistent_or_incomplete_cross_validation_is_not_scored(copied, tiny_cohort, tmp_path, capsys):
    two = convert(tiny_cohort.root, tmp_path / "two", folds=2, seed=0, workers=1)
    for command in ("evaluate", "tune"):
        assert "different patients" in error_line(capsys, command, copied, "--data", two.root)
    shutil.copy(copied / "fold0/config.yaml", copied / "fold1/config.yaml")
    assert "fold1: was trained on case" in error_line(capsys, "evaluate", copied)
    shutil.rmtree(copied / "fold2")
    line = error_line(capsys, "evaluate", copied)
    assert "fold 2 of 3 is not finished" in line and "resume the cross-validation" in line


def test_a_cross_validation_is_refused_where_a_run_is_expected(copied, capsys):
    assert "is a cross-validation; choose one of its runs" in error_line(capsys, "formats", copied)
    assert "--fold all --resume" in error_line(capsys, "train", "--resume", "--out", copied)
