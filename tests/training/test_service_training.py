"""Training with its data from a service of two workers."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter

import pytest

from gitseg_tf.config import load_config
from gitseg_tf.data.pipeline import steps_per_epoch, training_windows
from gitseg_tf.training.callbacks import EpochBars, read_history
from gitseg_tf.training.trainer import train

SETTINGS = {
    "data.size": [64, 64],
    "data.slices": 3,
    "data.fold": 1,
    "data.batch_size": 1,
    "data.empty_slices": 0,
    "augment.on": "accelerator",
    "model.filters": 4,
    "model.levels": 2,
    "training.epochs": 2,
    "training.strategy": "one_device",
    "training.precision": "float32",
}


@pytest.fixture(scope="module")
def servers():
    """What a dispatcher with two workers says of itself: its address, and its workers' process numbers."""
    code = "from gitseg_tf.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", code, "data-service", "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = process.stdout.readline() + process.stdout.readline()
    yield re.search(r"grpc://\S+", said)[0], [int(number) for number in re.findall(r"process (\d+)", said)]
    process.terminate()
    assert process.wait(60) == 0


@pytest.fixture(scope="module")
def service(servers):
    return servers[0]


def test_an_epoch_from_the_service_shows_what_an_epoch_shows(service, drawn_dataset):
    def epochs(address):
        config = load_config(None, SETTINGS | {"data.service": address})
        steps = steps_per_epoch(drawn_dataset, config)
        batches = training_windows(drawn_dataset, config).as_numpy_iterator()
        windows = [(image.tobytes(), mask.tobytes()) for image, mask in batches]
        return [Counter(windows[:steps]), Counter(windows[steps:])]

    assert epochs(service) == epochs(None)


def test_a_run_trains_with_the_service(service, drawn_dataset, tmp_path):
    changes = {"data.service": service, "data.batch_size": 8}
    run = train(load_config(None, SETTINGS | changes), drawn_dataset, tmp_path / "run", say=lambda line: None)
    assert [row["epoch"] for row in read_history(run.path)] == [1, 2]
    # Where there is no service, the run goes on without it.
    config = load_config(None, SETTINGS | {"data.batch_size": 8, "training.epochs": 3})
    train(config, drawn_dataset, run.path, resume=True, say=lambda line: None)
    assert len(read_history(run.path)) == 3


def test_a_run_goes_on_when_a_worker_is_killed_within_an_epoch(servers, drawn_dataset, tmp_path, monkeypatch):
    address, workers = servers
    end_of_batch = EpochBars.on_train_batch_end

    def kill_once(bars, batch, logs=None):
        if workers:
            os.kill(workers.pop(), signal.SIGKILL)
            workers.clear()
        end_of_batch(bars, batch, logs)

    monkeypatch.setattr(EpochBars, "on_train_batch_end", kill_once)
    config = load_config(None, SETTINGS | {"data.service": address, "data.batch_size": 2})
    run = train(config, drawn_dataset, tmp_path / "run", say=lambda line: None)
    assert not workers and [row["epoch"] for row in read_history(run.path)] == [1, 2]


def test_a_service_that_is_not_there_is_said_before_training(drawn_dataset, tmp_path, refusal):
    config = load_config(None, SETTINGS | {"data.service": "grpc://localhost:1"})
    assert "no data service answers" in refusal(train, config, drawn_dataset, tmp_path / "run", say=lambda line: None)
