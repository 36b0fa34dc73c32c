import csv
import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("replicas.py")


@pytest.fixture(scope="module")
def compared(drawn_dataset, tmp_path_factory):
    """The same training on one device and on two replicas that are parts of the processor."""
    out = tmp_path_factory.mktemp("compared")
    command = [sys.executable, str(SCRIPT), "compare", str(drawn_dataset.root), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


# A Dice counts pixels: where rounding moves one over the threshold, it changes in the fourth place.
@pytest.mark.parametrize(
    ("name", "tolerance"), [("loss", 1e-4), ("val_loss", 1e-4), ("dice", 1e-3), ("val_dice", 1e-3)]
)
def test_two_replicas_train_like_one_device_at_the_same_batch(compared, name, tolerance):
    one, two = ([row[name] for row in compared["history"][key]] for key in ("one_device", "mirrored"))
    assert compared["replicas"] == 2 and len(one) == 2 and min(one) > 0
    assert two == pytest.approx(one, abs=tolerance)


def test_two_replicas_that_augment_make_their_shares_of_one_draw(compared):
    (one,), (two,) = (compared["augmented"][key] for key in ("one_device", "mirrored"))
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)
    assert abs(one["loss"] - compared["history"]["one_device"][0]["loss"]) > 1e-3


def test_two_replicas_accumulate_average_and_slow_the_encoder_like_one_device(compared):
    one, two = compared["optimised"]["one_device"], compared["optimised"]["mirrored"]
    for name in ("loss", "val_loss"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], abs=1e-4)
        assert abs(one[0][name] - compared["history"]["one_device"][0][name]) > 1e-3


def test_two_replicas_have_the_loss_and_gradient_of_one_device(compared):
    (one_loss, one), (two_loss, two) = (compared["first"][key] for key in ("one_device", "mirrored"))
    assert two_loss == pytest.approx(one_loss, abs=1e-5)
    assert np.abs(one).max() > 1e-2
    assert np.linalg.norm(np.subtract(two, one)) < 1e-4 * np.linalg.norm(one)
    assert two == pytest.approx(one, abs=1e-5)


def free_ports(count):
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def test_two_workers_write_one_run_and_have_the_loss_of_one_device(compared, drawn_dataset, tmp_path):
    run, workers = tmp_path / "run", [f"127.0.0.1:{port}" for port in free_ports(2)]
    command = [sys.executable, str(SCRIPT), "worker", str(drawn_dataset.root), str(run)]
    started = []
    for index in range(2):
        cluster = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(cluster), "TMPDIR": str(tmp_path)}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    try:
        said = [process.communicate(timeout=300)[1].decode() for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)[-5000:]
    with open(run / "history.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["loss"]) == pytest.approx(compared["history"]["one_device"][0]["loss"], abs=1e-3)
    assert {path.name for path in run.iterdir()} == {"config.yaml", "history.csv", "checkpoints", "logs"}
    assert list(tmp_path.iterdir()) == [run]
