"""The runs of a cross-validation as one model, which averages their probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gitseg_tf.config import Config, with_overrides
from gitseg_tf.core.paths import AnyPath
from gitseg_tf.errors import RunError
from gitseg_tf.runs.cross_validation import CrossValidation, read_cross_validation
from gitseg_tf.runs.folder import TUNED
from gitseg_tf.runs.run import Run, load_run

_VERSIONS = ("gitseg_tf", "tensorflow", "tf_keras", "python")


@dataclass(frozen=True)
class RunEnsemble:
    """The finished runs of a cross-validation, with the same input, post-processing and test-time augmentation.

    Attributes:
        path: the folder of the cross-validation.
        config: the common config; data.fold is None, and provenance.trained_on lists the patients of all runs.
        runs: one per fold.
    """

    path: AnyPath
    config: Config
    runs: tuple[Run, ...]


def load_ensemble(path: str | AnyPath, overrides: dict[str, Any] | None = None) -> RunEnsemble:
    """Open a cross-validation as a model.

    Args:
        path: the folder of a cross-validation.
        overrides: dotted keys of the section evaluation, for all runs.

    Returns:
        The ensemble.

    Raises:
        RunError: an unfinished fold, an interrupted `tune`, or runs that differ in input, post-processing or test-time
            augmentation.
    """
    folds = read_cross_validation(path)
    if unfinished := folds.unfinished():
        which = f"fold {unfinished[0]} of {len(folds.cases)} is not finished"
        raise RunError(f"{folds.path}: {which}; resume the cross-validation")
    runs = tuple(
        replace(run, config=with_overrides(run.config, overrides or {}, run.path)) for run in load_tuned_runs(folds)
    )
    first = runs[0].config
    for run in runs[1:]:
        _check_alike(folds, runs[0], run)
    known = folds.config.provenance | {key: first.provenance.get(key) for key in _VERSIONS}
    known["trained_on"] = sorted({case for run in runs for case in run.config.provenance.get("trained_on", ())})
    if "tuned" in first.provenance:
        known["tuned"] = first.provenance["tuned"]
    data = first.data.model_copy(update={"fold": None})
    return RunEnsemble(folds.path, first.model_copy(update={"data": data, "provenance": known}), runs)


def check_tuned(folds: CrossValidation) -> None:
    """Check that tuning a cross-validation was not interrupted.

    `tune` writes CV/postprocess.yaml before its copies in the runs, so that a missing copy shows.

    Raises:
        RunError: a run lacks the post-processing of the cross-validation, or was tuned on its own since.
    """
    common = folds.path / TUNED
    if common.is_file():
        content = common.read_bytes()
        for run in folds.runs:
            own = run / TUNED
            if not own.is_file() or own.read_bytes() != content:
                fix = f"run gitseg tune {folds.path} again, or remove {common} to let each run have its own"
                raise RunError(f"{own}: is not the post-processing in {common}, which is for all folds; {fix}")


def load_tuned_runs(folds: CrossValidation) -> list[Run]:
    """Load the runs of a cross-validation, see `check_tuned`."""
    check_tuned(folds)
    return [load_run(path) for path in folds.runs]


def runs_of(model: Run | RunEnsemble) -> Sequence[Run]:
    """List the runs whose probabilities a model averages."""
    return model.runs if isinstance(model, RunEnsemble) else (model,)


def _check_alike(folds: CrossValidation, one: Run, other: Run) -> None:
    def data_of(run: Run) -> Any:
        return run.config.data.model_copy(update={"fold": None, "path": None, "service": None})

    what = next(
        (
            name
            for name, mine, theirs in (
                ("labels", one.config.labels, other.config.labels),
                ("channels", one.config.channels, other.config.channels),
                ("data", data_of(one), data_of(other)),
            )
            if mine != theirs
        ),
        None,
    )
    if what:
        raise RunError(f"{one.path} and {other.path}: their {what} differ; restore the config.yaml of each run")
    for name in ("postprocess", "evaluation"):
        if getattr(one.config, name) != getattr(other.config, name):
            fix = f"run gitseg tune {folds.path}, which chooses the same settings for all folds"
            raise RunError(f"{one.path} and {other.path}: their {name} settings differ; {fix}")
