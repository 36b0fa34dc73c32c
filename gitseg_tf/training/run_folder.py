"""The folder of a run during training: choose it, and check its existing content."""

import logging
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gitseg_tf import __version__
from gitseg_tf.config import Config, load_config, save_config
from gitseg_tf.core.paths import AnyPath, as_path, remove_tree
from gitseg_tf.core.text import plural
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.data.tfrecords.teacher import learns_from_teacher, training_scans
from gitseg_tf.errors import RunError
from gitseg_tf.runs.folder import PLAN, TUNED, has_begun, read_history
from gitseg_tf.runs.training_data import summarize_scans, write_training_data
from gitseg_tf.training.distribute.cluster import has_workers

logger = logging.getLogger(__name__)

# The keys that may change when a run is resumed, by section.
MAY_CHANGE = {
    "data": {"path", "service"},
    "training": {"epochs", "strategy", "early_stopping_patience", "checkpoint_minutes", "wandb"},
}


def choose_run(out: str | AnyPath | None, name: str, *, resume: bool = False) -> AnyPath:
    """Choose the folder of a run, and check that it is available before any work is done.

    Args:
        out: the folder; None is runs/NAME, or if that exists runs/NAME-2, ...: the next number for a new run, the last
            existing one for a resumed run.
        name: name of the config.
        resume: resume an existing run.

    Returns:
        The folder; nothing has been written yet.

    Raises:
        RunError: the folder contains a run (without resume), or something else.
    """
    run = as_path(out) if out else numbered(name, resume=resume)
    # With several workers, the chief may just have created the folder; it checks the folder in `open_run`.
    if not has_workers():
        check_run_folder(run, resume=resume)
    return run


def check_run_folder(run: AnyPath, *, resume: bool) -> None:
    """Check that a folder is empty or missing, or, with resume, a run.

    Raises:
        RunError: the folder contains a run (without resume), or something else.
    """
    if has_begun(run):
        if not resume:
            raise RunError(f"{run}: already contains a run; resume it or choose another run folder")
    elif run.exists() and (not run.is_dir() or any(path.name != PLAN for path in run.iterdir())):
        raise RunError(f"{run}: is not empty and is not a run; choose another run folder")


def clear_unbegun(run: AnyPath) -> None:
    """Remove what a process that was killed before it wrote the run's config.yaml has left."""
    if run.is_dir() and not has_begun(run):
        files = [path for path in run.glob("**/*") if path.is_file()]
        if all(path.name.startswith(".config.yaml.") for path in files):
            remove_tree(run)


def open_run(
    run: AnyPath, config: Config, dataset: Dataset, *, resume: bool, init: dict[str, Any] | None = None
) -> None:
    """Create the run's folder, or check that it contains a run of the same experiment; describe the run in it.

    Writes config.yaml and training_data.json, and warns about labels without a voxel in the training data.

    Args:
        run: the folder.
        config, dataset: the experiment, prepared for the dataset.
        resume: whether the folder may contain a run.
        init: what the config records about the network that the run starts from; a resumed run keeps its record.

    Raises:
        RunError: see `check_run_folder`; or the run belongs to another experiment or dataset.
    """
    import tensorflow as tf
    import tf_keras as keras

    check_run_folder(run, resume=resume)
    _, scans, _ = training_scans(dataset, config)
    teacher = _teacher_facts(dataset, config)
    trained_on = sorted({scan.case for scan in scans})
    if has_begun(run):
        before = load_config(run / "config.yaml")
        check_same_experiment(run, before, config, dataset)
        if before.provenance.get("trained_on", trained_on) != trained_on:
            fix = "resume with the original folds or choose another run folder"
            raise RunError(f"{run}: was trained on other patients, because {dataset.root} has other folds; {fix}")
        if before.provenance.get("teacher") != teacher:
            fix = "resume with the original dataset or choose another run folder"
            raise RunError(f"{run}: was trained with another teacher than that of {dataset.root}, or with none; {fix}")
        _check_not_tuned(run, config)
        init = init or before.provenance.get("init")
    planned = {"plan": config.provenance["plan"]} if "plan" in config.provenance else {}
    provenance = planned | {
        "dataset": dataset.source["fingerprint"],
        "records": str(dataset.root.resolve()),
        "trained_on": trained_on,
        "gitseg_tf": __version__,
        "tensorflow": tf.__version__,
        "tf_keras": keras.__version__,
        "python": platform.python_version(),
    }
    if dataset.pseudo_labels is not None:
        provenance["pseudo_labels"] = asdict(dataset.pseudo_labels) | {
            "trained_on": list(dataset.pseudo_labels.trained_on)
        }
        _describe_pseudo_labels(dataset, config.data.fold)
    if teacher:
        provenance["teacher"] = teacher
    if init is not None:
        provenance["init"] = init
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    save_config(config.model_copy(update={"provenance": provenance}), run / "config.yaml")
    data = summarize_scans(scans, config.label_set.names)
    write_training_data(run, data)
    for name in data.missing_labels:
        logger.warning("%s has no voxel in the %s to train on; it cannot be learned", name, plural(data.scans, "scan"))


def _describe_pseudo_labels(dataset: Dataset, fold: int | None) -> None:
    """Say whose predictions are learned, and whether they contain anything of the held-out patients."""
    logger.info("pseudo     %s", dataset.pseudo_line)
    source = dataset.pseudo_labels
    held_out = {scan.case for scan in dataset.scans_of([fold])} if fold is not None else set()
    if left := dataset.held_back(fold):
        logger.info("pseudo     %s of held-out patients are left out", plural(len(left), "scan"))
    if source is not None and (known := sorted(held_out & set(source.trained_on))):
        logger.warning(
            "the pseudo-labels come from a model that was trained on %s of the held-out patients (%s): the scores are "
            "slightly optimistic; for unbiased ones, make pseudo-labels with a run that holds out the same fold",
            len(known), ", ".join(known[:5]) + (", ..." if len(known) > 5 else ""),
        )  # fmt: skip


def _teacher_facts(dataset: Dataset, config: Config) -> dict | None:
    """Return provenance.teacher of a run; None if it does not learn from a teacher."""
    teacher = dataset.teacher
    if teacher is None or not learns_from_teacher(dataset, config):
        return None
    seen = sorted({s.case for s in dataset.scans_of([config.data.fold])} & set(teacher.trained_on))
    if seen:
        logger.warning(
            "the teacher was trained on %s of the held-out fold, so the scores of this fold are optimistic",
            plural(len(seen), "patient"),
        )
    share, name = config.training.loss.distillation.weight, teacher.name
    logger.info("teacher    %s (weights %s), weight %g in the loss", name, teacher.weights[:8], share)
    return {"name": name, "weights": teacher.weights, "members": teacher.members}


def check_same_experiment(
    run: AnyPath,
    before: Config,
    config: Config,
    dataset: Dataset,
    *,
    sections: tuple[str, ...] = ("data", "augment", "model", "training"),
) -> None:
    """Check that a run is resumed with the same experiment, except for the keys in `MAY_CHANGE`.

    Args:
        run: the folder, for the message.
        before: the config with which the run was started.
        config, dataset: the config and dataset with which it is resumed; the config was prepared for the dataset.
        sections: config sections to compare.

    Raises:
        RunError: labels, channels, dataset, seed or a key differ.
    """
    for what, was, now in (
        ("segments", before.labels.names if before.labels is not None else None, config.label_set.names),
        ("has the input channels", before.channels, config.channels),
    ):
        if was is not None and tuple(was) != tuple(now or ()):
            has = f"the dataset {dataset.root} has {', '.join(now or ())}"
            raise RunError(f"{run}: the run {what} {', '.join(was)}; {has}; choose another run folder")
    if before.provenance.get("dataset") != dataset.source["fingerprint"]:
        raise RunError(f"{run}: was trained on a dataset other than {dataset.root}; choose another run folder")
    if config.evaluation.whole_scans:  # the metric of each epoch depends on them
        sections = tuple(dict.fromkeys((*sections, "evaluation", "postprocess")))
    for section in sections:
        was, wanted = (getattr(c, section).model_dump(exclude=MAY_CHANGE.get(section)) for c in (before, config))
        for key in was | wanted:  # either may lack a key: postprocess has a section only for labels that differ
            if was.get(key) != wanted.get(key):
                differs = f"{section}.{key} was {was.get(key)} and is now {wanted.get(key)}"
                raise RunError(f"{run}: {differs}; resume with the same value or choose another run folder")
    if before.evaluation.metric != config.evaluation.metric:
        differs = f"evaluation.metric was {before.evaluation.metric} and is now {config.evaluation.metric}"
        raise RunError(f"{run}: {differs}; resume with the same value or choose another run folder")
    if before.seed != config.seed:
        raise RunError(f"{run}: seed was {before.seed} and is now {config.seed}; resume with the same seed")


def _check_not_tuned(run: AnyPath, config: Config) -> None:
    if (run / TUNED).is_file() and len(read_history(run)) < config.training.epochs:
        raise RunError(
            f"{run / TUNED}: was tuned for the current weights; remove it to continue training, then tune again"
        )


def numbered(name: str, *, resume: bool) -> Path:
    """Choose the default folder of a run: runs/NAME, or if that exists the next number (with resume the last one)."""
    number, out = 1, Path("runs", name)
    while (following := Path("runs", f"{name}-{number + 1}")).exists() or (out.exists() and not resume):
        number, out = number + 1, following
    return out
