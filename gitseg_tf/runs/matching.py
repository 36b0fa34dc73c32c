"""Check that a run can be applied to a dataset."""

from gitseg_tf.config import Config
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.errors import RunError


def check_matches(config: Config, dataset: Dataset) -> None:
    """Check that a dataset has the labels and channels of a run.

    Labels are matched by name or alias, as in `select_labels`: the dataset may have them in another order, and may have
    more.

    Args:
        config: the config of the run.
        dataset: the dataset to which the run is applied.

    Raises:
        RunError: the dataset lacks a label of the run, or has other channels.
    """
    names = config.label_set.names
    missing = [name for name in names if dataset.labels.match(name) is None]
    if missing:
        theirs = f"the dataset {dataset.root} has {', '.join(dataset.labels.names)}"
        fix = f"choose a dataset with {', '.join(missing)}"
        raise RunError(f"the run segments {', '.join(names)}; {theirs}; {fix}")
    if config.channels is not None and config.channels != dataset.channels:
        ours, theirs = ", ".join(config.channels), ", ".join(dataset.channels)
        fix = "choose a dataset with the same channels in the same order"
        raise RunError(f"the run has the input channels {ours}; the dataset {dataset.root} has {theirs}; {fix}")
