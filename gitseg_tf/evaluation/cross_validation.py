"""Score a cross-validation: each scan is scored by the one run that was not trained on it."""

import itertools
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import tf_keras as keras

from gitseg_tf.config import Config, with_overrides
from gitseg_tf.core.paths import AnyPath
from gitseg_tf.core.text import plural
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.errors import RunError
from gitseg_tf.evaluation.calibration import Reliability
from gitseg_tf.evaluation.evaluate import (
    evaluate,
    network_details,
    postprocess_details,
    postprocess_facts,
    scans_of_fold,
    score_fold,
    summary_of,
    tuned_on_cases,
    write_evaluation,
)
from gitseg_tf.evaluation.metrics.scores import summarize
from gitseg_tf.evaluation.report.selection import PictureShelf
from gitseg_tf.evaluation.scope import HELD_OUT, choose_scope
from gitseg_tf.inference.ensemble import tta_words
from gitseg_tf.inference.predictor import doubtful_augmentation
from gitseg_tf.runs.cross_validation import CrossValidation, cases_by_fold, read_cross_validation
from gitseg_tf.runs.ensemble import RunEnsemble, load_ensemble, load_tuned_runs
from gitseg_tf.runs.matching import check_matches
from gitseg_tf.runs.run import Run, load_run

logger = logging.getLogger(__name__)


def score_cross_validation(
    path: str | AnyPath, dataset: Dataset, *, overrides: dict[str, Any] | None = None
) -> tuple[dict, AnyPath]:
    """Score a cross-validation: out of fold on its own dataset, as an ensemble of all its runs on another one.

    Args:
        path: the folder of `train_folds`; all of its runs must be finished.
        dataset: a dataset with annotations.
        overrides: dotted keys of the section evaluation, for all runs.

    Returns:
        The content of evaluation.json, and the folder to which it was written.

    Raises:
        RunError: see `evaluate_cross_validation`, `load_ensemble` and `evaluate`.
        DataError: see `evaluate`.
    """
    folds = read_cross_validation(path)
    if folds.config.provenance.get("dataset") == dataset.source["fingerprint"]:
        return evaluate_cross_validation(path, dataset, overrides=overrides), folds.path
    ensemble = load_ensemble(path, overrides)
    for line in doubtful_augmentation(folds.path, ensemble.config):
        logger.warning("%s", line)
    logger.info("ensemble   mean of the %d runs of %s", len(ensemble.runs), folds.path)
    return evaluate(ensemble, dataset), choose_scope(ensemble, dataset).folder


def evaluate_cross_validation(
    path: str | AnyPath,
    dataset: Dataset,
    *,
    overrides: dict[str, Any] | None = None,
) -> dict:
    """Predict and score all scans, and write evaluation.json, evaluation.csv and report.html into the folder.

    All scans are predicted again, because the runs' existing evaluations may stem from other weights or
    post-processing. Logs warnings if post-processing was tuned on the patients, or if test-time augmentation exceeds
    that of training.

    Args:
        path: the folder of `train_folds`; all of its runs must be finished.
        dataset: the dataset on which they were trained.
        overrides: dotted keys of the section evaluation, for all runs.

    Returns:
        The content of evaluation.json: as for `evaluate`, over all patients, with fold "all", and folds, {fold: the
        means of its scans}. The rows of evaluation.csv have a column fold.

    Raises:
        RunError: an unfinished run, another dataset, other labels, channels or folds, runs that were tuned with
            different test-time augmentation, or a damaged shard.
    """
    folds, overrides = read_cross_validation(path), overrides or {}
    runs = [
        replace(run, config=with_overrides(run.config, overrides, run.path)) for run in finished_runs(folds, dataset)
    ]
    config = common_tta(folds, with_overrides(folds.config, overrides, folds.path), runs)
    for line in doubtful_augmentation(folds.path, config):
        logger.warning("%s", line)
    details = network_details(config) | {"Test-time augmentation": tta_words(config)}
    return score_folds(
        dict(enumerate(runs)), dataset, config,
        folder=folds.path, title=f"Cross-validation {folds.path.name}", details=details,
    )  # fmt: skip


def score_folds(
    models: Mapping[int, Run | RunEnsemble],
    dataset: Dataset,
    config: Config,
    *,
    folder: AnyPath,
    title: str,
    details: dict[str, str],
) -> dict:
    """Predict and score each fold with its model, and write the evaluation of all of them into a folder.

    Args:
        models: {fold: the model that was not trained on it}.
        dataset: the dataset of the folds.
        config: the common config of the models.
        folder: the folder for evaluation.json, evaluation.csv and report.html.
        title: the title of the report.
        details: facts for the report in addition to those of the data.

    Returns:
        The content of evaluation.json, see `evaluate_cross_validation`.

    Raises:
        RunError: a damaged shard.
    """
    cases, runs = cases_by_fold(dataset), list(models.values())
    tuned_on = [tuned_on_cases(run, list(cases[fold])) for fold, run in models.items()]
    cleaning = dict.fromkeys(postprocess_details(run.config, on) for run, on in zip(runs, tuned_on, strict=True))
    counts = [len(scans_of_fold(run, dataset, fold)[1]) for fold, run in models.items()]
    parts, reliability = [], Reliability(config.label_set)
    with PictureShelf(sum(counts)) as shelf:
        for (fold, run), count in zip(models.items(), counts, strict=True):
            logger.info("fold %d/%d   %s", fold + 1, dataset.folds, run.path)
            keras.backend.clear_session()  # frees the memory of the previous network
            rows = score_fold(run, dataset, fold, count=count, shelf=shelf, reliability=reliability)
            parts.append(rows.assign(fold=fold))
        chosen = shelf.chosen()
    rows = pd.concat(parts, ignore_index=True)
    facts = {"fold": "all", "scope": HELD_OUT, "trained_on": [], "tuned_on": sorted(itertools.chain(*tuned_on))}
    summary = summary_of(rows, reliability=reliability, dataset=dataset, config=config, facts=facts)
    settings = [postprocess_facts(run.config) for run in runs]
    summary["postprocess"] = settings[0] if all(one == settings[0] for one in settings) else None
    summary["folds"] = {str(fold): _means(group) for fold, group in rows.groupby("fold")}
    details |= {
        "Data": f"{dataset.source['name']}, {plural(len(runs), 'fold')}, "
        "each scored by the run that was not trained on it",
        "Surface Dice tolerance": f"{config.evaluation.tolerance_mm} mm",
        "Post-processing": "; ".join(cleaning),
    }
    write_evaluation(
        folder, summary, rows, labels=config.label_set, chosen=chosen, curves=None, title=title, details=details
    )
    return summary


def common_tta(folds: CrossValidation, config: Config, runs: list[Run]) -> Config:
    """Set the test-time augmentation with which all runs were tuned in the common config.

    Raises:
        RunError: the runs differ in test-time augmentation.
    """
    words = dict.fromkeys(tta_words(run.config) for run in runs)
    if len(words) > 1:
        fix = "set evaluation.tta for all of them"
        raise RunError(f"{folds.path}: its runs differ in test-time augmentation ({'; '.join(words)}); {fix}")
    evaluation = config.evaluation.model_copy(update={"tta": runs[0].config.evaluation.tta})
    return config.model_copy(update={"evaluation": evaluation})


def _means(rows: pd.DataFrame) -> dict:
    return {name: value for name, value in summarize(rows).items() if name != "per_scan"}


def finished_runs(folds: CrossValidation, dataset: Dataset, *, tuned: bool = True) -> list[Run]:
    """Load the runs of a cross-validation, and check that none of them was trained on the patients of its fold.

    Args:
        folds: the cross-validation.
        dataset: the dataset on which it was trained.
        tuned: also check that tuning it was not interrupted.

    Raises:
        RunError: see `evaluate_cross_validation` and `load_tuned_runs`.
    """
    unfinished = folds.unfinished()
    if unfinished:
        which = f"fold {unfinished[0]} of {len(folds.cases)} is not finished"
        raise RunError(f"{folds.path}: {which}; resume the cross-validation")
    if folds.config.provenance.get("dataset") != dataset.source["fingerprint"]:
        fix = "score it as an ensemble with score_cross_validation"
        raise RunError(f"{folds.path}: was trained on a dataset other than {dataset.root}; {fix}")
    check_matches(folds.config, dataset)
    if cases_by_fold(dataset) != folds.cases:
        raise RunError(
            f"{folds.path}: its folds have different patients from those of {dataset.root}; use the original dataset"
        )
    runs = load_tuned_runs(folds) if tuned else [load_run(path) for path in folds.runs]
    for fold, run in enumerate(runs):
        seen = sorted(set(folds.cases[fold]) & set(run.config.provenance.get("trained_on", folds.cases[fold])))
        if seen:
            raise RunError(f"{run.path}: was trained on {', '.join(seen)} of fold {fold}; train this fold again")
    return runs
