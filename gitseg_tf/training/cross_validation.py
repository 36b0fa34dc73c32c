"""Cross-validation: a folder with one run per fold, trained on all other folds. Does not import TensorFlow."""

import logging
import os
import subprocess
import sys

from gitseg_tf.config import Config, save_config
from gitseg_tf.core.locks import LOCK, locked
from gitseg_tf.core.paths import AnyPath, as_path
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.errors import RunError
from gitseg_tf.runs.cross_validation import (
    MARKER,
    CrossValidation,
    cases_by_fold,
    is_cross_validation,
    read_cross_validation,
)
from gitseg_tf.runs.folder import has_begun
from gitseg_tf.runs.initialization import check_all_folds
from gitseg_tf.training.distribute.cluster import has_workers
from gitseg_tf.training.run_folder import check_same_experiment, clear_unbegun, numbered

logger = logging.getLogger(__name__)

_COMPARED = ("data", "augment", "model", "training", "evaluation", "postprocess")


def choose_cross_validation(out: str | AnyPath | None, name: str, *, resume: bool = False) -> AnyPath:
    """Choose the folder of a cross-validation, and check that it is available before any work is done.

    Args:
        out: the folder; None is runs/NAME-folds, numbered like the folders of runs.
        name: name of the config.
        resume: resume an existing cross-validation.

    Returns:
        The folder; nothing has been written yet.

    Raises:
        RunError: the folder contains a cross-validation (without resume), or something else.
    """
    path = as_path(out) if out else numbered(f"{name}-folds", resume=resume)
    if is_cross_validation(path):
        if not resume:
            raise RunError(f"{path}: already contains a cross-validation; resume it or choose another folder")
    elif has_begun(path):
        raise RunError(f"{path}: is a single run, not a cross-validation; choose another folder")
    elif path.exists() and (not path.is_dir() or any(child.name != LOCK for child in path.iterdir())):
        raise RunError(f"{path}: is not empty and is not a cross-validation; choose another folder")
    return path


def train_folds(config: Config, dataset: Dataset, out: str | AnyPath, *, resume: bool = False) -> CrossValidation:
    """Train, score and export a run for each fold, one after the other, each in a separate process.

    With `resume`, finished runs are kept, an interrupted one is resumed, and missing ones are started.

    Args:
        config: the config of all runs; data.fold is ignored.
        dataset: its folds are those of the cross-validation.
        out: the folder, from `choose_cross_validation`.
        resume: continue an interrupted cross-validation.

    Returns:
        The cross-validation; all of its runs are finished.

    Raises:
        RunError: the folder belongs to another experiment or dataset, another process trains in it, this process is one
            of several workers, a fold has no scans, or a run failed, in which case the remaining folds are not trained.
    """
    out = as_path(out)
    if has_workers() or config.training.strategy == "multiworker":
        fix = "train each fold as a separate run, with data.fold 0, 1, ..."
        raise RunError(f"a cross-validation trains on one machine and cannot use several workers; {fix}")
    config = config.for_dataset(dataset.labels, dataset.channels, dataset.intensities)
    cases = _cases(config, dataset)
    if config.model.init is not None and not is_cross_validation(out):
        check_all_folds(config.model.init, cases, dataset.source["fingerprint"])
    wanted = CrossValidation(out, _marker_config(config, dataset, cases), cases)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, wait=resume) as lock:
        if is_cross_validation(out):
            _check_same(read_cross_validation(out), wanted, dataset)
        save_config(wanted.config, out / MARKER)
        left, count = wanted.unfinished(), len(wanted.cases)
        done = f", {count - len(left)} of them already finished" if len(left) < count else ""
        logger.info("folds      %d, one after the other%s, in %s", count, done, out)
        for fold in left:
            run = wanted.run_of(fold)
            logger.info("fold %d/%d   %s, which holds out %s", fold + 1, count, run, ", ".join(wanted.cases[fold]))
            status = _train(wanted, fold, dataset, lock)
            if status:
                how = f"exit status {status}" if status > 0 else f"signal {-status}"
                fix = f"see its output above, then resume the cross-validation in {out}"
                raise RunError(f"{run}: fold {fold} ended with {how}; {fix}")
    return wanted


def _marker_config(config: Config, dataset: Dataset, cases: tuple[tuple[str, ...], ...]) -> Config:
    provenance = {
        "dataset": dataset.source["fingerprint"],
        "records": str(dataset.root.resolve()),
        "folds": list(map(list, cases)),
    }
    data = config.data.model_copy(update={"fold": 0})
    return config.model_copy(update={"data": data, "provenance": provenance})


def _cases(config: Config, dataset: Dataset) -> tuple[tuple[str, ...], ...]:
    """List the patients of each fold; check here, before training, that no fold is without scans."""
    dataset.check_fold(0)
    excluded = config.data.exclude_scans
    for fold in range(dataset.folds):
        if not dataset.scans_of([fold], excluded):
            raise RunError(
                f"{dataset.root}: data.exclude_scans excludes all scans of fold {fold}; keep one in each fold"
            )
    return cases_by_fold(dataset)


def _check_same(before: CrossValidation, wanted: CrossValidation, dataset: Dataset) -> None:
    check_same_experiment(wanted.path, before.config, wanted.config, dataset, sections=_COMPARED)
    if before.cases != wanted.cases:
        cause = f"its folds have different patients from those of {dataset.root}"
        raise RunError(f"{wanted.path}: {cause}; resume with the original dataset or choose another folder")


def _train(wanted: CrossValidation, fold: int, dataset: Dataset, lock: int | None) -> int:
    """Train, score and export a run; return the exit status, negative for a signal."""
    run = wanted.run_of(fold)
    clear_unbegun(run)
    # A new process starts with clean memory and TensorFlow state. It inherits the lock, so that nobody can resume a
    # fold that is still training after this process was killed.
    command = [sys.executable, "-m", "gitseg_tf", "train", "--config", str(wanted.path / MARKER)]
    command += ["--data", str(dataset.root), "--fold", str(fold), "--out", str(run)]
    command += ["--resume"] if has_begun(run) else []
    inherited = () if lock is None else (lock,)
    return subprocess.run(command, pass_fds=inherited, env=os.environ | {"PYTHONUNBUFFERED": "1"}).returncode
