"""Training with data from a service of two workers."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter

import pytest

from gitseg_tf.config import load_config
from gitseg_tf.data.pipeline.batches import training_windows
from gitseg_tf.data.pipeline.epochs import steps_per_epoch
from gitseg_tf.labels import UWMGI
from gitseg_tf.runs.folder import read_history
from gitseg_tf.training.callbacks.recorder import EpochBars
from gitseg_tf.training.trainer import train

pytestmark = pytest.mark.service

SETTINGS = {
    "data.input_size": [64, 64],
    "data.window_slices": 3,
    "data.fold": 1,
    "data.batch_size": 1,
    "data.empty_slice_fraction": 0,
    "augment.backend": "tensorflow",
    "model.filters": 4,
    "model.levels": 2,
    "training.epochs": 2,
    "training.strategy": "one_device",
    "training.precision": "float32",
}


@pytest.fixture(scope="module")
def servers():
    """The address and the worker process ids of a dispatcher with two workers."""
    code = "from gitseg_tf.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", code, "data-service", "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    printed = process.stdout.readline() + process.stdout.readline()
    yield re.search(r"grpc://\S+", printed)[0], [int(number) for number in re.findall(r"process (\d+)", printed)]
    process.terminate()
    assert process.wait(60) == 0


@pytest.fixture(scope="module")
def service(servers):
    return servers[0]


def test_an_epoch_from_the_service_has_the_same_windows(service, tiny_dataset):
    def epochs(address):
        config = load_config(None, SETTINGS | {"data.service": address}).for_dataset(UWMGI, ("image",))
        steps = steps_per_epoch(tiny_dataset, config)
        batches = training_windows(tiny_dataset, config).as_numpy_iterator()
        windows = [(image.tobytes(), mask.tobytes()) for image, mask in batches]
        return [Counter(windows[:steps]), Counter(windows[steps:])]

    assert epochs(service) == epochs(None)


def test_a_run_trains_with_the_service(service, tiny_dataset, tmp_path):
    changes = {"data.service": service, "data.batch_size": 8}
    run = train(load_config(None, SETTINGS | changes), tiny_dataset, tmp_path / "run")
    assert [row["epoch"] for row in read_history(run.path)] == [1, 2]
    # Without a service, the run resumes with local data.
    config = load_config(None, SETTINGS | {"data.batch_size": 8, "training.epochs": 3})
    train(config, tiny_dataset, run.path, resume=True)
    assert len(read_history(run.path)) == 3


def test_a_run_continues_when_a_worker_is_killed_mid_epoch(servers, tiny_dataset, tmp_path, monkeypatch):
    address, workers = servers
    end_of_batch = EpochBars.on_train_batch_end

    def kill_once(bars, batch, logs=None):
        if workers:
            os.kill(workers.pop(), signal.SIGKILL)
            workers.clear()
        end_of_batch(bars, batch, logs)

    monkeypatch.setattr(EpochBars, "on_train_batch_end", kill_once)
    config = load_config(None, SETTINGS | {"data.service": address, "data.batch_size": 2})
    run = train(config, tiny_dataset, tmp_path / "run")
    assert not workers and [row["epoch"] for row in read_history(run.path)] == [1, 2]


def test_an_unreachable_service_is_reported_before_training(tiny_dataset, tmp_path, refusal):
    config = load_config(None, SETTINGS | {"data.service": "grpc://localhost:1"})
    assert "no data service responds" in refusal(train, config, tiny_dataset, tmp_path / "run")
