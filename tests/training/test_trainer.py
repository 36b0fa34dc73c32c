import csv
import dataclasses
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
from gitseg_tf.data.pipeline import steps_per_epoch, validation_windows
from gitseg_tf.training import agreement, setup, trainer
from gitseg_tf.training.averages import WeightAverage, ema_share
from gitseg_tf.training.callbacks import (
    AveragedValidation,
    EpochBars,
    RunRecorder,
    best_weights_path,
    read_history,
    write_history,
)
from gitseg_tf.training.trainer import load_model, load_run, train

EPOCHS = 3
SETTINGS = {
    "name": "tiny",
    "data.size": [32, 32],
    "data.slices": 3,
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
undisturbed_lines = []
MEASURES = ("loss", "dice", "dice_large_bowel", "dice_small_bowel", "dice_stomach")


def configured(**changes):
    return load_config(None, SETTINGS | {key.replace("__", "."): value for key, value in changes.items()})


def trained(dataset, run, resume=False, say=lambda line: None, **changes):
    return train(configured(**changes), dataset, run, resume, say=say)


def rows_of(run):
    """history.csv as written, without the time it took."""
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
    texts = [name for name in names if name.startswith("running/")]  # how far the running epoch is, compared elsewhere
    return {name: np.asarray(reader.get_tensor(name)) for name in set(names) - set(texts) if "save_counter" not in name}


def assert_same_state(one, other):
    one, other = state_of(one), state_of(other)
    assert one.keys() == other.keys() and len(one) > 80
    for name, value in one.items():
        assert np.allclose(value, other[name], atol=1e-5), name


@pytest.fixture(scope="module")
def undisturbed(drawn_dataset, tmp_path_factory):
    """A run of three epochs. Read it, leave it as it is."""
    return trained(drawn_dataset, tmp_path_factory.mktemp("runs") / "undisturbed", say=undisturbed_lines.append)


@pytest.fixture
def copied(undisturbed, tmp_path):
    """A copy of that run to change."""
    return shutil.copytree(undisturbed.path, tmp_path / "copied")


@pytest.fixture(scope="module")
def validated(undisturbed, drawn_dataset):
    """The held-out fold as the run's best model sees it: (mask, logits, weight) of each batch."""
    model = load_model(load_run(undisturbed.path))
    batches = validation_windows(drawn_dataset, undisturbed.config).as_numpy_iterator()
    return [(mask, model(image, training=False).numpy(), weight) for image, mask, weight in batches]


def best_row(run):
    return max(rows_of(run), key=lambda row: row["val_dice"])


def test_the_config_in_the_run_is_the_experiment_with_its_provenance(undisturbed, drawn_dataset):
    config = load_config(undisturbed.path / "config.yaml")
    assert config.model_copy(update={"provenance": {}}) == configured()
    assert config.provenance["dataset"] == drawn_dataset.source["fingerprint"]
    assert config.provenance["tensorflow"] == tf.__version__ and config.provenance["tf_keras"] == keras.__version__
    assert {"gitseg_tf", "python"} <= config.provenance.keys()


def test_the_history_has_a_finite_row_for_each_epoch(undisturbed):
    rows = rows_of(undisturbed.path)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert {*MEASURES, *(f"val_{name}" for name in MEASURES), "learning_rate"} <= rows[0].keys()
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(
        0 <= row[f"{when}dice{organ}"] <= 1 for row in rows for when in ("", "val_") for organ in ("", "_stomach")
    )


def test_the_learning_rate_ends_near_zero_where_the_schedule_ends(undisturbed, drawn_dataset):
    total = EPOCHS * steps_per_epoch(drawn_dataset, undisturbed.config)
    warmup = round(0.05 * total)
    # The rate of an epoch's last step.
    last = 3e-2 * 0.5 * (1 + math.cos(math.pi * (total - 1 - warmup) / (total - warmup)))
    assert rows_of(undisturbed.path)[-1]["learning_rate"] == pytest.approx(last, rel=1e-3)


def test_training_lowers_the_loss_and_raises_the_dice(undisturbed):
    first, *_, last = rows_of(undisturbed.path)
    assert last["loss"] < 0.9 * first["loss"] and last["dice"] > first["dice"]


@pytest.mark.parametrize(("folder", "prefix"), [("train", ""), ("validation", "val_")])
def test_tensorboard_shows_loss_and_dice_of_each_epoch(undisturbed, folder, prefix):
    events = EventAccumulator(str(undisturbed.path / "logs" / folder))
    events.Reload()
    for name in ("loss", "dice"):
        shown = [float(make_ndarray(event.tensor_proto)) for event in events.Tensors(f"epoch_{name}")]
        assert shown == pytest.approx([row[prefix + name] for row in rows_of(undisturbed.path)], abs=1e-5)


def test_tensorboard_shows_the_learning_rate_the_throughput_and_the_same_slices_in_each_epoch(undisturbed):
    train, validation = (EventAccumulator(str(undisturbed.path / "logs" / part)) for part in ("train", "validation"))
    train.Reload()
    validation.Reload()
    rates = [float(make_ndarray(event.tensor_proto)) for event in train.Tensors("epoch_learning_rate")]
    assert rates == pytest.approx([row["learning_rate"] for row in rows_of(undisturbed.path)], rel=1e-5)
    assert all(make_ndarray(event.tensor_proto) > 0 for event in train.Tensors("windows_per_second"))
    shown = [tag for tag in validation.Tags()["tensors"] if tag.startswith("overlays/")]
    assert shown and all([event.step for event in validation.Tensors(tag)] == [0, 1, 2] for tag in shown)


def test_the_loss_of_the_untrained_network_is_told_and_was_expected(undisturbed):
    (line,) = [line for line in undisturbed_lines if line.startswith(("initial", "warning"))]
    assert line.startswith("initial    loss")


def test_the_run_folder_holds_what_it_should_and_no_leftovers(undisturbed):
    assert {path.name for path in undisturbed.path.iterdir()} == {"config.yaml", "history.csv", "checkpoints", "logs"}
    assert {path.name for path in (undisturbed.path / "checkpoints").iterdir()} == {"best.weights.h5", "state"}


def test_the_best_weights_hold_the_network_alone(undisturbed):
    with h5py.File(undisturbed.weights) as file:
        assert "optimizer" not in file and len(file["layers"]) > 5


def test_the_best_weights_have_the_best_dice_of_the_history(undisturbed, validated):
    both, sizes = np.zeros(3), np.zeros(3)
    for mask, logits, weight in validated:
        truth, inside = mask[weight == 1] > 0, expit(logits[weight == 1]) >= 0.2
        both += (truth & inside).sum((0, 1, 2))
        sizes += truth.sum((0, 1, 2)) + inside.sum((0, 1, 2))
    row = best_row(undisturbed.path)
    dice = np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), 1)
    assert [row[f"val_{name}"] for name in MEASURES[1:]] == pytest.approx([dice.mean(), *dice], abs=1e-3)
    assert 0.05 < row["val_dice"] < 1


def test_the_validation_loss_is_the_mean_over_the_held_out_slices(undisturbed, validated):
    costs = []
    for mask, logits, weight in validated:
        bce = -(mask * log_expit(logits) + (1 - mask) * log_expit(-logits)).mean((1, 2, 3))
        probability = expit(logits)
        sums = (probability * mask).sum((0, 1, 2)), (probability + mask).sum((0, 1, 2))
        dice = np.mean(1 - (2 * sums[0] + 1) / (sums[1] + 1))
        costs += (bce + dice)[weight == 1].tolist()
    assert any((weight == 0).any() for _, _, weight in validated)
    assert best_row(undisturbed.path)["val_loss"] == pytest.approx(np.mean(costs), abs=1e-4)


def newest_overlays(run):
    """The PNGs of the last epoch, by what they show."""
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
def interrupted(drawn_dataset, tmp_path_factory):
    """interrupted(seed) is a run that was stopped in the middle of its second epoch."""

    def stop(seed):
        run = tmp_path_factory.mktemp("runs") / f"interrupted{seed}"
        with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
            interrupt(patch, epoch=1, batch=2)
            trained(drawn_dataset, run, seed=seed)
        assert len(rows_of(run)) == 1
        return run

    return cache(stop)


def test_the_same_seed_gives_the_same_history(undisturbed, interrupted):
    assert_same_history(rows_of(interrupted(0)), rows_of(undisturbed.path)[:1])


def test_another_seed_gives_another_history(undisturbed, interrupted):
    assert abs(rows_of(interrupted(1))[0]["loss"] - rows_of(undisturbed.path)[0]["loss"]) > 1e-3


def test_a_run_interrupted_within_an_epoch_ends_like_an_undisturbed_one(
    undisturbed, interrupted, drawn_dataset, tmp_path
):
    run = shutil.copytree(interrupted(0), tmp_path / "resumed")
    trained(drawn_dataset, run, resume=True)
    assert_same_history(rows_of(run), rows_of(undisturbed.path))
    assert_same_state(run, undisturbed.path)
    assert newest_overlays(run) == newest_overlays(undisturbed.path)


OPTIMISED = {
    "training__optimizer": "Addons>Lookahead",
    "training__schedule": "constant",
    "training__accumulate": 2,
    "training__encoder_rate": 0.5,
    "training__ema": 0,
    "training__swa": 2,
    "training__early_stopping": 9,
}


def test_accumulation_swa_and_an_optimizer_of_addons_resume_as_if_undisturbed(drawn_dataset, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    trained(drawn_dataset, whole, **OPTIMISED)
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        interrupt(patch, epoch=2, batch=1)
        trained(drawn_dataset, run, **OPTIMISED)
    assert len(rows_of(run)) == 2
    trained(drawn_dataset, run, resume=True, **OPTIMISED)
    assert_same_history(rows_of(run), rows_of(whole))
    assert_same_state(run, whole)
    assert_same_weights(best_weights_path(run), best_weights_path(whole))


def assert_same_weights(one, other):
    with h5py.File(one) as first, h5py.File(other) as second:
        names = []
        first.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        assert len(names) > 20 and all(np.allclose(first[name], second[name], atol=1e-5) for name in names)


def test_a_training_without_progress_ends_early_and_says_why(drawn_dataset, tmp_path):
    run, said = tmp_path / "run", []
    stopping = configured(training__early_stopping=1, training__learning_rate=1e-12)
    train(stopping, drawn_dataset, run, say=said.append)
    first, second = rows_of(run)
    assert (first["epochs_without_gain"], second["epochs_without_gain"]) == (0, 1)
    assert said[-1].startswith("stopped    after epoch 2: val_dice has not risen above the ")
    before = (run / "history.csv").read_bytes()
    train(stopping, drawn_dataset, run, resume=True, say=said.append)
    assert (run / "history.csv").read_bytes() == before and said[-1].startswith("stopped    after epoch 2")


KILLED = """
import os, signal, sys
from gitseg_tf.config import load_config
from gitseg_tf.data.dataset import load_dataset
from gitseg_tf.training.callbacks import EpochBars
from gitseg_tf.training.trainer import train

def end(self, batch, logs=None):
    if self.model.optimizer.iterations.numpy() == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

EpochBars.on_train_batch_end = end
train(load_config(sys.argv[1]), load_dataset(sys.argv[2]), sys.argv[3])
"""


def test_a_run_that_was_killed_is_finished_by_the_command_line(undisturbed, drawn_dataset, tmp_path, capfd):
    run, steps = tmp_path / "killed", steps_per_epoch(drawn_dataset, undisturbed.config)
    config = configured(data__path=str(drawn_dataset.root))
    save_config(config, tmp_path / "tiny.yaml")
    arguments = [tmp_path / "tiny.yaml", drawn_dataset.root, run, steps + 2]
    done = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], timeout=120, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert len(rows_of(run)) == 1 and not (run / "evaluation.json").exists()
    assert main(["train", "--out", str(run), "--resume"]) == 0
    assert "after epoch 1 of 3" in capfd.readouterr().out
    assert_same_history(rows_of(run), rows_of(undisturbed.path))
    assert_same_state(run, undisturbed.path)
    assert (run / "evaluation.json").is_file() and (run / "export" / "1").is_dir()


def test_resuming_a_finished_run_trains_nothing(copied, drawn_dataset):
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file() and path.name != "config.yaml"}
    run = trained(drawn_dataset, copied, resume=True)
    assert run.weights == best_weights_path(copied)
    assert before == {p: p.read_bytes() for p in copied.rglob("*") if p.is_file() and p.name != "config.yaml"}


def test_a_run_that_has_not_begun_is_begun_by_resume(copied, drawn_dataset, monkeypatch, tmp_path):
    begun = []

    def fit(model, config, dataset, run, manager, finished, *rest):
        begun.append(run)
        best_weights_path(run).touch()

    monkeypatch.setattr(trainer, "_fit", fit)
    trained(drawn_dataset, tmp_path / "new", resume=True)
    assert begun == [tmp_path / "new"] and (tmp_path / "new" / "config.yaml").is_file()


@pytest.mark.parametrize("part", ["compiled_model", "check_agreement", "_fit"])
def test_a_worker_that_is_lost_is_named_whenever_that_happens(drawn_dataset, monkeypatch, tmp_path, refusal, part):
    def lose(*args):
        raise tf.errors.UnavailableError(None, None, "socket closed")

    monkeypatch.setattr(trainer, part, lose)
    monkeypatch.setattr(agreement, "workers_of", lambda strategy: 2)
    monkeypatch.setattr(agreement, "_gathered", lambda strategy, values: np.array([values, values]))
    resolver = SimpleNamespace(task_id=1)
    monkeypatch.setattr(tf.distribute.Strategy, "cluster_resolver", property(lambda self: resolver))
    said = refusal(trained, drawn_dataset, tmp_path / "run")
    assert "another worker than this one (number 1) is gone" in said and "--resume" in said


def test_a_run_that_is_there_is_not_overwritten(copied, drawn_dataset, refusal):
    before = (copied / "config.yaml").read_bytes()
    said = refusal(trained, drawn_dataset, copied)
    assert str(copied) in said and "--resume" in said and "--out" in said
    assert (copied / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "section"),
    [({"model__filters": 8}, "model"), ({"data__empty_slices": 0.5}, "data"), ({"data__batch_size": 8}, "data")],
)
def test_a_run_is_not_resumed_with_another_network_or_other_samples(copied, drawn_dataset, refusal, changes, section):
    before = (copied / "config.yaml").read_bytes()
    said = refusal(trained, drawn_dataset, copied, resume=True, **changes)
    assert f"{section}." in said and "is now" in said and str(copied) in said
    assert (copied / "config.yaml").read_bytes() == before


def test_a_run_is_not_resumed_with_another_seed(copied, drawn_dataset, refusal):
    assert "seed was 0 and is now 5" in refusal(trained, drawn_dataset, copied, resume=True, seed=5)


def test_epochs_without_their_checkpoint_are_not_trained_over(copied, drawn_dataset, refusal):
    before = best_weights_path(copied).read_bytes()
    shutil.rmtree(copied / "checkpoints" / "state")
    assert "checkpoint is gone" in refusal(trained, drawn_dataset, copied, resume=True, training__epochs=4)
    assert best_weights_path(copied).read_bytes() == before and len(rows_of(copied)) == EPOCHS


@pytest.mark.parametrize("ending", ["index", "data-00000-of-00001"])
def test_a_damaged_checkpoint_is_named(copied, drawn_dataset, refusal, ending):
    for path in (copied / "checkpoints" / "state").glob(f"*.{ending}"):
        path.write_bytes(path.read_bytes()[:100])
    said = refusal(trained, drawn_dataset, copied, resume=True, training__epochs=4)
    assert "checkpoint is damaged" in said and str(copied) in said


@pytest.mark.parametrize("content", ["epoch,loss\nfoo,1\n", "epoch,loss\n1\n", "\xff\xfe"])
def test_a_damaged_history_is_named(copied, drawn_dataset, refusal, content):
    (copied / "history.csv").write_bytes(content.encode("latin-1"))
    said = refusal(trained, drawn_dataset, copied, resume=True, training__epochs=4)
    assert str(copied / "history.csv") in said


def test_a_run_is_not_resumed_on_another_dataset(copied, drawn_dataset, refusal):
    other = dataclasses.replace(drawn_dataset, source={**drawn_dataset.source, "fingerprint": "0" * 64})
    assert "another dataset" in refusal(trained, other, copied, resume=True)


def test_a_dataset_that_moved_may_be_resumed_with(copied, drawn_dataset, tmp_path):
    moved = dataclasses.replace(drawn_dataset, root=shutil.copytree(drawn_dataset.root, tmp_path / "moved"))
    trained(moved, copied, resume=True, data__path=str(moved.root))
    assert load_config(copied / "config.yaml").provenance["records"] == str(moved.root.resolve())


def test_a_run_without_averages_is_not_resumed_with_them(drawn_dataset, monkeypatch, tmp_path, refusal):
    run, fit = tmp_path / "run", trainer._fit

    def save_at_once(model, config, dataset, run, manager, finished, *rest):
        best_weights_path(run).touch()
        manager.save()

    monkeypatch.setattr(trainer, "_fit", save_at_once)
    trained(drawn_dataset, run, training__ema=0)
    monkeypatch.setattr(trainer, "_fit", fit)
    said = refusal(trained, drawn_dataset, run, resume=True, training__ema=0.9)
    assert str(run) in said and "training.ema" in said


def test_a_batch_that_the_replicas_cannot_share_is_refused(drawn_dataset, monkeypatch, tmp_path, refusal):
    strategy = SimpleNamespace(num_replicas_in_sync=3)
    monkeypatch.setattr(setup, "choose_strategy", lambda name: (strategy, "three replicas"))
    said = refusal(trained, drawn_dataset, tmp_path / "run")
    assert "data.batch_size is 4" in said and "3 replicas" in said and not (tmp_path / "run").exists()


def test_a_batch_that_the_parts_of_a_step_cannot_share_is_refused(drawn_dataset, tmp_path, refusal):
    said = refusal(trained, drawn_dataset, tmp_path / "run", training__accumulate=3)
    assert "data.batch_size is 4" in said and "training.accumulate (3)" in said and not (tmp_path / "run").exists()


def test_an_optimizer_that_is_not_there_is_refused_before_anything_is_written(drawn_dataset, tmp_path, refusal):
    said = refusal(trained, drawn_dataset, tmp_path / "run", training__optimizer="Addons>Lamb")
    assert "did you mean Addons>LAMB?" in said and not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_ends_the_run_with_advice(drawn_dataset, tmp_path, refusal):
    said = refusal(trained, drawn_dataset, tmp_path / "run", training__loss__bce__weight=1e38)
    assert re.match(r"epoch 1, step [12]: the loss is", said) and "training.learning_rate" in said
    assert not best_weights_path(tmp_path / "run").exists() and not (tmp_path / "run" / "history.csv").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path, refusal):
    assert "is no run" in refusal(load_run, tmp_path)
    assert "is no run" in refusal(load_run, tmp_path / "missing")


def test_a_run_without_a_finished_epoch_is_refused(tmp_path, refusal):
    save_config(configured(), tmp_path / "config.yaml")
    assert "no epoch" in refusal(load_run, tmp_path) and "--resume" in refusal(load_run, tmp_path)


@pytest.mark.parametrize("changes", [{"model__filters": 8}, {"data__slices": 5}])
def test_weights_of_another_network_are_refused(copied, refusal, changes):
    save_config(configured(**changes), copied / "config.yaml")
    assert "does not fit" in refusal(load_model, load_run(copied))


def test_damaged_weights_are_refused(copied, refusal):
    best_weights_path(copied).write_bytes(b"no weights")
    assert str(best_weights_path(copied)) in refusal(load_model, load_run(copied))


@pytest.fixture
def recorded(tmp_path):
    """A recorder of a model with one weight, whose average lags behind."""
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


def test_a_worker_without_the_run_folder_saves_in_the_epochs_in_which_its_chief_does(recorded, tmp_path):
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


def test_validation_sees_the_averaged_weights_and_training_goes_on_with_its_own(recorded):
    model = recorded.model
    (average,) = model.average.values
    model.trainable_variables[0].assign([[3.0]])
    average.assign([[5.0]])
    squared_error = model.evaluate(np.ones((1, 1)), np.zeros((1, 1)), verbose=0, callbacks=[AveragedValidation()])
    assert squared_error == pytest.approx(25)
    assert (model.trainable_variables[0].numpy(), average.numpy()) == (3, 5)


def test_nothing_is_left_of_weights_that_could_not_be_written(recorded, monkeypatch):
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
