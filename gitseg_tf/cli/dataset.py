"""Open the dataset and the run that a command works on."""

import logging
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from gitseg_tf.cli.parsers import reading
from gitseg_tf.core.paths import as_path
from gitseg_tf.data.sources import open_dataset
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.data.tfrecords.fold_table import Folds
from gitseg_tf.errors import ConfigError
from gitseg_tf.phantom.dataset import open_phantom

if TYPE_CHECKING:
    from gitseg_tf.config import Config
    from gitseg_tf.runs.run import Run

logger = logging.getLogger(__name__)


def open_data(path: str | PathLike | None, folds: Folds, **how: Any) -> Dataset:
    """Open the data given by --data, or the phantom.

    Args:
        path: TFRecords, a cohort, or None for the phantom.
        folds: number of folds by patient if the data has to be converted, or a table, see `open_dataset`.
        how: labels, missing and structure_set, for reading a cohort.

    Returns:
        The dataset.

    Raises:
        ConfigError: a table of folds for the phantom.
    """
    if path is not None:
        return open_dataset(as_path(path), folds, **how)
    if not isinstance(folds, int):
        raise ConfigError(f"{folds}: a table of folds needs the data of its patients; specify it with --data")
    return open_phantom(folds)


def open_experiment(config: "Config", options) -> tuple["Config", Dataset]:
    """Open the data of a training command, with the folds given by --folds.

    Args:
        config: the config, whose data.path and data.folds apply unless the options say otherwise.
        options: parsed options with folds, labels and missing.

    Returns:
        The config and the dataset. With a table of folds, data.path of the config is the converted dataset, so that
        whoever reads the config gets the same folds.
    """
    folds = config.data.folds if options.folds is None or isinstance(options.folds, int) else options.folds
    dataset = open_data(config.data.path, folds, **reading(options))
    if not isinstance(folds, int):
        data = config.data.model_copy(update={"path": str(dataset.root.resolve()), "folds": min(dataset.folds, 100)})
        config = config.model_copy(update={"data": data})
    return config, dataset


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
