"""Check that a run can be applied to a dataset."""

import logging

from gitseg_tf.config import Config
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.errors import RunError

logger = logging.getLogger(__name__)


def check_matches(config: Config, dataset: Dataset) -> None:
    """Check that a dataset has the labels and channels of a run.

    Labels are matched by name or alias, as in `select_labels`: the dataset may have them in another order, and may have
    more. Channels are matched by name and order; if either has only default names, as those of PNG and DICOM, by their
    number, which is logged. So is a line on pseudo-labels in the dataset, which are never a reference.

    Args:
        config: the config of the run.
        dataset: the dataset to which the run is applied.

    Raises:
        RunError: the dataset lacks a label of the run, or has other channels.
    """
    if dataset.pseudo_line:
        logger.info("pseudo     %s", dataset.pseudo_line)
    names = config.label_set.names
    if not len(dataset.labels):
        raise RunError(f"the dataset {dataset.root} has no annotations; choose one with {', '.join(names)}")
    missing = [name for name in names if dataset.labels.match(name) is None]
    if missing:
        theirs = f"the dataset {dataset.root} has {', '.join(dataset.labels.names)}"
        fix = f"choose a dataset with {', '.join(missing)}"
        raise RunError(f"the run segments {', '.join(names)}; {theirs}; {fix}")
    if config.channels is None or config.channels == dataset.channels:
        return
    unnamed = any(_are_default(channels) for channels in (config.channels, dataset.channels))
    if unnamed and len(config.channels) == len(dataset.channels):
        ours, theirs = ", ".join(config.channels), ", ".join(dataset.channels)
        logger.info("channels   the dataset's %s is taken as the run's %s", theirs, ours)
    else:
        ours, theirs = ", ".join(config.channels), ", ".join(dataset.channels)
        fix = "choose a dataset with the same channels in the same order"
        raise RunError(f"the run has the input channels {ours}; the dataset {dataset.root} has {theirs}; {fix}")


def _are_default(channels: tuple[str, ...]) -> bool:
    """Check whether channels have the names that readers give to channels without a name."""
    return channels in (("image",), tuple(f"channel{c}" for c in range(len(channels))))
