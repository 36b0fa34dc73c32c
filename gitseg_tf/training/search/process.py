"""Train runs in processes of their own, which report each epoch to the process that started them."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from gitseg_tf.config import Config, save_config

AfterEpochFunction = Callable[[int, float], bool]


class EpochReport:
    """Reports each epoch to the process that started this one, and receives its decision; for `train(after_epoch=...)`.

    If that process has ended, so does the training, after an epoch that is saved.

    Args:
        descriptor: file descriptor of a connected socket, inherited from the other process.

    Attributes:
        stopped: whether the training was told to stop.
    """

    def __init__(self, descriptor: int):
        self._socket = socket.socket(fileno=descriptor)
        self.stopped = False

    def __call__(self, epoch: int, value: float) -> bool:
        """Report the metric of an epoch; return whether to stop."""
        try:
            self._socket.sendall(f"{epoch} {value!r}\n".encode())
            self.stopped = self._socket.recv(1) != b"+"
        except OSError:
            self.stopped = True
        return self.stopped


def train_run(
    config: Config, out: Path, name: str, *, after_epoch: AfterEpochFunction | None = None, lock: int | None = None
) -> str | None:
    """Train, score and export a run in a new process; an existing run is resumed.

    Args:
        config: the experiment.
        out: existing folder for NAME/ (the run), NAME.yaml (the config) and NAME.log (the output).
        name: name of the run.
        after_epoch: called with the number of finished epochs and the last one's evaluation.metric; if it returns True,
            the run ends after that epoch and is neither scored nor exported.
        lock: a file descriptor that the process inherits, see `core.locks.locked`.

    Returns:
        None, or the error.
    """
    settings = out / f"{name}.yaml"
    save_config(config, settings)
    # A new process starts with clean memory and TensorFlow state, and a crash ends only one run.
    command = [sys.executable, "-m", "gitseg_tf", "train"]
    command += ["--config", str(settings), "--out", str(out / name)]
    here, there = socket.socketpair()
    inherited = [there.fileno()] if after_epoch else []
    command += ["--report-epochs", str(there.fileno())] if after_epoch else []
    inherited += [] if lock is None else [lock]
    # Unbuffered output keeps the lines of both streams in order.
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with open(out / f"{name}.log", "a+", encoding="utf-8") as log:
        before = log.seek(0, 2)
        with subprocess.Popen(
            [*command, "--resume"],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            pass_fds=inherited,
        ) as process:
            there.close()
            with here:
                if after_epoch:
                    _answer(here, after_epoch)
            process.wait()
        log.seek(before)
        printed = log.read().strip().splitlines()
    if process.returncode == 0:
        return None
    how = f"exit status {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
    last = printed[-1].removeprefix("gitseg: ") if printed else "no output"
    return f"{how}: {last}"


def _answer(connection: socket.socket, after_epoch: AfterEpochFunction) -> None:
    """Answer the reports of an `EpochReport` until the process ends or is told to stop."""
    with connection.makefile(encoding="ascii") as reports:
        for line in reports:
            epoch, value = line.split()
            stop = after_epoch(int(epoch), float(value))
            connection.sendall(b"-" if stop else b"+")
