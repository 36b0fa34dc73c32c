"""Measure candidates on this machine, each in its own process, and remember the results."""

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gitseg_tf.core.paths import write_atomically
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.errors import ConfigError
from gitseg_tf.planning.candidates import Candidate, Measurement
from gitseg_tf.planning.machine import Machine

logger = logging.getLogger(__name__)

SECONDS = 60.0
_STEP_SECONDS = 6.0
# Starting a process and tracing a graph takes at least this long.
_LEAST_SECONDS = 8.0

# A function from the dataset, the machine, the candidates and the held-out fold to measurements by name.
Probe = Callable[[Dataset, Machine, list[Candidate], int | None], dict[str, Measurement]]


def probe(
    dataset: Dataset,
    machine: Machine,
    chosen: list[Candidate],
    fold: int | None,
    *,
    seconds: float = SECONDS,
    folder: Path | None = None,
) -> dict[str, Measurement]:
    """Measure candidates in turn until the time is over.

    Args:
        dataset: the data.
        machine: this machine.
        chosen: the candidates, the most important first.
        fold: the fold that training will hold out.
        seconds: for all of them together. Candidates that were measured before take none.
        folder: where measurements are kept, by machine, versions, dataset and candidate; None is the user's cache.

    Returns:
        Measurements by the candidates' names; those that were not measured are missing.

    Raises:
        ConfigError: none could be measured.
    """
    folder = folder or cache_folder()
    measurements: dict[str, Measurement] = {}
    problem, deadline = "", time.monotonic() + seconds
    for candidate in chosen:
        path = folder / f"{_key(dataset, machine, candidate, fold)}.json"
        cached = _read(path)
        if cached is not None:
            measurements[candidate.name] = cached
            continue
        left = deadline - time.monotonic()
        if left < _LEAST_SECONDS:
            logger.info("measuring  %s: skipped, the time for measurements is over", candidate.name)
            continue
        logger.info("measuring  %s", candidate.name)
        answer = _measure(dataset, candidate, fold, left)
        if isinstance(answer, str):
            problem = answer
            logger.warning("%s could not be measured: %s", candidate.name, answer)
            continue
        measurements[candidate.name] = answer
        _write(path, answer)
    if not measurements:
        raise ConfigError(
            f"no network could be measured on this machine ({problem}); choose a config instead of a plan"
        )
    return measurements


def cache_folder() -> Path:
    """Return the folder of measurements: gitseg-tf/probe in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gitseg-tf" / "probe"


def _measure(dataset: Dataset, candidate: Candidate, fold: int | None, seconds: float) -> Measurement | str:
    """Measure one candidate; return what went wrong otherwise."""
    with tempfile.TemporaryDirectory() as workspace:
        request, answer = Path(workspace, "request.json"), Path(workspace, "answer.json")
        overrides = candidate.overrides | {"data.fold": fold, "training.epochs": 100}
        task = {"dataset": str(dataset.root), "overrides": overrides, "seconds": min(_STEP_SECONDS, seconds / 4)}
        request.write_text(json.dumps(task))
        command = [sys.executable, "-m", "gitseg_tf.planning.measure", str(request), str(answer)]
        log = Path(workspace, "log")
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                pass  # it may have noted a measurement
            finally:
                process.kill()
                process.wait()
        if not answer.is_file():
            if process.returncode == -9:
                return "it took too long"
            lines = log.read_text(errors="replace").strip().splitlines() or ["it ended without a result"]
            return next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)), lines[-1])
        tree = json.loads(answer.read_text())
        return tree["error"] if "error" in tree else Measurement.from_tree(tree)


def _key(dataset: Dataset, machine: Machine, candidate: Candidate, fold: int | None) -> str:
    scans = [[shard.file, shard.fold, shard.crc32] for shard in dataset.shards]
    tree = [machine.to_tree(), dataset.source["fingerprint"], scans, candidate.name, candidate.overrides, fold]
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:24]


def _read(path: Path) -> Measurement | None:
    try:
        return Measurement.from_tree(json.loads(path.read_text()), cached=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, measurement: Measurement) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(measurement.to_tree()).encode())
    except OSError as error:
        logger.warning("%s: the measurement cannot be kept for the next plan (%s)", path, error.strerror)
