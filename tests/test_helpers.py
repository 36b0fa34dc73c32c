"""The helpers that other tests rely on."""

from pathlib import Path

from helpers.configs import tiny_config

from gitseg_tf.labels import UWMGI, LabelSet


def test_tiny_config_has_labels_and_channels_and_accepts_changes():
    config = tiny_config(training__epochs=2, data__window_slices=1)
    assert (config.label_set, config.channels) == (UWMGI, ("image",))
    assert (config.training.epochs, config.data.window_slices, config.model.filters) == (2, 1, 4)
    assert tiny_config(LabelSet.of("liver"), ("ct", "pet")).channels == ("ct", "pet")


def test_no_two_test_files_have_the_same_name():
    """Without packages, pytest imports test files by their base names and fails on duplicates."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
