"""The folder of a run: which one it is, what may be there already, and how a run goes on in it."""

import platform
from pathlib import Path

from gitseg_tf import __version__
from gitseg_tf.config import Config, load_config, save_config
from gitseg_tf.data.dataset import Dataset
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, as_path
from gitseg_tf.training.cluster import has_workers

# What `gitseg tune` found for the weights of a run: a config file of the section postprocess, the evaluation.tta
# under which it was found, and provenance.tuned.
TUNED = "postprocess.yaml"
# What a run that goes on may have otherwise than the one before, by section.
MAY_CHANGE = {
    "data": {"path", "service"},
    "training": {"epochs", "strategy", "early_stopping", "checkpoint_minutes", "wandb"},
}


def choose_run(out: str | AnyPath | None, name: str, resume: bool = False) -> AnyPath:
    """Choose the folder of a run, and refuse one that is taken before anything is done for it.

    Args:
        out: the folder; None is runs/NAME, with a number behind it where that is there: the next number for a new run,
            the last one for a resumed run.
        name: of the config.
        resume: the run goes on.

    Returns:
        The folder; nothing is written yet.

    Raises:
        InputError: a run is there already (without resume), or something else.
    """
    run = as_path(out) if out else numbered(name, resume)
    # Of several workers the chief may have made the folder a moment ago: it checks by itself, in `open_run`.
    if not has_workers():
        check_run_folder(run, resume)
    return run


def has_begun(run: AnyPath) -> bool:
    """True for a folder with the config.yaml of a run."""
    return (run / "config.yaml").is_file()


def check_run_folder(run: AnyPath, resume: bool) -> None:
    """Refuse a folder that holds something else than a run to resume.

    Raises:
        InputError: a run is there already (without resume), or something else.
    """
    if has_begun(run):
        if not resume:
            raise InputError(f"{run}: a run is there already; go on with --resume or choose another --out")
    elif run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise InputError(f"{run}: is not empty and no run; choose another --out")


def load_run_config(run: AnyPath) -> Config:
    """The config of a run, with what `gitseg tune` found in place of its own: the post-processing, and the test-time
    augmentation to which that belongs, if the file has it.

    Raises:
        InputError: config.yaml or postprocess.yaml is damaged.
    """
    config = load_config(run / "config.yaml")
    if not (run / TUNED).is_file():
        return config
    tuned = load_config(run / TUNED)
    evaluation = config.evaluation
    if "tta" in tuned.evaluation.model_fields_set:
        evaluation = evaluation.model_copy(update={"tta": tuned.evaluation.tta})
    facts = tuned.provenance.get("tuned")
    if not isinstance(facts, dict) or not {"fold", "cases", "scans"} <= set(facts):
        raise InputError(f"{run / TUNED}: provenance.tuned lacks fold, cases or scans; remove it and run gitseg tune")
    return config.model_copy(
        update={
            "evaluation": evaluation,
            "postprocess": tuned.postprocess,
            "provenance": config.provenance | tuned.provenance,
        }
    )


def open_run(run: AnyPath, config: Config, dataset: Dataset, resume: bool) -> None:
    """Make the run's folder, or check that the run there is of the same experiment; write its config.yaml.

    Raises:
        InputError: see `check_run_folder`; the run is of another experiment or dataset.
    """
    import tensorflow as tf
    import tf_keras as keras

    check_run_folder(run, resume)
    if has_begun(run):
        check_same_experiment(run, load_config(run / "config.yaml"), config, dataset)
        _check_not_tuned(run, config)
    trained_on = dataset.scans_of(dataset.training_folds(config.data.fold), config.data.exclude_scans)
    provenance = {
        "dataset": dataset.source["fingerprint"],
        "records": str(dataset.root.resolve()),
        "trained_on": sorted({scan.case for scan in trained_on}),
        "gitseg_tf": __version__,
        "tensorflow": tf.__version__,
        "tf_keras": keras.__version__,
        "python": platform.python_version(),
    }
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    save_config(config.model_copy(update={"provenance": provenance}), run / "config.yaml")


def check_same_experiment(
    run: AnyPath,
    before: Config,
    config: Config,
    dataset: Dataset,
    sections: tuple[str, ...] = ("data", "augment", "model", "training"),
) -> None:
    """Refuse to go on with another experiment, but for what `MAY_CHANGE` lists.

    Args:
        run: the folder, for the message.
        before: the config that it was begun with.
        config, dataset: to go on with.
        sections: of the config, which are compared.

    Raises:
        InputError: dataset, seed or a key differs.
    """
    if before.provenance.get("dataset") != dataset.source["fingerprint"]:
        raise InputError(f"{run}: was trained on another dataset than {dataset.root}; choose another --out")
    for section in sections:
        was, wanted = (getattr(c, section).model_dump(exclude=MAY_CHANGE.get(section)) for c in (before, config))
        for key in was:
            if was[key] != wanted[key]:
                differs = f"{section}.{key} was {was[key]} and is now {wanted[key]}"
                raise InputError(f"{run}: {differs}; resume with the same or choose another --out")
    if before.seed != config.seed:
        raise InputError(f"{run}: seed was {before.seed} and is now {config.seed}; resume with the same")


def _check_not_tuned(run: AnyPath, config: Config) -> None:
    from gitseg_tf.training.callbacks import read_history

    if (run / TUNED).is_file() and len(read_history(run)) < config.training.epochs:
        raise InputError(f"{run / TUNED}: was tuned for the weights as they are; remove it to train on, and tune again")


def numbered(name: str, resume: bool) -> Path:
    """The default folder of a new run of that name, runs/NAME with a number where that is there, or of the last one."""
    number, out = 1, Path("runs", name)
    while (following := Path("runs", f"{name}-{number + 1}")).exists() or (out.exists() and not resume):
        number, out = number + 1, following
    return out
