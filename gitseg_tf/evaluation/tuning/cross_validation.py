"""Tune the post-processing of a cross-validation out of fold: each scan is predicted by the run that held it out."""

import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import tf_keras as keras

from gitseg_tf.config import with_overrides
from gitseg_tf.config.evaluation import METRICS
from gitseg_tf.config.postprocess import PostprocessConfig
from gitseg_tf.core.locks import locked
from gitseg_tf.core.paths import AnyPath, write_atomically
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.data.tfrecords.index import ScanEntry
from gitseg_tf.evaluation.cross_validation import common_tta, finished_runs
from gitseg_tf.evaluation.evaluate import scans_of_fold
from gitseg_tf.evaluation.tuning.search import PairScores, Step
from gitseg_tf.evaluation.tuning.tune import check_unseen, predict_pairs, search_settings, stale_export
from gitseg_tf.inference.predictor import doubtful_augmentation
from gitseg_tf.runs.cross_validation import read_cross_validation
from gitseg_tf.runs.folder import TUNED

logger = logging.getLogger(__name__)


def tune_cross_validation(
    path: str | AnyPath,
    dataset: Dataset,
    *,
    overrides: dict[str, Any] | None = None,
    metric: str | None = None,
    dry_run: bool = False,
) -> tuple[PostprocessConfig, list[Step]]:
    """Search for the settings with the highest out-of-fold metric, and save the same ones with every run.

    Nothing is written before the search is done. Then CV/postprocess.yaml is written, and its copies in the runs; if
    that is interrupted, all commands that use the cross-validation as a whole refuse it until it is tuned again.

    Args:
        path: the folder of `train_folds`; all of its runs must be finished.
        dataset: the dataset on which they were trained.
        overrides: dotted keys of the section evaluation, for all runs.
        metric: a name in `config.evaluation.METRICS`; None is the evaluation.metric of the config.
        dry_run: do not write anything.

    Returns:
        The best section `postprocess`, and the adopted steps. The score after the last one is that of
        `evaluate_cross_validation`.

    Raises:
        RunError: an unfinished run, another dataset, other labels, channels or folds, runs that were tuned with
            different test-time augmentation, no contours, or a damaged shard.
        ConfigError: no such metric.
    """
    if metric is not None:
        METRICS.check(metric)
    folds, overrides = read_cross_validation(path), overrides or {}
    runs = [
        replace(run, config=with_overrides(run.config, overrides, run.path))
        for run in finished_runs(folds, dataset, tuned=False)
    ]
    config = common_tta(folds, with_overrides(folds.config, overrides, folds.path), runs)
    for line in doubtful_augmentation(folds.path, config):
        logger.warning("%s", line)
    scans_of = [scans_of_fold(run, dataset, fold)[1] for fold, run in enumerate(runs)]
    scans: list[ScanEntry] = [scan for scans in scans_of for scan in scans]
    with tempfile.TemporaryDirectory(prefix="gitseg-tune-") as folder:
        pairs = PairScores.of_config(Path(folder), config, metric)
        for fold, run in enumerate(runs):
            check_unseen(run, sorted({scan.case for scan in scans_of[fold]}), fold)
            logger.info("fold %d/%d   %s", fold + 1, len(runs), run.path)
            keras.backend.clear_session()  # frees the memory of the previous network
            predict_pairs(run, dataset, fold, len(scans_of[fold]), pairs)
        tuning = search_settings(config, dataset, "all", scans, pairs)
    if dry_run:
        logger.info("saved      nothing, because this is a dry run")
        return tuning.settings, tuning.steps
    with locked(folds.path, wait=False):
        for target in (folds.path, *folds.runs):
            write_atomically(target / TUNED, tuning.content)
    logger.info("saved      %s, and in each run%s", folds.path / TUNED, tuning.with_tta)
    for target in (folds.path, *folds.runs):
        for line in stale_export(target, tuning):
            logger.info(line)
    return tuning.settings, tuning.steps
