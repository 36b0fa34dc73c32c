"""The run or the file whose network a run starts from, and the patients it has seen. Does not import TensorFlow."""

import csv
import hashlib
import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gitseg_tf.config import Config
from gitseg_tf.core.paths import AnyPath, as_path, write_atomically
from gitseg_tf.core.text import plural
from gitseg_tf.errors import RunError
from gitseg_tf.runs.cross_validation import is_cross_validation, read_cross_validation
from gitseg_tf.runs.folder import has_begun, load_run_config
from gitseg_tf.runs.run import load_run

logger = logging.getLogger(__name__)

TABLE = "initial_weights.csv"
_COLUMNS = ("part", "layer", "status", "parameters", "kept", "note")


@dataclass(frozen=True)
class Source:
    """Where the initial weights come from.

    Attributes:
        path: the run's folder, or the file.
        weights: the file with the weights.
        config: the run's config; None for a file outside a run's folder.
        seen: patients that the weights were trained on, by the fingerprint of their dataset: those of the run, and
            those of the run that it started from itself.
    """

    path: AnyPath
    weights: AnyPath
    config: Config | None
    seen: dict[str, tuple[str, ...]]

    def provenance(self) -> dict[str, Any]:
        """Return what the config of the new run records."""
        return {
            "path": str(self.path),
            "weights": hashlib.sha256(self.weights.read_bytes()).hexdigest(),
            "seen": {dataset: list(patients) for dataset, patients in self.seen.items()},
        }


def find_source(path: str | AnyPath, fold: int | None) -> Source:
    """Find the network that model.init names.

    Args:
        path: a run, a cross-validation, or a file with weights.
        fold: the fold that the new run holds out; of a cross-validation, the run that held out the same fold is taken.

    Returns:
        The source.

    Raises:
        RunError: no such run or file, none of its epochs has finished, or a cross-validation and no fold.
    """
    path = as_path(path)
    if is_cross_validation(path):
        folds = read_cross_validation(path)
        if fold is None:
            fix = f"choose one of its runs, such as {path / 'fold0'}"
            raise RunError(f"{path}: is a cross-validation, and no fold is held out; {fix}")
        return _source_run(folds.run_of(fold))
    if not path.exists():
        raise RunError(f"{path}: no such run or file of weights; set model.init to one")
    if path.is_dir():
        return _source_run(path)
    run = path.parent.parent
    if path.parent.name == "checkpoints" and has_begun(run):
        config = load_run_config(run)
        return Source(path, path, config, _seen(config))
    if path.suffix != ".h5":
        raise RunError(f"{path}: is not a run or an .h5 file of weights; set model.init to one")
    return Source(path, path, None, {})


def _source_run(path: AnyPath) -> Source:
    run = load_run(path)
    return Source(path, run.weights, run.config, _seen(run.config))


def _seen(config: Config) -> dict[str, tuple[str, ...]]:
    earlier = config.provenance.get("init", {}).get("seen", {})
    seen = {str(dataset): set(patients) for dataset, patients in earlier.items()}
    seen.setdefault(str(config.provenance.get("dataset", "")), set()).update(config.provenance.get("trained_on", ()))
    return {dataset: tuple(sorted(patients)) for dataset, patients in sorted(seen.items())}


def seen_patients(config: Config, dataset: str) -> set[str]:
    """List the patients that the weights of a run have seen.

    Args:
        config: the run's config.
        dataset: the fingerprint of the dataset in question.

    Returns:
        The patients that the run was trained on, and those of this dataset that the network was trained on from which
        the run started.
    """
    earlier = config.provenance.get("init", {}).get("seen", {})
    return {*config.provenance.get("trained_on", ()), *map(str, earlier.get(dataset, ()))}


def check_patients(source: Source, held_out: Iterable[str], dataset: str) -> None:
    """Check that no held-out patient has been seen; warn if that is not known.

    Args:
        source: the source.
        held_out: patients of the fold that the new run holds out; empty if it holds out none.
        dataset: the fingerprint of its dataset, which does not depend on the folds.

    Raises:
        RunError: the source was trained on a held-out patient of the same data.
    """
    held_out = set(held_out)
    if not held_out:
        return
    if source.config is None or "trained_on" not in source.config.provenance:
        logger.warning("%s does not say which patients it was trained on; if any is held out, scores are too high",
                       source.path)  # fmt: skip
    for fingerprint, patients in source.seen.items():
        leaked = sorted(held_out & set(patients))
        if not leaked:
            continue
        if fingerprint == dataset:
            fix = "start from a run that held out the same patients"
            raise RunError(
                f"{source.path}: was trained on patients held out here ({_listed(leaked)}), so the scores would say "
                f"nothing about new patients; {fix}"
            )
        logger.warning(
            "%s was trained on patients with the ids of %s held out here (%s), in other data: if they are the same "
            "people, scores are too high",
            source.path, plural(len(leaked), "patient"), _listed(leaked),
        )  # fmt: skip


def check_all_folds(path: str | AnyPath, cases: Sequence[Sequence[str]], dataset: str) -> None:
    """Check a source for every fold of a cross-validation before any of them is trained; see `check_patients`."""
    for fold, held_out in enumerate(cases):
        check_patients(find_source(path, fold), held_out, dataset)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def write_table(run: AnyPath, rows: Iterable[Any]) -> None:
    """Write what happened to each layer into the run's folder.

    Args:
        run: the folder.
        rows: objects with the attributes part, layer, status, parameters, kept and note.
    """
    text = io.StringIO()
    table = csv.writer(text)
    table.writerows([_COLUMNS, *([getattr(row, name) for name in _COLUMNS] for row in rows)])
    write_atomically(run / TABLE, text.getvalue().encode())


def read_table(run: str | AnyPath) -> list[dict[str, str]]:
    """Read the table of a run that started from another network, one dict per layer.

    Returns:
        part, layer, status (loaded, adapted, new), parameters, kept and note of each layer.

    Raises:
        RunError: the table is missing or damaged.
    """
    path = as_path(run) / TABLE
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, csv.Error):
        rows = []
    if not rows or set(rows[0]) != set(_COLUMNS) or any(None in row.values() for row in rows):
        raise RunError(f"{path}: is missing or damaged; restore it, or start again in another run folder")
    return rows
