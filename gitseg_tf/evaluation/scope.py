"""Decide which scans an evaluation scores, and where its results go.

A run's folder holds one evaluation of its own: that of the fold it held out, which the model card quotes. Everything
else, another dataset or another fold, goes to a folder of its own below evaluations/.
"""

import re
from dataclasses import dataclass

from gitseg_tf.core.paths import AnyPath
from gitseg_tf.core.text import plural
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.data.tfrecords.index import ScanEntry
from gitseg_tf.errors import RunError
from gitseg_tf.runs.ensemble import RunEnsemble
from gitseg_tf.runs.initialization import seen_patients
from gitseg_tf.runs.run import Run

FOLDER = "evaluations"
HELD_OUT, OTHER_FOLD, OTHER_DATASET = "held-out fold", "other fold", "other dataset"


@dataclass(frozen=True)
class Scope:
    """What an evaluation scores.

    Attributes:
        kind: HELD_OUT, OTHER_FOLD or OTHER_DATASET.
        folder: the folder for the results: the run's own for HELD_OUT, otherwise RUN/evaluations/NAME-FINGERPRINT, with
            -foldK for a single fold.
        folds: folds of the dataset.
        fold: the number of the only fold, or "all".
        exclude: ids of scans in these folds that are left out.
        scans: the scans to score.
        seen: patients among them on whom the run was trained, sorted. In another dataset, patients with the same id.
    """

    kind: str
    folder: AnyPath
    folds: tuple[int, ...]
    fold: int | str
    exclude: tuple[str, ...]
    scans: tuple[ScanEntry, ...]
    seen: tuple[str, ...]

    @property
    def cases(self) -> list[str]:
        """The patients, sorted."""
        return sorted({scan.case for scan in self.scans})


def choose_scope(model: Run | RunEnsemble, dataset: Dataset, fold: int | None = None) -> Scope:
    """Choose the scans on which a model is scored, and the folder for the results.

    Args:
        model: a trained run, or the runs of a cross-validation.
        dataset: a dataset with annotations.
        fold: the fold to score; None is the one that a run held out, and all folds of a dataset on which the model was
            not trained.

    Returns:
        The scope. data.exclude_scans applies to the dataset of the run only.

    Raises:
        RunError: no fold was held out and none is given, or data.exclude_scans leaves no scan of it.
        DataError: no such fold, or a dataset without annotations.
    """
    config = model.config
    fingerprint = dataset.source["fingerprint"]
    trained_on = seen_patients(config, fingerprint)

    def scope(kind: str, folder: AnyPath, folds: list[int], exclude: tuple[str, ...]) -> Scope:
        scans = tuple(dataset.scans_of(folds, exclude))
        number = folds[0] if fold is not None or kind != OTHER_DATASET else "all"
        seen = tuple(sorted({scan.case for scan in scans} & trained_on))
        return Scope(kind, folder, tuple(folds), number, exclude, scans, seen)

    name = re.sub(r"[^\w.-]+", "_", str(dataset.source["name"])) or "dataset"
    apart = model.path / FOLDER / f"{name}-{fingerprint[:8]}"
    if not is_trained_on(model, dataset):
        dataset.check_fold(fold or 0)
        folds = list(range(dataset.folds)) if fold is None else [fold]
        return scope(OTHER_DATASET, apart if fold is None else _of_fold(apart, fold), folds, ())
    held_out = config.data.fold
    chosen = held_out if fold is None else fold
    if chosen is None:
        raise RunError(f"{model.path}: no fold was held out; choose the fold to score")
    dataset.check_fold(chosen)
    exclude = config.data.exclude_scans
    own = scope(HELD_OUT, model.path, [chosen], exclude)
    if not own.scans:
        raise RunError(f"{model.path}: data.exclude_scans excludes all scans of fold {chosen}; choose another fold")
    # The same cohort may have been converted with other folds.
    if chosen == held_out and not own.seen:
        return own
    return scope(OTHER_FOLD, _of_fold(apart, chosen), [chosen], exclude)


def is_trained_on(model: Run | RunEnsemble, dataset: Dataset) -> bool:
    """Check whether a dataset is the one on which a model was trained, or another conversion of the same cohort."""
    fingerprint = dataset.source["fingerprint"]
    return model.config.provenance.get("dataset", fingerprint) == fingerprint


def seen_line(scope: Scope, dataset: Dataset) -> str | None:
    """Describe the patients on whom the run was trained; None if there are none."""
    if not scope.seen:
        return None
    listed = ", ".join(scope.seen)
    if scope.kind != OTHER_DATASET:
        return f"the run was trained on {listed}: these scores say nothing about new patients"
    count = f"{len(scope.seen)} of {plural(len(scope.cases), 'patient')}"
    return (
        f"{dataset.source['name']}: the run was trained on patients with the ids of {count} ({listed}): if they are "
        "the same people, their scores say nothing about new patients"
    )


def _of_fold(folder: AnyPath, fold: int) -> AnyPath:
    return folder.parent / f"{folder.name}-fold{fold}"
