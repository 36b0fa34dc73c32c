"""Load a trained run."""

import hashlib
from dataclasses import dataclass

from gitseg_tf.config import Config
from gitseg_tf.core.paths import AnyPath, as_path
from gitseg_tf.errors import RunError
from gitseg_tf.runs.cross_validation import is_cross_validation
from gitseg_tf.runs.folder import best_weights_path, has_begun, load_run_config


@dataclass(frozen=True)
class Run:
    """A trained run.

    Attributes:
        path: the folder.
        config: its config, with the post-processing chosen by `gitseg tune` if it was tuned.
        weights: the file with the best weights.

    Example:
        >>> import gitseg_tf
        >>> config, dataset = gitseg_tf.load_config(), gitseg_tf.open_dataset("cohort", folds=1)
        >>> run = gitseg_tf.train(config, dataset, "runs/first")  # doctest: +SKIP
        >>> run.config.label_set.names  # doctest: +SKIP
        ('large_bowel', 'small_bowel', 'stomach')
    """

    path: AnyPath
    config: Config
    weights: AnyPath


def load_run(path: str | AnyPath) -> Run:
    """Open a trained run.

    Args:
        path: the run's folder.

    Returns:
        The run.

    Raises:
        RunError: the folder is not a run, or none of its epochs has finished.
    """
    path = as_path(path)
    if is_cross_validation(path):
        raise RunError(f"{path}: is a cross-validation; choose one of its runs, such as {path / 'fold0'}")
    if not has_begun(path):
        raise RunError(f"{path}: is not a run (config.yaml is missing); choose the folder that training wrote")
    weights = best_weights_path(path)
    if (path / "model.json").is_file():
        raise RunError(f"{path}: is an exported model, not a run; choose the folder that training wrote")
    if not weights.is_file():
        raise RunError(f"{path}: no epoch of this run has finished; resume its training")
    return Run(path, load_run_config(path), weights)


def weights_digest(run: Run) -> str:
    """Compute the SHA-256 of a run's best weights, which its exports store as provenance.best_weights."""
    return hashlib.sha256(run.weights.read_bytes()).hexdigest()
