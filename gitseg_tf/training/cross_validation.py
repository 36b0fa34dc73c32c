"""A cross-validation: a folder with one run a fold, each trained on all other folds. It needs no TensorFlow itself."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd

from gitseg_tf.config import Config, load_config, save_config
from gitseg_tf.data.dataset import Dataset
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, as_path, remove_tree
from gitseg_tf.locks import LOCK, locked
from gitseg_tf.training.cluster import has_workers
from gitseg_tf.training.run_folder import check_same_experiment, has_begun, numbered

# Marks the folder; fold0, fold1, ... beside it are the runs.
MARKER = "cross_validation.yaml"
_COMPARED = ("data", "augment", "model", "training", "evaluation", "postprocess")


@dataclass(frozen=True)
class CrossValidation:
    """What cross_validation.yaml says.

    Attributes:
        path: the folder.
        config: of all runs; its data.fold says nothing.
        cases: the patients of each fold.
    """

    path: AnyPath
    config: Config
    cases: tuple[tuple[str, ...], ...]

    @property
    def runs(self) -> list[AnyPath]:
        """The folders of all runs, by fold, whether they are there or not."""
        return [self.path / f"fold{fold}" for fold in range(len(self.cases))]

    def run_of(self, fold: int) -> AnyPath:
        """The run that holds a fold out.

        Raises:
            InputError: no such fold.
        """
        if not 0 <= fold < len(self.cases):
            raise InputError(f"{self.path}: has folds 0 to {len(self.cases) - 1}, not {fold}; choose with --fold")
        return self.runs[fold]

    def unfinished(self) -> list[int]:
        """The folds whose runs lack epochs, their scores or their export."""
        return [fold for fold, run in enumerate(self.runs) if not _is_finished(run, self.config)]


def fold_runs(path: str | AnyPath) -> list[AnyPath]:
    """The runs of a cross-validation.

    Args:
        path: any folder.

    Returns:
        The folders fold0, fold1, ... that are there, by fold; none where `path` is no cross-validation.
    """
    path = as_path(path)
    if not is_cross_validation(path):
        return []
    numbers = sorted(int(p.name[4:]) for p in path.iterdir() if p.name.startswith("fold") and p.name[4:].isdecimal())
    return [path / f"fold{number}" for number in numbers]


def is_cross_validation(path: str | AnyPath) -> bool:
    """True for a folder with cross_validation.yaml."""
    return (as_path(path) / MARKER).is_file()


def read_cross_validation(path: str | AnyPath) -> CrossValidation:
    """Read cross_validation.yaml.

    Raises:
        InputError: it is damaged.
    """
    path = as_path(path)
    config = load_config(path / MARKER)
    folds = config.provenance.get("folds")
    if not isinstance(folds, list) or len(folds) < 2 or not all(isinstance(cases, list) for cases in folds):
        raise InputError(f"{path / MARKER}: is damaged (provenance.folds lists no patients); restore it or train anew")
    return CrossValidation(path, config, tuple(tuple(map(str, cases)) for cases in folds))


def cases_by_fold(dataset: Dataset) -> tuple[tuple[str, ...], ...]:
    """The patients of each fold of a dataset, sorted."""
    return tuple(tuple(sorted({scan.case for scan in dataset.scans_of([fold])})) for fold in range(dataset.folds))


def choose_cross_validation(out: str | AnyPath | None, name: str, resume: bool = False) -> AnyPath:
    """Choose the folder of a cross-validation, and refuse one that is taken before anything is done for it.

    Args:
        out: the folder; None is runs/NAME-folds, numbered as those of runs are.
        name: of the config.
        resume: a cross-validation that is there goes on.

    Returns:
        The folder; nothing is written yet.

    Raises:
        InputError: a cross-validation is there already (without resume), or something else.
    """
    path = as_path(out) if out else numbered(f"{name}-folds", resume)
    if is_cross_validation(path):
        if not resume:
            raise InputError(f"{path}: is a cross-validation already; go on with --resume or choose another --out")
    elif has_begun(path):
        raise InputError(f"{path}: is a run of one fold, no cross-validation; choose another --out")
    elif path.exists() and (not path.is_dir() or any(found.name != LOCK for found in path.iterdir())):
        raise InputError(f"{path}: is not empty and no cross-validation; choose another --out")
    return path


def train_folds(
    config: Config, dataset: Dataset, out: str | AnyPath, resume: bool = False, say: Callable[[str], None] = print
) -> CrossValidation:
    """Train, score and export a run for each fold, one after the other, each in a process of its own.

    With `resume`, finished runs are left as they are, an interrupted one goes on, and missing ones are begun.

    Args:
        config: of all runs; data.fold does not count.
        dataset: its folds are those of the cross-validation.
        out: the folder, from `choose_cross_validation`.
        resume: go on with what is there.
        say: takes lines for the user.

    Returns:
        The cross-validation; all of its runs are finished.

    Raises:
        InputError: another experiment or dataset is there, another process trains in the folder, this process is one
            of several workers, a fold has no scans, or a run failed, which ends the others too.
    """
    out = as_path(out)
    if has_workers() or config.training.strategy == "multiworker":
        cure = "train each fold by itself with --fold 0, --fold 1, ..."
        raise InputError(f"--fold all: trains in processes of one machine, not in several workers; {cure}")
    cases = _cases(config, dataset)
    wanted = CrossValidation(out, _marked(config, dataset, cases), cases)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, resume, say) as lock:
        if is_cross_validation(out):
            _check_same(read_cross_validation(out), wanted, dataset)
        save_config(wanted.config, out / MARKER)
        left, count = wanted.unfinished(), len(wanted.cases)
        done = f", {count - len(left)} of them finished already" if len(left) < count else ""
        say(f"folds      {count}, one after the other{done}, in {out}")
        for fold in left:
            run = wanted.run_of(fold)
            say(f"fold {fold + 1}/{count}   {run}, which holds out {', '.join(wanted.cases[fold])}")
            status = _train(wanted, fold, dataset, lock)
            if status:
                how = f"exit status {status}" if status > 0 else f"signal {-status}"
                cure = f"go on with train.py --fold all --resume --out {out}"
                raise InputError(f"{run}: fold {fold} ended with {how}, the reason stands above; {cure}")
    return wanted


def _marked(config: Config, dataset: Dataset, cases: tuple[tuple[str, ...], ...]) -> Config:
    provenance = {
        "dataset": dataset.source["fingerprint"],
        "records": str(dataset.root.resolve()),
        "folds": list(map(list, cases)),
    }
    data = config.data.model_copy(update={"fold": 0})
    return config.model_copy(update={"data": data, "provenance": provenance})


def _cases(config: Config, dataset: Dataset) -> tuple[tuple[str, ...], ...]:
    """The patients of each fold; refuse a fold without scans now, not after the others are trained."""
    dataset.check_fold(0)
    excluded = config.data.exclude_scans
    for fold in range(dataset.folds):
        if not dataset.scans_of([fold], excluded):
            raise InputError(f"{dataset.root}: data.exclude_scans names all scans of fold {fold}; leave one in each")
    return cases_by_fold(dataset)


def _check_same(before: CrossValidation, wanted: CrossValidation, dataset: Dataset) -> None:
    check_same_experiment(wanted.path, before.config, wanted.config, dataset, _COMPARED)
    if before.cases != wanted.cases:
        cause = f"its folds have other patients than those of {dataset.root}"
        raise InputError(f"{wanted.path}: {cause}; resume with the dataset it was begun with or choose another --out")


def _train(wanted: CrossValidation, fold: int, dataset: Dataset, lock: int | None) -> int:
    """The exit status of training, scoring and exporting a run, negative for a signal."""
    run = wanted.run_of(fold)
    _clear_unbegun(run)
    # A process of its own: memory and TensorFlow's state are clean. It holds the lock too, so that nobody resumes what
    # still goes on after this process was killed.
    command = [sys.executable, "-m", "gitseg_tf", "train", "--config", str(wanted.path / MARKER)]
    command += ["--data", str(dataset.root), "--fold", str(fold), "--out", str(run)]
    command += ["--resume"] if has_begun(run) else []
    inherited = () if lock is None else (lock,)
    return subprocess.run(command, pass_fds=inherited, env=os.environ | {"PYTHONUNBUFFERED": "1"}).returncode


def _clear_unbegun(run: AnyPath) -> None:
    """Remove what a process leaves that was killed before the run's config.yaml was there."""
    if run.is_dir() and not has_begun(run):
        files = [path for path in run.glob("**/*") if path.is_file()]
        if all(path.name.startswith(".config.yaml.") for path in files):
            remove_tree(run)


def _is_finished(run: AnyPath, config: Config) -> bool:
    """Trained to the end, and then exported, which comes after the scores."""
    if not all(path.is_file() for path in (run / "history.csv", run / "evaluation.json")):
        return False
    # Not the export of a shorter training that was to be longer.
    return any(_ends_alike(then, config) for then in _exported_configs(run)) and _is_trained(run, config)


def _exported_configs(run: AnyPath) -> Iterator[Config]:
    """Of all versions that are whole: there may be further ones, and the first may have been removed."""
    versions = run / "export"
    for version in versions.iterdir() if versions.is_dir() else ():
        config = version / "assets.extra" / "config.yaml"
        # A process that was killed leaves a folder of another name, or in a bucket one without the model.
        if version.name.isdigit() and (version / "saved_model.pb").is_file() and config.is_file():
            yield load_config(config)


def _ends_alike(one: Config, other: Config) -> bool:
    ends = ("epochs", "early_stopping")
    return all(getattr(one.training, key) == getattr(other.training, key) for key in ends)


def _is_trained(run: AnyPath, config: Config) -> bool:
    try:
        history = pd.read_csv(run / "history.csv")
    except ValueError:
        return False  # the run itself says what is wrong with it
    if len(history) >= config.training.epochs:
        return True
    patience = config.training.early_stopping
    return bool(patience and "epochs_without_gain" in history and history["epochs_without_gain"].iloc[-1] >= patience)
