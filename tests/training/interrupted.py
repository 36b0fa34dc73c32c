"""What test_interrupted runs: trainings that end by force, each in a process of its own.

`interrupted.py DATASET OUT` prints a line of JSON with what became of them. The processes are forked from one that has
imported TensorFlow, which takes longer than such a training, and has not used it yet.
"""

import json
import os
import random
import resource
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import tensorflow as tf
import tf_keras as keras

from gitseg_tf.config import load_config
from gitseg_tf.data.dataset import load_dataset
from gitseg_tf.errors import InputError
from gitseg_tf.models import backbones
from gitseg_tf.training import callbacks, trainer

SETTINGS = {
    "data.size": [32, 32],
    "data.slices": 1,
    "data.fold": 1,
    "data.batch_size": 4,
    "model.filters": 4,
    "augment.dropout.p": 0.0,
    "training.epochs": 4,
    "training.learning_rate": 1e-2,
    "training.strategy": "one_device",
    "training.precision": "float32",
    "training.deterministic": True,
    "training.checkpoint_minutes": 1e-6,
    "evaluation.threshold": 0.1,
}

# Two levels of the encoder instead of five, for what takes time here is to trace the graph.
plain = backbones.plain
backbones.BACKBONES["plain"] = lambda inputs, config: {s: f for s, f in plain(inputs, config).items() if s < 4}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def train(root, run, **changes):
    settings = SETTINGS | {key.replace("__", "."): value for key, value in changes.items()}
    trainer.train(load_config(None, settings), load_dataset(root), run, resume=True, say=lambda line: None)


def in_a_process(work, *arguments) -> tuple[int, str]:
    """The exit status of a forked process, negative for a signal, and its last line."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 0
        try:
            work(*arguments)
        except (InputError, OSError) as error:
            os.write(writing, str(error).encode())
            status = 1
        except BaseException:
            traceback.print_exc()
            status = 3
        os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def killed_after(seconds, root, run):
    """Die some time after the first step."""
    begin = callbacks.EpochBars.on_epoch_begin

    def arm(self, epoch, logs=None):
        begin(self, epoch, logs)
        threading.Thread(target=lambda: (time.sleep(seconds), die()), daemon=True).start()

    callbacks.EpochBars.on_epoch_begin = arm
    train(root, run)


def killed_before_the_history(root, run):
    callbacks.write_history = lambda run, rows: die()
    train(root, run)


def killed_within_the_best_weights(root, run):
    def half(self, path):
        Path(path).write_bytes(b"half")
        die()

    keras.Model.save_weights = half
    callbacks.RunRecorder.on_epoch_begin = lambda self, epoch, logs=None: setattr(self, "best", -1)
    callbacks.RunRecorder.started = 0.0
    train(root, run)


def killed_within_a_checkpoint(root, run):
    """Its data are there, the file that names the newest checkpoint is the one of before."""
    tf.train.CheckpointManager._record_state = lambda *_, **__: die()
    train(root, run)


def killed_within_the_validation(root, run):
    callbacks.AveragedValidation.on_test_batch_end = lambda self, batch, logs=None: die()
    train(root, run)


def killed_at_step(step, root, run):
    def end(self, batch, logs=None):
        if self.model.optimizer.iterations.numpy() == step:
            die()

    callbacks.EpochBars.on_train_batch_end = end
    train(root, run)


def without_space(bytes_of_a_file, root, run):
    """Files cannot become larger, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    begin = callbacks.EpochBars.on_epoch_begin

    def fill(self, epoch, logs=None):
        begin(self, epoch, logs)
        if epoch == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_of_a_file, resource.RLIM_INFINITY))

    callbacks.EpochBars.on_epoch_begin = fill
    train(root, run, training__checkpoint_minutes=0)


def main(root: Path, out: Path) -> dict:
    draw, ended = random.Random(0), {}
    ended["undisturbed"] = in_a_process(train, root, out / "undisturbed")
    ended["again"] = in_a_process(train, root, out / "again")
    run = out / "killed"
    for work in (
        killed_within_a_checkpoint,
        killed_within_the_validation,
        killed_before_the_history,
        killed_within_the_best_weights,
    ):
        ended[work.__name__] = in_a_process(work, root, run)
    for k in range(6):
        ended[f"killed_{k}"] = in_a_process(killed_after, draw.uniform(0, 0.3), root, run)
    ended["killed"] = in_a_process(train, root, run)
    ended["full"] = in_a_process(without_space, 2000, root, out / "full")
    ended["left_by_full"] = sorted(str(p.relative_to(out / "full")) for p in (out / "full").rglob("*") if p.is_file())
    ended["full_resumed"] = in_a_process(train, root, out / "full")
    return ended


if __name__ == "__main__":
    print(json.dumps(main(*map(Path, sys.argv[1:]))))
