"""The files in a run's folder, and its config."""

import csv
import io

from gitseg_tf.config import Config, load_config
from gitseg_tf.core.paths import AnyPath
from gitseg_tf.errors import ConfigError, RunError, first_line

# The result of `gitseg tune` for a run: a config file with the section postprocess, the evaluation.tta for which it was
# tuned, and provenance.tuned.
TUNED = "postprocess.yaml"
# The commented config of a planned run, written before it begins.
PLAN = "plan.yaml"


def has_begun(run: AnyPath) -> bool:
    """Check whether a folder contains the config.yaml of a run."""
    return (run / "config.yaml").is_file()


def load_run_config(run: AnyPath) -> Config:
    """Read the config of a run.

    The post-processing chosen by `gitseg tune`, and the test-time augmentation for which it was tuned, replace the
    settings with which the run was trained.

    Raises:
        RunError: postprocess.yaml is damaged.
        ConfigError: config.yaml or postprocess.yaml has an unknown key or label, or a value that is not allowed.
    """
    config = load_config(run / "config.yaml")
    if not (run / TUNED).is_file():
        return config
    tuned = load_config(run / TUNED)
    if config.labels is not None:
        try:
            tuned.postprocess.check_labels(config.labels)
        except ConfigError as error:
            raise ConfigError(f"{run / TUNED}: {error}") from None
    evaluation = config.evaluation
    if "tta" in tuned.evaluation.model_fields_set:
        evaluation = evaluation.model_copy(update={"tta": tuned.evaluation.tta})
    facts = tuned.provenance.get("tuned")
    if not isinstance(facts, dict) or not {"fold", "cases", "scans"} <= set(facts):
        raise RunError(f"{run / TUNED}: provenance.tuned lacks fold, cases or scans; remove it and run gitseg tune")
    return config.model_copy(
        update={
            "evaluation": evaluation,
            "postprocess": tuned.postprocess,
            "provenance": config.provenance | tuned.provenance,
        }
    )


def tuned_where(tuned: dict) -> str:
    """Describe the scans on which post-processing was tuned; `tuned` is provenance.tuned of a config."""
    return "all folds, out of fold" if tuned["fold"] == "all" else f"fold {tuned['fold']}"


def best_weights_path(run: AnyPath) -> AnyPath:
    """Return the path of the averaged weights of the best epoch."""
    return run / "checkpoints" / "best.weights.h5"


def read_history(run: AnyPath) -> list[dict]:
    """Read the finished epochs of a run, one dict each; empty without a history.csv.

    Raises:
        RunError: the file is damaged.
    """
    path = run / "history.csv"
    if not path.is_file():
        return []
    try:
        table = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        # The Dice is empty if no label is annotated in the fold.
        return [
            {k: int(v) if k == "epoch" else float("nan" if v == "" else v) for k, v in row.items()} for row in table
        ]
    except (ValueError, TypeError, csv.Error) as error:
        fix = "restore it, or train again in another run folder"
        raise RunError(f"{path}: is damaged ({first_line(error)}); {fix}") from None


def training_progress(run: AnyPath, config: Config) -> tuple[int, bool]:
    """Determine how far a run has been trained.

    Args:
        run: its folder.
        config: its config.

    Returns:
        The number of finished epochs, and whether training has ended: after all epochs, or by early stopping.

    Raises:
        RunError: history.csv is damaged.
    """
    history, training = read_history(run), config.training
    without_gain = history[-1].get("epochs_without_gain", 0) if history else 0
    stopped = 0 < training.early_stopping_patience <= without_gain
    return len(history), stopped or len(history) >= training.epochs
