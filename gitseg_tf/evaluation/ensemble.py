"""Score an ensemble.yaml: out of fold on the dataset of its members, as a whole on another one."""

import logging
from dataclasses import replace
from typing import Any

from gitseg_tf.core.paths import AnyPath
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.errors import RunError
from gitseg_tf.evaluation.cross_validation import score_folds
from gitseg_tf.evaluation.evaluate import evaluate, model_details
from gitseg_tf.evaluation.scope import choose_scope, is_trained_on
from gitseg_tf.inference.predictor import doubtful_augmentation
from gitseg_tf.runs.ensemble import RunEnsemble, load_ensemble
from gitseg_tf.runs.fusion import read_fusion
from gitseg_tf.runs.out_of_fold import fold_ensembles

logger = logging.getLogger(__name__)


def score_ensemble(
    path: str | AnyPath, dataset: Dataset, *, fold: int | None = None, overrides: dict[str, Any] | None = None
) -> tuple[dict, AnyPath]:
    """Score an ensemble.yaml.

    On the dataset of its members, each fold is predicted by the runs that held it out. On another dataset, all runs
    predict each scan.

    Args:
        path: the folder of an ensemble, or its ensemble.yaml.
        dataset: a dataset with annotations.
        fold: the fold to score; None is all folds that the members held out, or all folds of another dataset.
        overrides: dotted keys of the section evaluation, for all runs.

    Returns:
        The content of evaluation.json, and the folder to which it was written.

    Raises:
        RunError: see `load_ensemble`, `fold_ensembles` and `evaluate`; or the members did not hold out the fold.
        DataError: see `evaluate`.
    """
    fusion, ensemble = read_fusion(path), load_ensemble(path, overrides)
    for run in ensemble.runs:
        for line in doubtful_augmentation(run.path, run.config):
            logger.warning("%s", line)
    if not is_trained_on(ensemble, dataset):
        return evaluate(ensemble, dataset, fold), choose_scope(ensemble, dataset, fold).folder
    models = fold_ensembles(fusion, dataset, overrides)
    if fold is not None:
        model = _of_fold(models, fold)
        return evaluate(model, dataset, fold), choose_scope(model, dataset, fold).folder
    if len(models) == 1:
        (model,) = models.values()
        return evaluate(model, dataset), choose_scope(model, dataset).folder
    summary = score_folds(
        models, dataset, ensemble.config,
        folder=ensemble.path, title=f"Ensemble {ensemble.config.name}", details=model_details(ensemble),
    )  # fmt: skip
    return summary, ensemble.path


def _of_fold(models: dict[int, RunEnsemble], fold: int) -> RunEnsemble:
    """Choose the model of a fold; if there are others, the results of one go to a folder of their own."""
    if fold not in models:
        path, listed = next(iter(models.values())).path, ", ".join(map(str, models))
        raise RunError(f"{path}: its members did not all hold out fold {fold}; choose one of {listed}")
    model = models[fold]
    if len(models) == 1:
        return model
    data = model.config.data.model_copy(update={"fold": None})
    return replace(model, config=model.config.model_copy(update={"data": data}))
