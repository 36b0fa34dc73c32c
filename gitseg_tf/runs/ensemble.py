"""Several runs as one model, which averages their probabilities: a cross-validation, or an ensemble.yaml."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gitseg_tf.config import Config, with_overrides
from gitseg_tf.core.paths import AnyPath
from gitseg_tf.errors import RunError
from gitseg_tf.runs.cross_validation import CrossValidation, is_cross_validation, read_cross_validation
from gitseg_tf.runs.folder import TUNED
from gitseg_tf.runs.fusion import Fusion, is_fusion, normalized_weights, read_fusion
from gitseg_tf.runs.run import Run, load_run

_VERSIONS = ("gitseg_tf", "tensorflow", "tf_keras", "python")


@dataclass(frozen=True)
class RunEnsemble:
    """Finished runs whose probabilities are averaged.

    The runs of a cross-validation have the same input, post-processing and test-time augmentation. The runs of an
    ensemble.yaml only have the same labels and channels: each predicts with its own windows and augmentation.

    Attributes:
        path: the folder of the cross-validation or ensemble.
        config: of the mean: labels, channels, thresholds and post-processing. data.fold is None, unless all runs hold
            out the same fold; provenance.trained_on lists the patients of all runs. For an ensemble.yaml, windows and
            network are those of the first run.
        runs: one per fold, or all runs of the members.
        weights: for an ensemble.yaml, the share of each run in the mean of each label; None averages equally.
    """

    path: AnyPath
    config: Config
    runs: tuple[Run, ...]
    weights: tuple[tuple[float, ...], ...] | None = None


def load_ensemble(path: str | AnyPath, overrides: dict[str, Any] | None = None) -> RunEnsemble:
    """Open a cross-validation or an ensemble.yaml as a model.

    Args:
        path: the folder of a cross-validation or of an ensemble.
        overrides: dotted keys of the sections evaluation and postprocess, for all runs.

    Returns:
        The ensemble.

    Raises:
        RunError: an unfinished fold, an interrupted `tune`, or runs that differ in labels or channels; in a
            cross-validation, also in input, post-processing or test-time augmentation.
    """
    if is_fusion(path):
        fusion = read_fusion(path)
        return fused(fusion, [member_runs(member.path, overrides) for member in fusion.members], overrides)
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


def member_runs(path: AnyPath, overrides: dict[str, Any] | None = None) -> list[Run]:
    """Load the runs of a member of an ensemble: a run, or all runs of a cross-validation.

    Raises:
        RunError: no run, or an unfinished fold.
    """
    paths = [path]
    if is_cross_validation(path):
        folds = read_cross_validation(path)
        if unfinished := folds.unfinished():
            which = f"fold {unfinished[0]} of {len(folds.cases)} is not finished"
            raise RunError(f"{path}: {which}; resume the cross-validation")
        paths = folds.runs
    return [with_settings(load_run(one), overrides) for one in paths]


def with_settings(run: Run, overrides: dict[str, Any] | None) -> Run:
    """Change keys of a run's config, see `load_ensemble`."""
    return replace(run, config=with_overrides(run.config, overrides or {}, run.path))


def fused(fusion: Fusion, members: Sequence[Sequence[Run]], overrides: dict[str, Any] | None = None) -> RunEnsemble:
    """Combine runs as an ensemble.yaml says.

    Args:
        fusion: the file.
        members: the runs of each member, which share its weight equally.
        overrides: as for `load_ensemble`.

    Returns:
        The ensemble; its tolerance, metric and default threshold are those of the first run.

    Raises:
        RunError: runs that differ in labels or channels, or weights of an unknown label.
    """
    runs = [run for of_member in members for run in of_member]
    first = runs[0].config
    for run in runs[1:]:
        for what, mine, theirs in (
            ("labels", first.label_set.names, run.config.label_set.names),
            ("channels", first.channels, run.config.channels),
        ):
            if mine != theirs:
                fix = f"an ensemble needs runs with the same {what}, in the same order"
                raise RunError(f"{runs[0].path} and {run.path}: their {what} differ; {fix}")
    shares = normalized_weights(fusion, first.label_set.names)
    weights = tuple(
        tuple(share / len(of_member) for share in of_labels)
        for of_member, of_labels in zip(members, shares, strict=True)
        for _ in of_member
    )
    fusion.postprocess.check_labels(first.label_set)
    folds, datasets = ({of(run.config) for run in runs} for of in (_fold_of, _dataset_of))
    known = {key: value for key, value in first.provenance.items() if key != "tuned"}
    known["trained_on"] = sorted({case for run in runs for case in run.config.provenance.get("trained_on", ())})
    known["dataset"] = str(datasets.pop()) if len(datasets) == 1 else "several"
    if fusion.tuned is not None:
        known["tuned"] = fusion.tuned
    excluded = sorted({scan for run in runs for scan in run.config.data.exclude_scans})
    data = {"fold": folds.pop() if len(folds) == 1 else None, "exclude_scans": tuple(excluded)}
    # Overrides are checked before the fold is removed, which some settings of training need.
    config = first.model_copy(update={"postprocess": fusion.postprocess})
    config = with_overrides(config, overrides or {}, fusion.file)
    changes = {"name": _name_of(fusion), "provenance": known, "data": first.data.model_copy(update=data)}
    return RunEnsemble(fusion.path, config.model_copy(update=changes), tuple(runs), weights)


def _fold_of(config: Config) -> int | None:
    return config.data.fold


def _dataset_of(config: Config) -> str | None:
    return config.provenance.get("dataset")


def _name_of(fusion: Fusion) -> str:
    name = re.sub(r"[^\w.-]+", "_", fusion.path.resolve().name if isinstance(fusion.path, Path) else fusion.path.name)
    return name if re.match(r"\w", name) else "ensemble"


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


def unseen_by(ensemble: RunEnsemble, case: str) -> RunEnsemble:
    """Restrict an ensemble to the runs that were not trained on a patient, for example to teach another network.

    Args:
        ensemble: from `load_ensemble`.
        case: the patient.

    Returns:
        The ensemble of these runs, or the whole ensemble if all of its runs were trained on the patient. Weights keep
        their ratios: of cross-validations with the same folds, each contributes the run that held out the patient.
    """
    kept = [k for k, run in enumerate(ensemble.runs) if case not in run.config.provenance.get("trained_on", (case,))]
    if not kept:
        return ensemble
    weights = None
    if ensemble.weights is not None:
        sums = [sum(shares) for shares in zip(*(ensemble.weights[k] for k in kept), strict=True)]
        if not all(sums):
            return ensemble
        weights = tuple(
            tuple(share / total for share, total in zip(ensemble.weights[k], sums, strict=True)) for k in kept
        )
    return replace(ensemble, runs=tuple(ensemble.runs[k] for k in kept), weights=weights)


def weights_of(model: Run | RunEnsemble) -> Sequence[tuple[float, ...] | None]:
    """List the weights of the runs of a model, see `runs_of`; None where runs are averaged equally."""
    weights = model.weights if isinstance(model, RunEnsemble) else None
    return [None] * len(runs_of(model)) if weights is None else weights


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
