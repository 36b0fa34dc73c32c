"""Plans of a dataset with a stand-in for the measurements, and the cache of real ones."""

import json
import subprocess
import sys

import numpy as np
import pytest

from gitseg_tf.cli import main
from gitseg_tf.config import load_config
from gitseg_tf.planning import plan as planning
from gitseg_tf.planning import probe as probing
from gitseg_tf.planning.candidates import Measurement, candidates, to_measure
from gitseg_tf.planning.fingerprint import take_fingerprint
from gitseg_tf.planning.machine import Machine

MACHINE = Machine("a processor", 2, False, 16.0)
COST = Measurement(0.3, 0.1, 5.0, 0.001, 0.8, 1.4, 64, 32, 9, "2026-01-02")


def instant(dataset, machine, chosen, fold):
    """Measure nothing: every candidate costs the same."""
    return {candidate.name: COST for candidate in chosen}


@pytest.fixture
def quick(monkeypatch):
    """`gitseg plan` on a made-up machine, without measurements."""
    monkeypatch.setattr(planning, "this_machine", lambda: MACHINE)
    make = planning.make_plan
    monkeypatch.setattr(planning, "make_plan", lambda *a, **k: make(*a, **k, measure=instant))


def test_the_same_data_give_the_same_bytes(tiny_dataset):
    texts = {planning.make_plan(tiny_dataset, machine=MACHINE, measure=instant, minutes=3).text for _ in range(2)}
    assert len(texts) == 1
    (text,) = texts
    assert "9 annotated scans of 6 patients" in text


def test_a_plan_is_saved_and_read_as_a_config(tiny_dataset, tmp_path):
    planned = planning.make_plan(tiny_dataset, machine=MACHINE, measure=instant, name="mine", fold=1)
    planned.save(tmp_path / "plan.yaml")
    assert load_config(tmp_path / "plan.yaml") == planned.config
    assert planned.config.data.fold == 1 and planned.config.name == "mine"


def test_a_dataset_with_one_fold_holds_out_none(tiny_cohort, tmp_path):
    from gitseg_tf.data.tfrecords.convert import convert

    dataset = convert(tiny_cohort.root, tmp_path / "one", folds=1, seed=0, workers=1)
    assert planning.make_plan(dataset, machine=MACHINE, measure=instant).config.data.fold is None


@pytest.mark.parametrize(("limit", "value"), [("minutes", 0.0), ("minutes", float("nan")), ("memory_gib", -1.0)])
def test_limits_must_be_positive(tiny_dataset, refusal, limit, value):
    message = refusal(planning.make_plan, tiny_dataset, machine=MACHINE, measure=instant, **{limit: value})
    assert "must be a positive number" in message


def test_the_command_prints_or_writes_the_plan(tiny_dataset, tmp_path, capsys, quick):
    out = tmp_path / "plan.yaml"
    assert main(["plan", str(tiny_dataset.root), "--minutes", "5"]) == 0
    printed = capsys.readouterr().out
    assert main(["plan", str(tiny_dataset.root), "--minutes", "5", "--out", str(out)]) == 0
    assert out.read_text() == printed
    assert f"--config {out}" in capsys.readouterr().out
    assert main(["plan", str(tiny_dataset.root), "--out", str(out)]) == 1
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("limits", "words"),
    [(["--memory", "0.3"], "allow at least"), (["--minutes", "0.01"], "minutes are too short")],
)
def test_impossible_limits_give_one_line_and_status_1(tiny_dataset, capsys, quick, limits, words):
    assert main(["plan", str(tiny_dataset.root), *limits]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gitseg: ")]
    assert len(lines) == 1 and words in lines[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--minutes", "3"], ["--memory", "3", "--config", "cpu"], ["--config", "auto", "--fold", "all"],
        ["--config", "auto", "--strategy", "multiworker"], ["--config", "auto", "--minutes", "-1"],
    ],
)  # fmt: skip
def test_contradicting_options_are_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", *arguments])
    assert caught.value.code == 2


def measured_names(dataset, folder, monkeypatch, answer=COST):
    """The names of the candidates that are measured, instead of taken from the cache."""
    measured = []

    def measure(dataset, candidate, fold, seconds):
        measured.append(candidate.name)
        return answer

    monkeypatch.setattr(probing, "_measure", measure)
    chosen = to_measure(candidates(take_fingerprint(dataset), MACHINE))
    costs = probing.probe(dataset, MACHINE, chosen, 0, folder=folder)
    return measured, costs


def test_measurements_are_kept_for_the_next_plan(tiny_dataset, tmp_path, monkeypatch):
    first, costs = measured_names(tiny_dataset, tmp_path, monkeypatch)
    assert first and not any(cost.cached for cost in costs.values())
    again, cached = measured_names(tiny_dataset, tmp_path, monkeypatch)
    assert again == [] and all(cost.cached and cost.step_seconds == 0.3 for cost in cached.values())
    for path in tmp_path.iterdir():
        path.write_text("{")  # a damaged file is measured again
    assert measured_names(tiny_dataset, tmp_path, monkeypatch)[0] == first


def test_another_machine_is_measured_again(tiny_dataset):
    (one, *_) = to_measure(candidates(take_fingerprint(tiny_dataset), MACHINE))
    other = Machine("another processor", 2, False, 16.0)
    larger = Machine("a processor", 2, False, 64.0)
    key = probing._key(tiny_dataset, MACHINE, one, 0)
    assert key != probing._key(tiny_dataset, other, one, 0) and key == probing._key(tiny_dataset, larger, one, 0)


def test_measuring_ends_when_the_time_is_over(tiny_dataset, tmp_path, monkeypatch, refusal):
    monkeypatch.setattr(probing, "_measure", lambda *arguments: pytest.fail("measured"))
    chosen = to_measure(candidates(take_fingerprint(tiny_dataset), MACHINE))
    message = refusal(probing.probe, tiny_dataset, MACHINE, chosen, 0, seconds=0, folder=tmp_path)
    assert "no network could be measured" in message


@pytest.mark.slow
def test_gitseg_plan_measures_this_machine(tiny_dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "plan.yaml"
    assert main(["plan", str(tiny_dataset.root), "--minutes", "2", "--memory", "8", "--out", str(out)]) == 0
    config = load_config(out)
    (first, *_) = sorted((tmp_path / "cache").rglob("*.json"))
    cost = json.loads(first.read_text())
    assert cost["step_seconds"] > 0 and 0.2 < cost["base_gib"] < cost["peak_gib"] < 8
    assert config.training.epochs >= 1 and "per step of" in out.read_text()
    assert main(["plan", str(tiny_dataset.root), "--minutes", "2", "--memory", "8"]) == 0
    assert "from the cache" in capsys.readouterr().out


@pytest.mark.slow
def test_an_automatic_training_keeps_its_plan(tiny_cohort, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    arguments = ["--data", str(tiny_cohort.root), "--folds", "3", "--out", "run", "--set", "model.filters=4"]
    assert main(["train", "--config", "auto", "--minutes", "0.1", *arguments]) == 0
    run = tmp_path / "run"
    plan, config = (run / "plan.yaml").read_text(), load_config(run / "config.yaml")
    assert plan.startswith("# A plan for 0.1 minutes") and "window_slices: 5" in plan
    assert config.name == "auto" and config.model.filters == 4
    assert config.training.epochs == load_config(run / "plan.yaml").training.epochs
    assert config.provenance["plan"]["minutes"] > 0 and config.provenance["trained_on"]
    assert (run / "evaluation.json").is_file()
    text = capsys.readouterr()
    assert "minutes of training; the plan expected" in text.out + text.err


@pytest.mark.slow
def test_memory_of_the_calling_process_is_not_measured():
    ballast = np.ones(3 * 2**26)  # 1.5 GiB
    code = "from gitseg_tf.planning import measure; print(measure._peak_gib())"
    peak = float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert 0.1 < peak < ballast.nbytes / 2**30
