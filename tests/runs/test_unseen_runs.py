"""The runs of an ensemble that were not trained on a patient."""

from pathlib import Path

import pytest
from helpers.configs import tiny_config

from gitseg_tf.runs.ensemble import RunEnsemble, unseen_by
from gitseg_tf.runs.run import Run


def run(name, *trained_on):
    config = tiny_config().model_copy(update={"provenance": {"trained_on": list(trained_on)}})
    return Run(Path(name), config, Path(name) / "weights")


RUNS = (run("a0", "case2"), run("a1", "case1"), run("b0", "case2"), run("b1", "case1"))


def test_each_cross_validation_contributes_the_run_that_held_out_the_patient():
    weights = ((0.3, 0.4, 0.25),) * 2 + ((0.2, 0.1, 0.25),) * 2
    found = unseen_by(RunEnsemble(Path("ensemble"), tiny_config(), RUNS, weights), "case1")
    assert [one.path.name for one in found.runs] == ["a0", "b0"]
    assert found.weights[0] == pytest.approx((0.6, 0.8, 0.5)) and found.weights[1] == pytest.approx((0.4, 0.2, 0.5))


def test_without_weights_the_runs_are_averaged_equally():
    found = unseen_by(RunEnsemble(Path("cv"), tiny_config(), RUNS), "case2")
    assert [one.path.name for one in found.runs] == ["a1", "b1"] and found.weights is None


def test_all_runs_predict_new_patients_and_those_that_all_have_seen():
    ensemble = RunEnsemble(Path("cv"), tiny_config(), RUNS[:1])
    assert unseen_by(ensemble, "case9") == ensemble and unseen_by(ensemble, "case2") == ensemble
