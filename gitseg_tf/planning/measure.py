"""Measure a candidate in its own process: real training steps, on real batches of a part of the dataset.

`gitseg_tf.planning.probe` starts this module, because the resident memory of a process hardly ever decreases.
"""

import json
import math
import resource
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.config import Config, load_config
from gitseg_tf.core.paths import as_path, write_atomically
from gitseg_tf.data.pipeline.batches import training_windows, validation_steps
from gitseg_tf.data.pipeline.epochs import steps_per_epoch
from gitseg_tf.data.tfrecords.dataset import Dataset, load_dataset
from gitseg_tf.errors import GitsegError
from gitseg_tf.planning.candidates import Measurement
from gitseg_tf.training.setup import compiled_model, set_up

# The first steps use batches that were prepared while the graph was traced.
WARM_UP, LEAST_STEPS = 2, 3
_MOST_STEPS = 200
# A forward pass takes about a third of a step; used if the time is over before it is measured.
_VALIDATION_SHARE = 0.4
_STATUS = Path("/proc/self/status")


def measure(dataset: Dataset, config: Config, seconds: float, note) -> Measurement:
    """Train for a few seconds.

    Args:
        dataset: steps are counted on all of it, and batches are taken from its smallest shard.
        config: the candidate.
        seconds: how long to take steps after the warm-up.
        note: called with a Measurement as soon as there is one, and again with better ones.

    Returns:
        The last measurement.

    Raises:
        GitsegError: the config does not fit the data or the devices.
    """
    config = config.for_dataset(dataset.labels, dataset.channels, dataset.intensities)
    strategy, precision = set_up(config, dataset)
    steps = steps_per_epoch(dataset, config)
    windows = steps * config.data.batch_size
    held_out = 0 if config.data.fold is None else validation_steps(dataset, config) * config.data.batch_size
    part, sample = _part(dataset, config)
    model = compiled_model(config, strategy, precision, steps=steps)
    base = _resident_gib()
    slices = sum(scan.shape[0] for shard in part.shards for scan in shard.scans)
    bytes_per_pixel = 2 * len(dataset.channels) + len(config.label_set) // 8 + 1
    prepared = slices * math.prod(config.data.input_size) * bytes_per_pixel / 2**30
    batches = training_windows(part, sample)
    started = time.perf_counter()
    batch = next(iter(batches))
    preparing = time.perf_counter() - started
    validation: float | None = None

    def measured(durations: list[float]) -> Measurement:
        timed = durations[WARM_UP:]
        step = float(np.mean(timed))
        start = max(durations[0] - preparing - step, 0.0)
        return Measurement(
            step, _VALIDATION_SHARE * step if validation is None else validation, start, preparing / slices, base,
            max(_peak_gib() - prepared, base), windows, held_out, len(timed), date.today().isoformat(),
        )  # fmt: skip

    clock = _Clock(seconds, lambda durations: note(measured(durations)))
    model.fit(batches, steps_per_epoch=_MOST_STEPS, epochs=1, verbose=0, callbacks=[clock])
    note(measured(clock.durations))
    if held_out:
        model.test_on_batch(*batch)  # traces the graph
        validation = _mean_seconds(lambda: model.test_on_batch(*batch), seconds / 4)
    return measured(clock.durations)


def _mean_seconds(call, seconds: float) -> float:
    """Time repeated calls, at least one."""
    calls, started = 0, time.perf_counter()
    while not calls or time.perf_counter() - started < seconds:
        call()
        calls += 1
    return (time.perf_counter() - started) / calls


class _Clock(keras.callbacks.Callback):
    """Times each step, as the loop of a training sees it, until the time is over."""

    def __init__(self, seconds: float, note):
        super().__init__()
        self.seconds, self.note = seconds, note
        self.durations: list[float] = []
        self.last = self.deadline = time.perf_counter()

    def on_train_begin(self, logs=None):
        self.last = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        float(logs["loss"])  # a progress bar reads it too, and waits for the step
        now = time.perf_counter()
        self.durations.append(now - self.last)
        self.last = now
        timed = len(self.durations) - WARM_UP
        if timed == 0:
            self.deadline = now + self.seconds
        if 0 < timed <= LEAST_STEPS:
            self.note(self.durations)  # in case that the process is stopped
        if timed >= LEAST_STEPS and now > self.deadline:
            self.model.stop_training = True


def _part(dataset: Dataset, config: Config) -> tuple[Dataset, Config]:
    """Select the smallest shard of the training folds, and a config that trains on it long enough."""
    shards = dataset.shards_of(dataset.training_folds(config.data.fold))
    shard = min(shards, key=lambda shard: (sum(scan.shape[0] for scan in shard.scans), shard.file))
    data = config.data.model_copy(update={"fold": None, "cache_mib": 1 << 20})
    training = config.training.model_copy(update={"epochs": 1 << 16})
    part = replace(dataset, shards=(replace(shard, fold=0),), folds=1)
    return part, config.model_copy(update={"data": data, "training": training})


def _resident_gib() -> float:
    return _status_gib("VmRSS") or _usage_gib()


def _peak_gib() -> float:
    # getrusage is the second choice, because its maximum includes the memory of the process that started this one.
    return _status_gib("VmHWM") or _usage_gib()


def _status_gib(field: str) -> float | None:
    """Read a field of /proc/self/status; None if the system has no such file or field."""
    if not _STATUS.is_file():
        return None
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(fields[field].split()[0]) / 2**20 if field in fields else None


def _usage_gib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def main(request: str, answer: str) -> None:
    """Measure a candidate.

    Args:
        request: a JSON file with the dataset, the config keys and the seconds.
        answer: the JSON file to write: a measurement, or an error in one line.
    """
    task = json.loads(Path(request).read_text())

    def note(measurement: Measurement) -> None:
        write_atomically(Path(answer), json.dumps(measurement.to_tree()).encode())

    try:
        dataset = load_dataset(as_path(task["dataset"]))
        note(measure(dataset, load_config(None, task["overrides"]), task["seconds"], note))
    except GitsegError as error:
        write_atomically(Path(answer), json.dumps({"error": str(error)}).encode())
    except (tf.errors.ResourceExhaustedError, MemoryError):
        write_atomically(Path(answer), json.dumps({"error": "out of memory"}).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
