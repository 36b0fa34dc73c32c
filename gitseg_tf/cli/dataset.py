"""Open the dataset and the run that a command works on."""

import logging
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from gitseg_tf.cli.parsers import reading
from gitseg_tf.core.paths import as_path
from gitseg_tf.data.sources import open_dataset
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.errors import ConfigError
from gitseg_tf.phantom.dataset import open_phantom

if TYPE_CHECKING:
    from gitseg_tf.runs.run import Run

logger = logging.getLogger(__name__)


def open_data(path: str | PathLike | None, folds: int, **how: Any) -> Dataset:
    """Open the data given by --data, or the phantom.

    Args:
        path: TFRecords, a cohort, or None for the phantom.
        folds: number of folds by patient if the data has to be converted.
        how: labels, missing and structure_set, for reading a cohort.

    Returns:
        The dataset.
    """
    return open_phantom(folds) if path is None else open_dataset(as_path(path), folds, **how)


def run_and_data(options) -> tuple["Run", Dataset]:
    """Open a run and the dataset to evaluate it on: --data, or the dataset on which it was trained."""
    from gitseg_tf.config import with_overrides
    from gitseg_tf.inference.predictor import doubtful_augmentation
    from gitseg_tf.runs.run import load_run

    run = load_run(options.run_folder)
    run = replace(run, config=with_overrides(run.config, options.tta, run.path))
    for line in doubtful_augmentation(run.path, run.config):
        logger.warning(line)
    data = options.data or run.config.provenance.get("records")
    if data is None:
        raise ConfigError(f"{run.path}: the config does not record the training data; specify it with --data")
    return run, open_data(data, run.config.data.folds, **reading(options))
