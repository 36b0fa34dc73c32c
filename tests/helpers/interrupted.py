"""Run by test_interrupted: training runs that are killed, each in its own process.

`interrupted.py DATASET OUT` prints the results as a line of JSON. The processes are forked from one that has imported
TensorFlow, which takes longer than such a run, but has not used it yet.
"""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import h5py
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.config import load_config
from gitseg_tf.data.tfrecords.dataset import load_dataset
from gitseg_tf.errors import GitsegError
from gitseg_tf.runs.folder import read_history
from gitseg_tf.training import trainer
from gitseg_tf.training.callbacks import recorder as callbacks

SETTINGS = {
    "data.input_size": [32, 32],
    "data.window_slices": 1,
    "data.fold": 1,
    "data.batch_size": 8,
    "model.filters": 4,
    "model.levels": 2,  # most of the time goes to tracing the graph
    "augment.dropout.p": 0.0,
    "training.epochs": 3,
    "training.learning_rate": 1e-2,
    "training.strategy": "one_device",
    "training.precision": "float32",
    "training.deterministic": True,
    "training.checkpoint_minutes": 1e-6,
    "evaluation.threshold": 0.1,
}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def train(root, run, **changes):
    settings = SETTINGS | {key.replace("__", "."): value for key, value in changes.items()}
    trainer.train(load_config(None, settings), load_dataset(root), run, resume=True)


def in_a_process(work, *arguments) -> tuple[int, str]:
    """The exit status of a forked process, negative for a signal, and its error message."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 0
        try:
            work(*arguments)
        except (GitsegError, OSError) as error:
            os.write(writing, str(error).encode())
            status = 1
        except BaseException:
            traceback.print_exc()
            status = 3
        os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def recorded(seen: Path, root, run):
    """Train, and record a digest of the weights after each step."""

    def end(self, batch, logs=None):
        step = int(self.model.optimizer.iterations.numpy())
        with open(seen, "a") as file:
            print(step, digest(weight.numpy() for weight in self.model.weights), file=file)

    callbacks.EpochBars.on_train_batch_end = end
    train(root, run)


def digest(weights) -> str:
    return hashlib.sha256(b"".join(sorted(weight.tobytes() for weight in weights))).hexdigest()


def photographed(root, run, out: Path) -> int:
    """Train, and copy the run folder at random moments while the process is stopped: what SIGKILL would leave."""
    draw, taken, child = random.Random(0), 0, os.fork()
    if child == 0:
        try:
            train(root, run)
        finally:
            os._exit(0)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(draw.uniform(0, 0.05))
        if (run / "checkpoints" / "state" / "checkpoint").is_file():
            os.kill(child, signal.SIGSTOP)
            shutil.copytree(run, out / f"photograph{taken}", dirs_exist_ok=True)
            os.kill(child, signal.SIGCONT)
            taken += 1
    return taken


def state_in(run: Path) -> dict:
    """The step, the weights and everything else that a resumed run would read."""
    checkpoint = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(run / "checkpoints" / "state")))
    names = [n for n in checkpoint.get_variable_to_shape_map() if n.startswith("model/layer_with_weights")]
    weights = [checkpoint.get_tensor(name) for name in names if not name.endswith("OBJECT_CONFIG_JSON")]
    (running,) = [n for n in checkpoint.get_variable_to_shape_map() if n.startswith("running/")]
    best = callbacks.best_weights_path(run)
    return {
        "step": int(checkpoint.get_tensor("optimizer/_iterations/.ATTRIBUTES/VARIABLE_VALUE")),
        "weights": digest(weights),
        "finished": int(checkpoint.get_tensor("finished/.ATTRIBUTES/VARIABLE_VALUE")),
        "within": json.loads(checkpoint.get_tensor(running))["steps"],
        "epochs": [row["loss"] for row in read_history(run)],
        "best_is_whole": h5py.is_hdf5(best) if best.exists() else None,
    }


def die_at(step, patch):
    """Call patch() after that training step; it replaces a function by one that kills the process."""
    end = callbacks.EpochBars.on_train_batch_end

    def arm(self, batch, logs=None):
        end(self, batch, logs)
        if self.model.optimizer.iterations.numpy() == step:
            patch()

    callbacks.EpochBars.on_train_batch_end = arm


def killed_within_a_checkpoint(root, run):
    """The checkpoint is written, but the file that names the newest checkpoint still names the previous one."""
    die_at(1, lambda: setattr(tf.train.CheckpointManager, "_record_state", lambda *_, **__: die()))
    train(root, run)


def killed_within_the_validation(root, run):
    callbacks.AveragedValidation.on_test_batch_end = lambda self, batch, logs=None: batch and die()
    train(root, run)


def killed_within_the_best_weights(root, run):
    def half(self, path):
        Path(path).write_bytes(b"half")
        die()

    keras.Model.save_weights = half
    train(root, run)


def killed_before_the_history(root, run):
    die_at(10, lambda: setattr(callbacks, "write_history", lambda run, rows: die()))
    train(root, run)


def killed_before_the_first_checkpoint(root, run):
    """The first epoch is in the history, but its checkpoint is not written yet."""
    tf.train.CheckpointManager.save = lambda *_, **__: die()
    train(root, run, training__checkpoint_minutes=0)


def without_space(root, run):
    """From the second epoch on, files cannot grow beyond 2 kB, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    die_at(5, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY)))
    train(root, run, training__checkpoint_minutes=0)


def files_in(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())


def main(root: Path, out: Path) -> dict:
    results, run = {}, out / "killed"
    results["uninterrupted"] = in_a_process(recorded, out / "steps.txt", root, out / "uninterrupted")
    taken = photographed(root, out / "again", out)
    # One run goes through all of these: four kills in its first epoch, then one in each later epoch.
    for work in (
        killed_before_the_first_checkpoint,
        killed_within_a_checkpoint,
        killed_within_the_validation,
        killed_within_the_best_weights,
    ):
        results[work.__name__] = in_a_process(work, root, run)
    before = files_in(run)
    results["without_space"] = in_a_process(without_space, root, run)
    left = files_in(run)
    results["killed_before_the_history"] = in_a_process(killed_before_the_history, root, run)
    results["resumed"] = in_a_process(train, root, run)
    photographs = [state_in(out / f"photograph{k}") for k in range(taken)]
    return {"ended": results, "photographs": photographs, "before": before, "left": left}


if __name__ == "__main__":
    print(json.dumps(main(*map(Path, sys.argv[1:]))))
