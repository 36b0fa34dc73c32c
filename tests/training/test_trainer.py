import csv
import dataclasses
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import cache
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy.special import expit, log_expit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from gitseg_tf.cli import main
from gitseg_tf.config import load_config, save_config
from gitseg_tf.data.pipeline.batches import validation_windows
from gitseg_tf.data.pipeline.epochs import steps_per_epoch
from gitseg_tf.labels import UWMGI, LabelSet
from gitseg_tf.runs.folder import best_weights_path, read_history
from gitseg_tf.runs.network import load_model
from gitseg_tf.runs.run import load_run
from gitseg_tf.training import setup, trainer
from gitseg_tf.training.callbacks.recorder import AveragedValidation, EpochBars, RunRecorder, write_history
from gitseg_tf.training.distribute import consistency
from gitseg_tf.training.optim.averages import WeightAverage, ema_share
from gitseg_tf.training.trainer import train

pytestmark = pytest.mark.slow

EPOCHS = 3
SETTINGS = {
    "name": "tiny",
    "data.input_size": [32, 32],
    "data.window_slices": 3,
    "data.fold": 1,
    "data.batch_size": 4,
    "model.filters": 4,
    "model.levels": 3,
    "training.epochs": EPOCHS,
    "training.learning_rate": 3e-2,
    "training.strategy": "one_device",
    "training.precision": "float32",
    "evaluation.threshold": 0.2,
}
uninterrupted_lines = []
MEASURES = ("loss", "dice", "dice_large_bowel", "dice_small_bowel", "dice_stomach")


def configured(**changes):
    return load_config(None, SETTINGS | {key.replace("__", "."): value for key, value in changes.items()})


def trained(dataset, run, resume=False, **changes):
    return train(configured(**changes), dataset, run, resume=resume)


def rows_of(run):
    """The rows of history.csv, without the elapsed time."""
    with open(run / "history.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_same_history(one, other, tolerance=1e-6):
    assert len(one) == len(other)
    for row, expected in zip(one, other, strict=True):
        assert row == pytest.approx(expected, abs=tolerance)


def state_of(run):
    """All variables of the newest checkpoint: weights, moments of the optimizer, averages, counters."""
    reader = tf.train.load_checkpoint(str(run / "checkpoints" / "state"))
    names = [name for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name]
    texts = [name for name in names if name.startswith("running/")]  # progress within the epoch, compared elsewhere
    return {name: np.asarray(reader.get_tensor(name)) for name in set(names) - set(texts) if "save_counter" not in name}


def assert_same_state(one, other):
    one, other = state_of(one), state_of(other)
    assert one.keys() == other.keys() and len(one) > 80
    for name, value in one.items():
        assert np.allclose(value, other[name], atol=1e-5), name


@pytest.fixture(scope="module")
def uninterrupted(tiny_dataset, tmp_path_factory):
    """A run of three epochs. Read-only."""
    lines = logging.Handler()
    lines.emit = lambda record: uninterrupted_lines.append(record.getMessage())
    logger = logging.getLogger("gitseg_tf")
    level = logger.level
    logger.addHandler(lines)
    logger.setLevel("INFO")
    try:
        return trained(tiny_dataset, tmp_path_factory.mktemp("runs") / "uninterrupted")
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)


@pytest.fixture
def copied(uninterrupted, tmp_path):
    """A copy of that run, to be changed."""
    return shutil.copytree(uninterrupted.path, tmp_path / "copied")


@pytest.fixture(scope="module")
def validated(uninterrupted, tiny_dataset):
    """The held-out fold as the run's best model sees it: (mask, logits, weight) of each batch."""
    model = load_model(load_run(uninterrupted.path))
    batches = validation_windows(tiny_dataset, uninterrupted.config).as_numpy_iterator()
    return [(mask, model(image, training=False).numpy(), weight) for image, mask, weight in batches]


def best_row(run):
    return max(rows_of(run), key=lambda row: row["val_dice"])


def test_the_run_config_is_the_experiment_with_its_provenance(uninterrupted, tiny_dataset):
    config = load_config(uninterrupted.path / "config.yaml")
    assert config.model_copy(update={"provenance": {}}) == configured().for_dataset(UWMGI, ("image",))
    assert config.provenance["dataset"] == tiny_dataset.source["fingerprint"]
    assert config.provenance["tensorflow"] == tf.__version__ and config.provenance["tf_keras"] == keras.__version__
    assert {"gitseg_tf", "python"} <= config.provenance.keys()


def test_the_history_has_a_finite_row_for_each_epoch(uninterrupted):
    rows = rows_of(uninterrupted.path)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert {*MEASURES, *(f"val_{name}" for name in MEASURES), "learning_rate"} <= rows[0].keys()
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(
        0 <= row[f"{when}dice{label}"] <= 1 for row in rows for when in ("", "val_") for label in ("", "_stomach")
    )


def test_the_learning_rate_follows_the_schedule_to_its_end(uninterrupted, tiny_dataset):
    total = EPOCHS * steps_per_epoch(tiny_dataset, uninterrupted.config)
    warmup = round(0.05 * total)
    # The learning rate of the last step.
    last = 3e-2 * 0.5 * (1 + math.cos(math.pi * (total - 1 - warmup) / (total - warmup)))
    assert rows_of(uninterrupted.path)[-1]["learning_rate"] == pytest.approx(last, rel=1e-3)


def test_training_lowers_the_loss_and_raises_the_dice(uninterrupted):
    first, *_, last = rows_of(uninterrupted.path)
    assert last["loss"] < 0.9 * first["loss"] and last["dice"] > first["dice"]


@pytest.mark.parametrize(("folder", "prefix"), [("train", ""), ("validation", "val_")])
def test_tensorboard_shows_loss_and_dice_of_each_epoch(uninterrupted, folder, prefix):
    events = EventAccumulator(str(uninterrupted.path / "logs" / folder))
    events.Reload()
    for name in ("loss", "dice"):
        shown = [float(make_ndarray(event.tensor_proto)) for event in events.Tensors(f"epoch_{name}")]
        assert shown == pytest.approx([row[prefix + name] for row in rows_of(uninterrupted.path)], abs=1e-5)


def test_tensorboard_shows_learning_rate_throughput_and_the_same_slices_each_epoch(uninterrupted):
    train, validation = (EventAccumulator(str(uninterrupted.path / "logs" / part)) for part in ("train", "validation"))
    train.Reload()
    validation.Reload()
    rates = [float(make_ndarray(event.tensor_proto)) for event in train.Tensors("epoch_learning_rate")]
    assert rates == pytest.approx([row["learning_rate"] for row in rows_of(uninterrupted.path)], rel=1e-5)
    assert all(make_ndarray(event.tensor_proto) > 0 for event in train.Tensors("windows_per_second"))
    shown = [tag for tag in validation.Tags()["tensors"] if tag.startswith("overlays/")]
    assert shown and all([event.step for event in validation.Tensors(tag)] == [0, 1, 2] for tag in shown)


def test_the_initial_loss_is_logged_and_as_expected(uninterrupted):
    (line,) = [line for line in uninterrupted_lines if line.startswith(("initial", "warning"))]
    assert line.startswith("initial    loss")


def test_the_run_folder_contains_the_expected_files_and_no_leftovers(uninterrupted):
    assert {path.name for path in uninterrupted.path.iterdir()} == {
        "config.yaml",
        "training_data.json",
        "history.csv",
        "checkpoints",
        "logs",
    }
    assert {path.name for path in (uninterrupted.path / "checkpoints").iterdir()} == {"best.weights.h5", "state"}


def test_the_best_weights_contain_only_the_network(uninterrupted):
    with h5py.File(uninterrupted.weights) as file:
        assert "optimizer" not in file and len(file["layers"]) > 5


def test_the_best_weights_have_the_best_dice_of_the_history(uninterrupted, validated):
    both, sizes = np.zeros(3), np.zeros(3)
    for mask, logits, weight in validated:
        truth, inside = mask[weight == 1] > 0, expit(logits[weight == 1]) >= 0.2
        both += (truth & inside).sum((0, 1, 2))
        sizes += truth.sum((0, 1, 2)) + inside.sum((0, 1, 2))
    row = best_row(uninterrupted.path)
    dice = np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), 1)
    assert [row[f"val_{name}"] for name in MEASURES[1:]] == pytest.approx([dice.mean(), *dice], abs=1e-3)
    assert 0.05 < row["val_dice"] < 1


def test_the_validation_loss_averages_over_the_held_out_slices(uninterrupted, validated):
    costs = []
    for mask, logits, weight in validated:
        mask, logits = mask[weight == 1], logits[weight == 1]  # the padding of the last batch does not count
        bce = -(mask * log_expit(logits) + (1 - mask) * log_expit(-logits)).mean((1, 2, 3))
        probability = expit(logits)
        sums = (probability * mask).sum((0, 1, 2)), (probability + mask).sum((0, 1, 2))
        dice = np.mean(1 - (2 * sums[0] + 1) / (sums[1] + 1))
        costs += (bce + dice).tolist()
    assert any((weight == 0).any() for _, _, weight in validated)
    assert best_row(uninterrupted.path)["val_loss"] == pytest.approx(np.mean(costs), abs=1e-4)


def newest_overlays(run):
    """The PNGs of the last epoch, by tag."""
    events = EventAccumulator(str(run / "logs" / "validation"))
    events.Reload()
    tags = [tag for tag in events.Tags()["tensors"] if tag.startswith("overlays/")]
    return {tag: make_ndarray(max(events.Tensors(tag), key=lambda e: e.step).tensor_proto)[2] for tag in tags}


def interrupt(patch, epoch, batch):
    """Raise KeyboardInterrupt after a batch, both counted from 0."""
    now = SimpleNamespace(epoch=-1)

    def begin(self, number, logs=None):
        now.epoch = number
        original(self, number, logs)

    def end(self, number, logs=None):
        if (now.epoch, number) == (epoch, batch):
            raise KeyboardInterrupt

    original = EpochBars.on_epoch_begin
    patch.setattr(EpochBars, "on_epoch_begin", begin)
    patch.setattr(EpochBars, "on_train_batch_end", end)


@pytest.fixture(scope="module")
def interrupted(tiny_dataset, tmp_path_factory):
    """interrupted(seed) is a run that was interrupted in the middle of its second epoch."""

    def stop(seed):
        run = tmp_path_factory.mktemp("runs") / f"interrupted{seed}"
        with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
            interrupt(patch, epoch=1, batch=2)
            trained(tiny_dataset, run, seed=seed)
        assert len(rows_of(run)) == 1
        return run

    return cache(stop)


def test_the_same_seed_gives_the_same_history(uninterrupted, interrupted):
    assert_same_history(rows_of(interrupted(0)), rows_of(uninterrupted.path)[:1])


def test_a_different_seed_gives_a_different_history(uninterrupted, interrupted):
    assert abs(rows_of(interrupted(1))[0]["loss"] - rows_of(uninterrupted.path)[0]["loss"]) > 1e-3


def test_a_run_interrupted_mid_epoch_finishes_as_if_never_stopped(uninterrupted, interrupted, tiny_dataset, tmp_path):
    run = shutil.copytree(interrupted(0), tmp_path / "resumed")
    trained(tiny_dataset, run, resume=True)
    assert_same_history(rows_of(run), rows_of(uninterrupted.path))
    assert_same_state(run, uninterrupted.path)
    assert newest_overlays(run) == newest_overlays(uninterrupted.path)


OPTIMIZED = {
    "training__optimizer": "Addons>Lookahead",
    "training__schedule": "constant",
    "training__gradient_accumulation_steps": 2,
    "training__encoder_lr_multiplier": 0.5,
    "training__ema_decay": 0,
    "training__swa_epochs": 2,
    "training__early_stopping_patience": 9,
}


def test_accumulation_swa_and_an_addons_optimizer_resume_exactly(tiny_dataset, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    trained(tiny_dataset, whole, **OPTIMIZED)
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        interrupt(patch, epoch=2, batch=1)
        trained(tiny_dataset, run, **OPTIMIZED)
    assert len(rows_of(run)) == 2
    trained(tiny_dataset, run, resume=True, **OPTIMIZED)
    assert_same_history(rows_of(run), rows_of(whole))
    assert_same_state(run, whole)
    assert_same_weights(best_weights_path(run), best_weights_path(whole))


def assert_same_weights(one, other):
    with h5py.File(one) as first, h5py.File(other) as second:
        names = []
        first.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        assert len(names) > 20 and all(np.allclose(first[name], second[name], atol=1e-5) for name in names)


def test_early_stopping_ends_a_run_without_progress_and_logs_why(tiny_dataset, tmp_path, caplog):
    run = tmp_path / "run"
    caplog.set_level("INFO", "gitseg_tf")
    stopping = configured(training__early_stopping_patience=1, training__learning_rate=1e-12)
    train(stopping, tiny_dataset, run)
    first, second = rows_of(run)
    assert (first["epochs_without_gain"], second["epochs_without_gain"]) == (0, 1)
    assert caplog.messages[-1].startswith("stopped    after epoch 2: val_dice has not exceeded the ")
    before = (run / "history.csv").read_bytes()
    caplog.clear()
    train(stopping, tiny_dataset, run, resume=True)
    assert (run / "history.csv").read_bytes() == before
    assert caplog.messages[-1].startswith("stopped    after epoch 2")


KILLED = """
import os, signal, sys
from gitseg_tf.config import load_config
from gitseg_tf.data.tfrecords.dataset import load_dataset
from gitseg_tf.training.callbacks.recorder import EpochBars
from gitseg_tf.training.trainer import train

def end(self, batch, logs=None):
    if self.model.optimizer.iterations.numpy() == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

EpochBars.on_train_batch_end = end
train(load_config(sys.argv[1]), load_dataset(sys.argv[2]), sys.argv[3])
"""


def test_a_killed_run_is_resumed_by_the_train_command(uninterrupted, tiny_dataset, tmp_path, capfd):
    run, steps = tmp_path / "killed", steps_per_epoch(tiny_dataset, uninterrupted.config)
    config = configured(data__path=str(tiny_dataset.root))
    save_config(config, tmp_path / "tiny.yaml")
    arguments = [tmp_path / "tiny.yaml", tiny_dataset.root, run, steps + 2]
    completed = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], timeout=120, capture_output=True)
    assert completed.returncode == -signal.SIGKILL, completed.stderr.decode()
    assert len(rows_of(run)) == 1 and not (run / "evaluation.json").exists()
    assert main(["train", "--out", str(run), "--resume"]) == 0
    assert "after epoch 1 of 3" in capfd.readouterr().out
    assert_same_history(rows_of(run), rows_of(uninterrupted.path))
    assert_same_state(run, uninterrupted.path)
    assert (run / "evaluation.json").is_file() and (run / "export" / "1").is_dir()


def test_resuming_a_finished_run_trains_nothing(copied, tiny_dataset):
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file() and path.name != "config.yaml"}
    run = trained(tiny_dataset, copied, resume=True)
    assert run.weights == best_weights_path(copied)
    assert before == {p: p.read_bytes() for p in copied.rglob("*") if p.is_file() and p.name != "config.yaml"}


def test_resume_starts_a_run_that_does_not_exist(copied, tiny_dataset, monkeypatch, tmp_path):
    begun = []

    def fit(*args, run, **rest):
        begun.append(run)
        best_weights_path(run).touch()

    monkeypatch.setattr(trainer, "_fit", fit)
    trained(tiny_dataset, tmp_path / "new", resume=True)
    assert begun == [tmp_path / "new"] and (tmp_path / "new" / "config.yaml").is_file()


@pytest.mark.parametrize("part", ["compiled_model", "check_agreement", "_fit"])
def test_a_lost_worker_is_named_at_every_stage(tiny_dataset, monkeypatch, tmp_path, refusal, part):
    def lose(*args, **kwargs):
        raise tf.errors.UnavailableError(None, None, "socket closed")

    monkeypatch.setattr(trainer, part, lose)
    monkeypatch.setattr(consistency, "workers_of", lambda strategy: 2)
    monkeypatch.setattr(consistency, "_gathered", lambda strategy, values: np.array([values, values]))
    resolver = SimpleNamespace(task_id=1)
    monkeypatch.setattr(tf.distribute.Strategy, "cluster_resolver", property(lambda self: resolver))
    message = refusal(trained, tiny_dataset, tmp_path / "run")
    assert "a worker other than this one (number 1) is gone" in message and "resume the run" in message


def test_an_existing_run_is_not_overwritten(copied, tiny_dataset, refusal):
    before = (copied / "config.yaml").read_bytes()
    message = refusal(trained, tiny_dataset, copied)
    assert f"{copied}: already contains a run; resume it or choose another run folder" in message
    assert (copied / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "section"),
    [
        ({"model__filters": 8}, "model"),
        ({"data__empty_slice_fraction": 0.5}, "data"),
        ({"data__batch_size": 8}, "data"),
    ],
)
def test_a_run_is_not_resumed_with_a_different_network_or_data(copied, tiny_dataset, refusal, changes, section):
    before = (copied / "config.yaml").read_bytes()
    message = refusal(trained, tiny_dataset, copied, resume=True, **changes)
    assert f"{section}." in message and "is now" in message and str(copied) in message
    assert (copied / "config.yaml").read_bytes() == before


def test_a_run_is_not_resumed_with_a_different_seed(copied, tiny_dataset, refusal):
    assert "seed was 0 and is now 5" in refusal(trained, tiny_dataset, copied, resume=True, seed=5)


def test_a_run_with_a_missing_checkpoint_is_not_overwritten(copied, tiny_dataset, refusal):
    before = best_weights_path(copied).read_bytes()
    shutil.rmtree(copied / "checkpoints" / "state")
    message = refusal(trained, tiny_dataset, copied, resume=True, training__epochs=4)
    assert "the checkpoint of 3 finished epochs is missing" in message
    assert best_weights_path(copied).read_bytes() == before and len(rows_of(copied)) == EPOCHS


@pytest.mark.parametrize("ending", ["index", "data-00000-of-00001"])
def test_a_damaged_checkpoint_is_named(copied, tiny_dataset, refusal, ending):
    for path in (copied / "checkpoints" / "state").glob(f"*.{ending}"):
        path.write_bytes(path.read_bytes()[:100])
    message = refusal(trained, tiny_dataset, copied, resume=True, training__epochs=4)
    assert "checkpoint is damaged" in message and str(copied) in message


@pytest.mark.parametrize("content", ["epoch,loss\nfoo,1\n", "epoch,loss\n1\n", "\xff\xfe"])
def test_a_damaged_history_is_named(copied, tiny_dataset, refusal, content):
    (copied / "history.csv").write_bytes(content.encode("latin-1"))
    message = refusal(trained, tiny_dataset, copied, resume=True, training__epochs=4)
    assert str(copied / "history.csv") in message


def test_a_run_is_not_resumed_on_a_different_dataset(copied, tiny_dataset, refusal):
    other = dataclasses.replace(tiny_dataset, source={**tiny_dataset.source, "fingerprint": "0" * 64})
    assert "a dataset other than" in refusal(trained, other, copied, resume=True)


def test_a_run_is_not_resumed_with_different_labels_or_channels(copied, tiny_dataset, refusal):
    other = dataclasses.replace(tiny_dataset, labels=LabelSet.of("stomach", "spleen"))
    message = refusal(trained, other, copied, resume=True)
    assert "the run segments large_bowel, small_bowel, stomach" in message and "has stomach, spleen" in message
    other = dataclasses.replace(tiny_dataset, channels=("t1", "t2"))
    message = refusal(trained, other, copied, resume=True)
    assert "the run has the input channels image" in message and "has t1, t2" in message


def test_a_run_can_be_resumed_with_a_moved_dataset(copied, tiny_dataset, tmp_path):
    moved = dataclasses.replace(tiny_dataset, root=shutil.copytree(tiny_dataset.root, tmp_path / "moved"))
    trained(moved, copied, resume=True, data__path=str(moved.root))
    assert load_config(copied / "config.yaml").provenance["records"] == str(moved.root.resolve())


def test_a_run_without_ema_is_not_resumed_with_ema(tiny_dataset, monkeypatch, tmp_path, refusal):
    run, fit = tmp_path / "run", trainer._fit

    def save_at_once(model, config, dataset, *, run, manager, **rest):
        best_weights_path(run).touch()
        manager.save()

    monkeypatch.setattr(trainer, "_fit", save_at_once)
    trained(tiny_dataset, run, training__ema_decay=0)
    monkeypatch.setattr(trainer, "_fit", fit)
    message = refusal(trained, tiny_dataset, run, resume=True, training__ema_decay=0.9)
    assert str(run) in message and "training.ema_decay" in message


def test_a_batch_size_not_divisible_by_the_replicas_is_refused(tiny_dataset, monkeypatch, tmp_path, refusal):
    strategy = SimpleNamespace(num_replicas_in_sync=3)
    monkeypatch.setattr(setup, "choose_strategy", lambda name: (strategy, "three replicas"))
    message = refusal(trained, tiny_dataset, tmp_path / "run")
    assert "data.batch_size is 4" in message and "replicas (3)" in message and not (tmp_path / "run").exists()


def test_a_batch_size_not_divisible_by_the_accumulation_steps_is_refused(tiny_dataset, tmp_path, refusal):
    message = refusal(trained, tiny_dataset, tmp_path / "run", training__gradient_accumulation_steps=3)
    assert (
        "data.batch_size is 4" in message
        and "training.gradient_accumulation_steps (3)" in message
        and not (tmp_path / "run").exists()
    )


def test_an_unknown_optimizer_is_refused_before_anything_is_written(tiny_dataset, tmp_path, refusal):
    message = refusal(trained, tiny_dataset, tmp_path / "run", training__optimizer="Addons>Lamb")
    assert "did you mean Addons>LAMB?" in message and not (tmp_path / "run").exists()


def test_a_non_finite_loss_ends_the_run_with_advice(tiny_dataset, tmp_path, refusal):
    message = refusal(trained, tiny_dataset, tmp_path / "run", training__loss__bce__weight=1e38)
    assert re.match(r"epoch 1, step [12]: the loss is", message) and "training.learning_rate" in message
    assert not best_weights_path(tmp_path / "run").exists() and not (tmp_path / "run" / "history.csv").exists()


def test_a_folder_that_is_not_a_run_is_refused(tmp_path, refusal):
    assert "is not a run" in refusal(load_run, tmp_path)
    assert "is not a run" in refusal(load_run, tmp_path / "missing")


def test_a_run_without_a_finished_epoch_is_refused(tmp_path, refusal):
    save_config(configured(), tmp_path / "config.yaml")
    assert "no epoch of this run has finished; resume its training" in refusal(load_run, tmp_path)


@pytest.mark.parametrize("changes", [{"model__filters": 8}, {"data__window_slices": 5}])
def test_weights_of_a_different_network_are_refused(copied, refusal, changes):
    save_config(configured(**changes).for_dataset(UWMGI, ("image",)), copied / "config.yaml")
    assert "does not fit" in refusal(load_model, load_run(copied))


def test_damaged_weights_are_refused(copied, refusal):
    best_weights_path(copied).write_bytes(b"no weights")
    assert str(best_weights_path(copied)) in refusal(load_model, load_run(copied))


@pytest.fixture
def recorded(tmp_path):
    """A recorder of a model with one weight, whose average differs."""
    (tmp_path / "checkpoints").mkdir()
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    model.schedule = lambda step: 0.1
    model.average = WeightAverage(model.trainable_variables, [], ema_share(0.5))
    manager = SimpleNamespace(save=lambda: None)
    recorder = RunRecorder(tmp_path, manager, tf.Variable(0, dtype=tf.int64), [])
    recorder.set_model(model)
    return recorder


def test_the_averaged_weights_of_the_epoch_with_the_highest_dice_are_kept(recorded):
    model = recorded.model
    (average,) = model.average.values
    for epoch, dice in enumerate([0.3, 0.6, 0.5, 0.6]):
        model.trainable_variables[0].assign([[10.0 + epoch]])
        average.assign([[20.0 + epoch]])
        recorded.on_epoch_begin(epoch)
        recorded.on_epoch_end(epoch, {"loss": 1.0, "val_loss": 1.0, "dice": 0.5, "val_dice": dice})
        assert (model.trainable_variables[0].numpy(), average.numpy()) == (10 + epoch, 20 + epoch)
    model.load_weights(best_weights_path(recorded.run))
    assert model.trainable_variables[0].numpy() == 21


def test_a_worker_saves_best_weights_in_the_same_epochs_as_the_chief(recorded, tmp_path):
    more, decided = {"loss": 1.0, "learning_rate": 0.1, "seconds": 1.0}, []
    rows = [{"epoch": 1, "val_dice": 0.4} | more, {"epoch": 2, "val_dice": 0.7} | more]
    write_history(tmp_path, rows)
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "other"):
        recorder = RunRecorder(folder, recorded.manager, tf.Variable(2, dtype=tf.int64), rows)
        recorder.set_model(recorded.model)
        saved = []
        for epoch, dice in enumerate([0.6, 0.8, 0.75], 2):
            best_weights_path(folder).unlink(missing_ok=True)
            recorder.on_epoch_begin(epoch)
            recorder.on_epoch_end(epoch, {"loss": 1.0, "val_dice": dice})
            saved.append(best_weights_path(folder).is_file())
        decided.append(saved)
        assert [row["val_dice"] for row in read_history(folder)] == [0.4, 0.7, 0.6, 0.8, 0.75]
    assert decided == [[False, True, False]] * 2


def test_validation_uses_averaged_weights_and_training_continues_with_its_own(recorded):
    model = recorded.model
    (average,) = model.average.values
    model.trainable_variables[0].assign([[3.0]])
    average.assign([[5.0]])
    squared_error = model.evaluate(np.ones((1, 1)), np.zeros((1, 1)), verbose=0, callbacks=[AveragedValidation()])
    assert squared_error == pytest.approx(25)
    assert (model.trainable_variables[0].numpy(), average.numpy()) == (3, 5)


def test_a_failed_write_leaves_the_previous_best_weights(recorded, monkeypatch):
    def broken(self, path):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    best_weights_path(recorded.run).write_bytes(b"the best so far")
    monkeypatch.setattr(keras.Model, "save_weights", broken)
    recorded.on_epoch_begin(0)
    with pytest.raises(OSError, match="no space"):
        recorded.on_epoch_end(0, {"loss": 1.0, "val_loss": 1.0, "dice": 0.5, "val_dice": 0.5})
    assert os.listdir(recorded.run / "checkpoints") == ["best.weights.h5"]
    assert best_weights_path(recorded.run).read_bytes() == b"the best so far"
