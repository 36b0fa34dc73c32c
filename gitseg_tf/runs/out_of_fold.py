"""An ensemble.yaml on the dataset of its members: each fold is predicted by the runs that held it out."""

from typing import Any

from gitseg_tf.core.paths import AnyPath
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.errors import RunError
from gitseg_tf.runs.cross_validation import cases_by_fold, is_cross_validation, read_cross_validation
from gitseg_tf.runs.ensemble import RunEnsemble, fused, member_runs
from gitseg_tf.runs.fusion import Fusion
from gitseg_tf.runs.run import Run


def fold_ensembles(fusion: Fusion, dataset: Dataset, overrides: dict[str, Any] | None = None) -> dict[int, RunEnsemble]:
    """Choose the runs that may predict each fold.

    A cross-validation contributes the run of a fold, and a single run counts only for the fold that it held out.

    Args:
        fusion: the ensemble.
        dataset: the dataset on which all of its members were trained.
        overrides: dotted keys of the sections evaluation and postprocess, for all runs.

    Returns:
        {fold: the ensemble of one run per member}, for all folds that each member held out.

    Raises:
        RunError: an unfinished fold, a member of another dataset, members without a common held-out fold, or a run that
            was trained on a patient of its fold.
    """
    held_out = [_runs_by_fold(member.path, dataset, overrides) for member in fusion.members]
    folds = sorted(set.intersection(*(set(runs) for runs in held_out)))
    if not folds:
        listed = "; ".join(
            f"{member.path}: {', '.join(map(str, sorted(runs)))}"
            for member, runs in zip(fusion.members, held_out, strict=True)
        )
        raise RunError(f"{fusion.path}: its members have no held-out fold in common ({listed}); train the same folds")
    return {fold: fused(fusion, [[runs[fold]] for runs in held_out], overrides) for fold in folds}


def _runs_by_fold(path: AnyPath, dataset: Dataset, overrides: dict[str, Any] | None) -> dict[int, Run]:
    cases = cases_by_fold(dataset)
    runs = member_runs(path, overrides)
    if is_cross_validation(path):
        if read_cross_validation(path).cases != cases:
            raise RunError(
                f"{path}: its folds have different patients from those of {dataset.root}; use the original dataset"
            )
        by_fold = dict(enumerate(runs))
    else:
        (run,) = runs
        fold = run.config.data.fold
        if fold is None or fold >= dataset.folds:
            raise RunError(f"{path}: held out no fold of {dataset.root}; train it with the folds of the other members")
        by_fold = {fold: run}
    for fold, run in by_fold.items():
        known = run.config.provenance
        if known.get("dataset") != dataset.source["fingerprint"]:
            raise RunError(f"{run.path}: was trained on a dataset other than {dataset.root}; use the original dataset")
        seen = sorted(set(cases[fold]) & set(known.get("trained_on", cases[fold])))
        if seen:
            raise RunError(f"{run.path}: was trained on {', '.join(seen)} of fold {fold}; train this fold again")
    return by_fold
