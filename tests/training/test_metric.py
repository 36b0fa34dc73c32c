"""Training that is steered by a metric of whole held-out scans (evaluation.metric)."""

import shutil

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from helpers.configs import tiny_config

from gitseg_tf.evaluation.evaluate import evaluate
from gitseg_tf.runs.run import load_run
from gitseg_tf.training.callbacks.early_stopping import EarlyStopping
from gitseg_tf.training.distribute import consistency
from gitseg_tf.training.setup import check_metric
from gitseg_tf.training.trainer import train

SETTINGS = {
    "data__fold": 1,
    "training__epochs": 3,
    "training__learning_rate": 3e-2,
    "training__schedule": "constant",
    "training__warmup": 0.0,
    "evaluation__threshold": 0.2,
    "evaluation__metric": "score",
}


def configured(**changes):
    return tiny_config(**SETTINGS | changes)


@pytest.fixture(scope="module")
def run(tiny_dataset, tmp_path_factory):
    """A run of three epochs by score. Read-only."""
    return train(configured(), tiny_dataset, tmp_path_factory.mktemp("metric") / "run")


def history_of(run):
    return pd.read_csv(run.path / "history.csv")


@pytest.mark.slow
def test_the_score_of_each_epoch_is_that_of_the_evaluation(run, tiny_dataset):
    """The best weights are those of the epoch with the highest score."""
    history = history_of(run)
    assert history["val_score"].nunique() == 3 and history["val_dice"].nunique() == 3
    assert evaluate(run, tiny_dataset)["score"] == pytest.approx(history["val_score"].max(), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["score_volume", "surface_dice"])
def test_other_metrics_are_computed_the_same_way(tiny_dataset, tmp_path, metric):
    run = train(configured(evaluation__metric=metric, training__epochs=1), tiny_dataset, tmp_path / "run")
    (value,) = history_of(run)[f"val_{metric}"]
    assert evaluate(run, tiny_dataset)[metric] == pytest.approx(value, abs=1e-5) and 0 < value < 1


@pytest.mark.slow
def test_a_resumed_run_continues_with_the_best_score_so_far(run, tiny_dataset, tmp_path):
    path = tmp_path / "resumed"
    train(configured(training__epochs=1), tiny_dataset, path)
    resumed = train(configured(), tiny_dataset, path, resume=True)
    expected, found = history_of(run), history_of(resumed)
    assert found["val_score"].tolist() == pytest.approx(expected["val_score"].tolist(), abs=1e-5)
    assert evaluate(resumed, tiny_dataset)["score"] == pytest.approx(expected["val_score"].max(), abs=1e-5)


@pytest.mark.slow
def test_a_run_is_not_resumed_with_another_metric_or_with_other_masks(run, tiny_dataset, tmp_path, refusal):
    path = shutil.copytree(run.path, tmp_path / "copied")
    line = refusal(train, configured(evaluation__metric="dice"), tiny_dataset, path, resume=True)
    assert "evaluation.metric was score and is now dice" in line
    line = refusal(train, configured(evaluation__threshold=0.5), tiny_dataset, path, resume=True)
    assert "evaluation.threshold was 0.2 and is now 0.5" in line
    assert load_run(path).config.evaluation.metric == "score"


@pytest.mark.slow
def test_early_stopping_follows_the_metric(tiny_dataset, tmp_path, caplog):
    caplog.set_level("INFO", "gitseg_tf")
    changes = {"training__early_stopping_patience": 1, "training__learning_rate": 1e-12}
    train(configured(**changes), tiny_dataset, tmp_path / "run")
    assert caplog.messages[-1].startswith("stopped    after epoch 2: val_score has not exceeded the ")


@pytest.mark.slow
def test_replicas_on_several_devices_score_like_one(run, tiny_dataset, tmp_path):
    """One replica of a mirrored strategy: its variables and scope differ from those of a single device."""
    mirrored = train(configured(training__strategy="mirrored", training__epochs=1), tiny_dataset, tmp_path / "mirrored")
    assert history_of(mirrored)["val_score"][0] == pytest.approx(history_of(run)["val_score"][0], abs=1e-3)


def test_early_stopping_compares_the_monitored_metric():
    stopping = EarlyStopping(1, "val_score")
    for epoch, (score, dice) in enumerate([(0.5, 0.1), (0.4, 0.9)]):
        stopping.model = type("Model", (), {"stop_training": False})()
        stopping.on_epoch_end(epoch, {"val_score": score, "val_dice": dice})
    assert stopping.model.stop_training and "val_score has not exceeded the 0.5000 of epoch 1" in stopping.reason(2)


def test_whole_scans_are_refused_on_tpus_in_one_line(monkeypatch, refusal):
    strategy = tf.distribute.get_strategy()
    check_metric(configured(), strategy)
    monkeypatch.setattr(tf.distribute, "TPUStrategy", type(strategy))
    line = refusal(check_metric, configured(), strategy)
    assert line.startswith("evaluation.metric is score: TPUs cannot") and "set it to dice" in line
    check_metric(configured(evaluation__metric="dice"), strategy)
    check_metric(configured(data__fold=None), strategy)


def test_the_terms_of_several_workers_are_added(monkeypatch):
    """Each of two workers has two replicas, which have the same row."""
    monkeypatch.setattr(consistency, "workers_of", lambda strategy: 2)
    rows = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [10, 20, 30, 40], [10, 20, 30, 40]], np.float32)
    monkeypatch.setattr(consistency, "_gathered", lambda strategy, values: rows)
    total = consistency.sum_over_workers(None, np.array([[1.0, 2.0], [3.0, 4.0]]))
    assert total.tolist() == [[11, 22], [33, 44]]


def test_an_unknown_metric_is_refused(refusal):
    assert "did you mean score" in refusal(configured, evaluation__metric="scoer")
