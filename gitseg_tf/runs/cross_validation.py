"""The folder of a cross-validation: one run per fold, each trained on all other folds."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from gitseg_tf.config import Config, load_config
from gitseg_tf.core.paths import AnyPath, as_path
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.errors import RunError

# This file marks the folder; the runs are next to it, in fold0, fold1, ...
MARKER = "cross_validation.yaml"


@dataclass(frozen=True)
class CrossValidation:
    """The contents of cross_validation.yaml.

    Attributes:
        path: the folder.
        config: the config of all runs; its data.fold is meaningless.
        cases: the patients of each fold.
    """

    path: AnyPath
    config: Config
    cases: tuple[tuple[str, ...], ...]

    @property
    def runs(self) -> list[AnyPath]:
        """The folders of all runs by fold, whether or not they exist."""
        return [self.path / f"fold{fold}" for fold in range(len(self.cases))]

    def run_of(self, fold: int) -> AnyPath:
        """Return the folder of the run that holds out a fold.

        Raises:
            RunError: no such fold.
        """
        if not 0 <= fold < len(self.cases):
            raise RunError(f"{self.path}: has folds 0 to {len(self.cases) - 1}, not {fold}; choose one of these")
        return self.runs[fold]

    def unfinished(self) -> list[int]:
        """List the folds whose runs lack epochs, scores or the export."""
        return [fold for fold, run in enumerate(self.runs) if not _is_finished(run, self.config)]


def fold_runs(path: str | AnyPath) -> list[AnyPath]:
    """List the runs of a cross-validation.

    Args:
        path: any folder.

    Returns:
        The existing folders fold0, fold1, ..., in this order; empty if `path` is not a cross-validation.
    """
    path = as_path(path)
    if not is_cross_validation(path):
        return []
    numbers = sorted(int(p.name[4:]) for p in path.iterdir() if p.name.startswith("fold") and p.name[4:].isdecimal())
    return [path / f"fold{number}" for number in numbers]


def is_cross_validation(path: str | AnyPath) -> bool:
    """Check whether a folder contains cross_validation.yaml."""
    return (as_path(path) / MARKER).is_file()


def read_cross_validation(path: str | AnyPath) -> CrossValidation:
    """Read cross_validation.yaml from a folder.

    Raises:
        RunError: the file is damaged.
    """
    path = as_path(path)
    config = load_config(path / MARKER)
    folds = config.provenance.get("folds")
    if not isinstance(folds, list) or len(folds) < 2 or not all(isinstance(cases, list) for cases in folds):
        raise RunError(f"{path / MARKER}: is damaged (provenance.folds lists no patients); restore it or train again")
    return CrossValidation(path, config, tuple(tuple(map(str, cases)) for cases in folds))


def cases_by_fold(dataset: Dataset) -> tuple[tuple[str, ...], ...]:
    """List the patients of each fold of a dataset, sorted."""
    return tuple(tuple(sorted({scan.case for scan in dataset.scans_of([fold])})) for fold in range(dataset.folds))


def _is_finished(run: AnyPath, config: Config) -> bool:
    """Check that the run was fully trained and exported; the export is written after the scores."""
    if not all(path.is_file() for path in (run / "history.csv", run / "evaluation.json")):
        return False
    # The export must not stem from a shorter training.
    return any(_same_end(exported, config) for exported in _exported_configs(run)) and _is_trained(run, config)


def _exported_configs(run: AnyPath) -> Iterator[Config]:
    """Yield the configs of all complete exported versions; version 1 may have been removed."""
    versions = run / "export"
    for version in versions.iterdir() if versions.is_dir() else ():
        config = version / "assets.extra" / "config.yaml"
        # A killed process leaves a folder with another name, or, in a bucket, a folder without the model.
        if version.name.isdigit() and (version / "saved_model.pb").is_file() and config.is_file():
            yield load_config(config)


def _same_end(one: Config, other: Config) -> bool:
    ends = ("epochs", "early_stopping_patience")
    return all(getattr(one.training, key) == getattr(other.training, key) for key in ends)


def _is_trained(run: AnyPath, config: Config) -> bool:
    try:
        history = pd.read_csv(run / "history.csv")
        if len(history) >= config.training.epochs:
            return True
        patience = config.training.early_stopping_patience
        without_gain = history["epochs_without_gain"].iloc[-1] if "epochs_without_gain" in history else 0
        return bool(patience and without_gain >= patience)
    except (ValueError, TypeError, IndexError):
        return False  # opening the run reports the error
