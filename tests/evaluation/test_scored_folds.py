"""Which datasets a cross-validation is scored on; tests/training/test_train_folds.py scores one."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from helpers.configs import tiny_config

from gitseg_tf.evaluation import cross_validation
from gitseg_tf.labels import UWMGI
from gitseg_tf.runs.cross_validation import cases_by_fold


@pytest.fixture
def trained(tiny_dataset, monkeypatch, tmp_path):
    """The folder of a finished cross-validation of the synthetic dataset."""
    config = tiny_config().model_copy(update={"provenance": {"dataset": tiny_dataset.source["fingerprint"]}})
    folds = SimpleNamespace(
        path=tmp_path, config=config, cases=cases_by_fold(tiny_dataset), runs=[tmp_path / "fold0"], unfinished=list
    )
    monkeypatch.setattr(cross_validation, "read_cross_validation", lambda path: folds)
    return tmp_path


def test_a_dataset_without_a_label_of_the_runs_or_with_other_channels_is_refused(trained, tiny_dataset, refusal):
    score = cross_validation.evaluate_cross_validation
    fewer = replace(tiny_dataset, labels=UWMGI.subset(["stomach", "large_bowel"]))
    assert "choose a dataset with small_bowel" in refusal(score, trained, fewer)
    assert "has the input channels image" in refusal(score, trained, replace(tiny_dataset, channels=("t1", "t2")))


def test_a_different_dataset_is_refused(trained, tiny_dataset, refusal):
    other = replace(tiny_dataset, source=tiny_dataset.source | {"fingerprint": "other"})
    assert "was trained on a dataset other than" in refusal(cross_validation.evaluate_cross_validation, trained, other)
