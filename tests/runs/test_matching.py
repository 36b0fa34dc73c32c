"""A run can be applied only to a dataset that has its labels and channels."""

from types import SimpleNamespace

import pytest

from gitseg_tf.config import load_config
from gitseg_tf.errors import ConfigError
from gitseg_tf.labels import LabelSet
from gitseg_tf.runs.matching import check_matches

RUN = load_config().for_dataset(LabelSet.of("liver", "spleen"), ("t1", "t2"))


def dataset(*labels, channels=("t1", "t2")):
    return SimpleNamespace(root="data/mr", labels=LabelSet.of(*labels), channels=channels, pseudo_line=None)


@pytest.mark.parametrize("labels", [("liver", "spleen"), ("spleen", "liver"), ("aorta", "spleen", "liver")])
def test_labels_are_matched_by_name(labels):
    check_matches(RUN, dataset(*labels))


def test_a_label_missing_from_the_dataset_is_named(refusal):
    message = refusal(check_matches, RUN, dataset("liver", "kidney"))
    assert message == (
        "the run segments liver, spleen; the dataset data/mr has liver, kidney; choose a dataset with spleen"
    )


@pytest.mark.parametrize("channels", [("t1",), ("t2", "t1"), ("t1", "t2", "flair")])
def test_different_channels_are_refused(refusal, channels):
    message = refusal(check_matches, RUN, dataset("liver", "spleen", channels=channels))
    assert message.startswith(f"the run has the input channels t1, t2; the dataset data/mr has {', '.join(channels)}; ")


def test_a_config_without_labels_is_refused():
    with pytest.raises(ConfigError, match="no labels yet"):
        check_matches(load_config(), dataset("liver"))


def test_pseudo_labels_in_the_dataset_are_mentioned(caplog):
    caplog.set_level("INFO", "gitseg_tf")
    labeled = dataset("liver", "spleen")
    labeled.pseudo_line = "3 scans with labels predicted by folds"
    check_matches(RUN, labeled)
    assert caplog.messages == ["pseudo     3 scans with labels predicted by folds"]
