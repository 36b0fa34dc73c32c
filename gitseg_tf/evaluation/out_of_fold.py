"""Scoring a cross-validation: each scan by the one run that did not train on it."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import tf_keras as keras

from gitseg_tf.config import Config, with_overrides
from gitseg_tf.data.dataset import Dataset
from gitseg_tf.errors import InputError
from gitseg_tf.evaluation.chosen import PictureShelf
from gitseg_tf.evaluation.evaluate import (
    network_details,
    postprocess_details,
    scans_of_fold,
    score_fold,
    summary_of,
    tuned_on_cases,
    write_evaluation,
)
from gitseg_tf.evaluation.reliability import Reliability
from gitseg_tf.evaluation.scores import summarise
from gitseg_tf.files import AnyPath
from gitseg_tf.inference.ensemble import tta_words
from gitseg_tf.inference.predictor import doubtful_augmentation
from gitseg_tf.training.cross_validation import CrossValidation, cases_by_fold, read_cross_validation
from gitseg_tf.training.trainer import Run, load_run


def evaluate_cross_validation(
    path: str | AnyPath,
    dataset: Dataset,
    say: Callable[[str], None] = print,
    overrides: dict[str, Any] | None = None,
) -> dict:
    """Predict and score all scans, and write evaluation.json, evaluation.csv and report.html into the folder.

    All scans are predicted again: what the runs' own evaluations hold may be of other weights or post-processing.

    Args:
        path: the folder of `train_folds`, all of its runs finished.
        dataset: that they were trained on.
        say: takes lines for the user; warnings are where post-processing was tuned on the patients, and where
            test-time augmentation makes what training has not shown.
        overrides: dotted keys of the section evaluation, for all runs.

    Returns:
        What evaluation.json holds: as of `evaluate`, over all patients, with "all" for the fold, and folds, {fold: the
        means of its scans}. The rows of evaluation.csv have a column fold.

    Raises:
        InputError: an unfinished run, another dataset or other folds, runs that were tuned under different test-time
            augmentation, or a damaged shard.
    """
    folds, overrides = read_cross_validation(path), overrides or {}
    runs = [replace(run, config=with_overrides(run.config, overrides, run.path)) for run in _runs(folds, dataset)]
    config = _with_common_tta(folds, with_overrides(folds.config, overrides, folds.path), runs)
    for line in doubtful_augmentation(folds.path, config):
        say(f"warning    {line}")
    tuned_on = [tuned_on_cases(run, list(cases), say) for run, cases in zip(runs, folds.cases, strict=True)]
    cleaning = dict.fromkeys(postprocess_details(run.config, on) for run, on in zip(runs, tuned_on, strict=True))
    counts = [len(scans_of_fold(run, dataset, fold)[1]) for fold, run in enumerate(runs)]
    parts, reliability = [], Reliability()
    with PictureShelf(sum(counts)) as shelf:
        for fold, (run, count) in enumerate(zip(runs, counts, strict=True)):
            say(f"fold {fold + 1}/{len(runs)}   {run.path}")
            keras.backend.clear_session()  # otherwise the networks add up
            parts.append(score_fold(run, dataset, fold, count, shelf, reliability).assign(fold=fold))
        chosen = shelf.chosen()
    rows = pd.concat(parts, ignore_index=True)
    facts = {"fold": "all", "trained_on": [], "tuned_on": sorted(itertools.chain(*tuned_on))}
    summary = summary_of(rows, reliability, dataset, config, facts)
    summary["folds"] = {str(fold): _means(own) for fold, own in rows.groupby("fold")}
    details = {
        **network_details(config),
        "Data": f"{dataset.source['name']}, {len(runs)} folds, each scored by the run that did not train on it",
        "Surface Dice tolerance": f"{config.evaluation.tolerance_mm} mm",
        "Test-time augmentation": tta_words(config),
        "Post-processing": "; ".join(cleaning),
    }
    write_evaluation(folds.path, summary, rows, chosen, None, f"Cross-validation {folds.path.name}", details)
    return summary


def _with_common_tta(folds: CrossValidation, config: Config, runs: list[Run]) -> Config:
    """What is said of all runs has the test-time augmentation that they were tuned under."""
    words = dict.fromkeys(tta_words(run.config) for run in runs)
    if len(words) > 1:
        cure = "name one for all with --tta"
        raise InputError(f"{folds.path}: its runs differ in test-time augmentation ({'; '.join(words)}); {cure}")
    evaluation = config.evaluation.model_copy(update={"tta": runs[0].config.evaluation.tta})
    return config.model_copy(update={"evaluation": evaluation})


def _means(rows: pd.DataFrame) -> dict:
    return {name: value for name, value in summarise(rows).items() if name != "per_scan"}


def _runs(folds: CrossValidation, dataset: Dataset) -> list[Run]:
    """The runs, none of which has seen the patients of its fold."""
    unfinished = folds.unfinished()
    if unfinished:
        which = f"fold {unfinished[0]} of {len(folds.cases)} is not finished"
        raise InputError(f"{folds.path}: {which}; go on with train.py --fold all --resume --out {folds.path}")
    if folds.config.provenance.get("dataset") != dataset.source["fingerprint"]:
        cure = f"score one of its runs on that, such as {folds.runs[0]}"
        raise InputError(f"{folds.path}: was trained on another dataset than {dataset.root}; {cure}")
    if cases_by_fold(dataset) != folds.cases:
        raise InputError(f"{folds.path}: its folds have other patients than those of {dataset.root}; give its own data")
    runs = [load_run(path) for path in folds.runs]
    for fold, run in enumerate(runs):
        seen = sorted(set(folds.cases[fold]) & set(run.config.provenance.get("trained_on", folds.cases[fold])))
        if seen:
            raise InputError(f"{run.path}: was trained on {', '.join(seen)} of fold {fold}; train this fold anew")
    return runs
