import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.process

SCRIPT = Path(__file__).parents[2] / "helpers" / "replicas.py"
STEPS = 4  # of an epoch


@pytest.fixture(scope="module")
def compared(tiny_dataset, tmp_path_factory):
    """The same run on one device and on two replicas, which are logical devices of the CPU."""
    out = tmp_path_factory.mktemp("compared")
    command = [sys.executable, str(SCRIPT), "compare", str(tiny_dataset.root), str(out)]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert completed.returncode == 0, completed.stderr[-3000:]
    return json.loads(completed.stdout.splitlines()[-1])


# Dice counts pixels: if rounding moves one across the threshold, the fourth decimal changes.
@pytest.mark.parametrize(
    ("name", "tolerance"), [("loss", 1e-4), ("val_loss", 1e-4), ("dice", 1e-3), ("val_dice", 1e-3)]
)
def test_two_replicas_train_like_one_device_at_the_same_batch_size(compared, name, tolerance):
    one, two = ([row[name] for row in compared["history"][key]] for key in ("one_device", "mirrored"))
    assert compared["replicas"] == 2 and len(one) == 2 and min(one) > 0
    assert two == pytest.approx(one, abs=tolerance)


def test_two_replicas_augment_like_one_device(compared):
    (one,), (two,) = (compared["augmented"][key] for key in ("one_device", "mirrored"))
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)
    assert abs(one["loss"] - compared["history"]["one_device"][0]["loss"]) > 1e-3


def test_two_replicas_accumulate_average_and_slow_the_encoder_like_one_device(compared):
    one, two = compared["optimized"]["one_device"], compared["optimized"]["mirrored"]
    for name in ("loss", "val_loss"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], abs=1e-4)
        assert abs(one[0][name] - compared["history"]["one_device"][0][name]) > 1e-3


def test_two_replicas_have_the_loss_and_gradient_of_one_device(compared):
    (one_loss, one), (two_loss, two) = (compared["first"][key] for key in ("one_device", "mirrored"))
    assert two_loss == pytest.approx(one_loss, abs=1e-5)
    assert np.abs(one).max() > 1e-2
    assert np.linalg.norm(np.subtract(two, one)) < 1e-4 * np.linalg.norm(one)
    assert two == pytest.approx(one, abs=1e-5)


def test_two_replicas_have_every_loss_term_and_gradient_of_one_device(compared):
    one, two = (compared["losses"][key] for key in ("one_device", "mirrored"))
    assert one.keys() == two.keys() and len(one) == 8
    for name, (losses, gradient) in one.items():
        assert two[name][0] == pytest.approx(losses, abs=1e-5), name
        assert two[name][1] == pytest.approx(gradient, abs=1e-6) and np.abs(gradient).max() > 1e-5, name


def test_eight_replicas_have_the_steps_learning_rate_and_loss_of_one_device(compared, tiny_dataset, tmp_path):
    command = [sys.executable, str(SCRIPT), "eight", str(tiny_dataset.root), str(tmp_path)]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert completed.returncode == 0, completed.stderr[-3000:]
    seen = json.loads(completed.stdout.splitlines()[-1])
    one, many = compared["history"]["one_device"], seen["history"]
    assert seen["replicas"] == 8 and len(many) == 2
    for name in ("loss", "val_loss"):
        assert [row[name] for row in many] == pytest.approx([row[name] for row in one], abs=1e-4)
    # The rate of the last step of each epoch: equal numbers of steps and the same schedule.
    assert [row["learning_rate"] for row in many] == [row["learning_rate"] for row in one]


def free_ports(count):
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def train_on_two_workers(dataset, run, dies=None, elsewhere=None):
    """Exit statuses and stderr of two workers; worker 1 can die after a step or have its own run folder."""
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    started = []
    for index in range(2):
        cluster = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(cluster), "TMPDIR": str(run.parent)}
        environment |= {"PYTHONDONTWRITEBYTECODE": "1"} | ({"DIE_AT": str(dies)} if dies and index == 1 else {})
        folder = elsewhere if elsewhere and index == 1 else run
        command = [sys.executable, str(SCRIPT), "worker", str(dataset.root), str(folder)]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    try:
        outputs = [process.communicate(timeout=400)[1].decode() for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], outputs


def test_two_workers_resume_after_one_is_killed_and_finish_like_one_device(compared, tiny_dataset, tmp_path):
    run = tmp_path / "run"
    (alive, dead), outputs = train_on_two_workers(tiny_dataset, run, dies=STEPS + 2)
    assert (alive, dead) == (1, -signal.SIGKILL), "\n".join(outputs)[-5000:]
    last = outputs[0].strip().splitlines()[-1]
    assert "a worker other than this one" in last and "(number 0) is gone" in last and "resume the run" in last
    for left in set(tmp_path.iterdir()) - {run}:
        shutil.rmtree(left) if left.is_dir() else left.unlink()  # left by the killed worker
    status, outputs = train_on_two_workers(tiny_dataset, run, elsewhere=tmp_path / "elsewhere")
    assert status == [1, 1], "\n".join(outputs)[-5000:]
    for text in outputs:
        assert "differ in the number of finished epochs and steps" in text.strip().splitlines()[-1]
    assert not (tmp_path / "elsewhere").exists()
    status, outputs = train_on_two_workers(tiny_dataset, run)
    assert status == [0, 0], "\n".join(outputs)[-5000:]
    with open(run / "history.csv", newline="") as file:
        losses = [[float(row[name]) for name in ("loss", "val_loss")] for row in csv.DictReader(file)]
    alone = [[row[name] for name in ("loss", "val_loss")] for row in compared["history"]["one_device"]]
    assert np.allclose(losses, alone, rtol=0, atol=1e-4)
    files = {"config.yaml", "history.csv", "training_data.json", "checkpoints", "logs"}
    assert {path.name for path in run.iterdir()} == files
    assert list(tmp_path.iterdir()) == [run]
