"""Runs that start from another run's network: weights, table, provenance, freezing, resuming, and what is refused."""

import shutil

import numpy as np
import pytest
from helpers.configs import tiny_config

from gitseg_tf.config import load_config
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.models.build import build_model
from gitseg_tf.models.transfer import weighted_layers
from gitseg_tf.runs.folder import best_weights_path, has_begun, read_history
from gitseg_tf.runs.initialization import read_table
from gitseg_tf.runs.run import load_run
from gitseg_tf.training.callbacks.recorder import EpochBars
from gitseg_tf.training.cross_validation import train_folds
from gitseg_tf.training.initial_weights import read_initial_weights
from gitseg_tf.training.run_folder import open_run
from gitseg_tf.training.trainer import train


@pytest.fixture(scope="module")
def other_dataset(make_cohort, tmp_path_factory):
    """Other patients than those of tiny_dataset."""
    scans = [(f"case{k}_day0", (40, 64), range(1, 9)) for k in (11, 12, 13)]
    cohort = make_cohort(tmp_path_factory.mktemp("other") / "cohort", scans=scans)
    return convert(cohort.root, tmp_path_factory.mktemp("other") / "dataset", folds=3, workers=1)


@pytest.fixture(scope="module")
def source(other_dataset, tmp_path_factory):
    """A run on two labels, with random weights and statistics instead of trained ones."""
    path = tmp_path_factory.mktemp("source") / "run"
    config = tiny_config(data__labels=["stomach", "large_bowel"]).for_dataset(other_dataset.labels, ("image",))
    open_run(path, config, other_dataset, resume=False)
    model, rng = build_model(config), np.random.default_rng(1)
    model.set_weights([array + 0.1 * rng.random(array.shape, np.float32) for array in model.get_weights()])
    model.save_weights(best_weights_path(path))
    return load_run(path)


def best_layers(run):
    model = build_model(run.config)
    model.load_weights(run.weights)
    return {name: layer.get_weights() for name, layer in weighted_layers(model).items()}


def initial(config, dataset):
    return read_initial_weights(config.for_dataset(dataset.labels, dataset.channels), dataset)


def held_back(source, **changes):
    """Nothing but the head moves in the first of two epochs."""
    keys = {"model__init": str(source.path), "training__freeze_epochs": 1, "training__epochs": 2, "data__batch_size": 8}
    return tiny_config(**keys | {"training__ema_decay": 0, "evaluation__threshold": 0.1} | changes)


@pytest.mark.slow
def test_a_run_starts_from_another_one_and_says_what_it_took(source, tiny_dataset, tmp_path, caplog):
    caplog.set_level("INFO", "gitseg_tf")
    run = train(held_back(source), tiny_dataset, tmp_path / "run")
    rows = {row["layer"]: row for row in read_table(run.path)}
    assert rows["logits"]["status"] == "adapted"
    assert rows["logits"]["note"] == "large_bowel, stomach kept, small_bowel new"
    assert {row["status"] for name, row in rows.items() if name != "logits"} == {"loaded"}
    total = sum(int(row["parameters"]) for row in rows.values())
    assert total == build_model(run.config).count_params()
    lines = [record.getMessage() for record in caplog.records]
    first = next(i for i, line in enumerate(lines) if line.startswith("init  "))
    assert lines[first].endswith(f"{len(rows) - 1} of {len(rows)} layers loaded, 1 adapted, 0 new")
    assert not any(line.startswith("initial ") for line in lines) and "unfreezing the loaded layers" in caplog.text
    known = load_config(run.path / "config.yaml")
    assert known.model.init == str(source.path) and known.provenance["init"]["path"] == str(source.path)
    assert known.provenance["init"]["seen"] == {
        source.config.provenance["dataset"]: source.config.provenance["trained_on"]
    }


def stop_after(patch, epoch):
    def end(self, number, logs=None):
        original(self, number, logs)
        if number == epoch:
            raise KeyboardInterrupt

    original = EpochBars.on_epoch_end
    patch.setattr(EpochBars, "on_epoch_end", end)


@pytest.mark.slow
def test_frozen_layers_keep_their_weights_and_a_resumed_run_needs_no_source(source, tiny_dataset, tmp_path):
    config = held_back(source)
    whole = train(config, tiny_dataset, tmp_path / "whole")
    moved = shutil.copytree(source.path, tmp_path / "source")
    config = held_back(source, model__init=str(moved))
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 0)
        train(config, tiny_dataset, tmp_path / "run")
    shutil.rmtree(moved)
    one_epoch = build_model(whole.config)
    one_epoch.load_weights(tmp_path / "run" / "checkpoints" / "best.weights.h5")
    theirs, ours = best_layers(source), weighted_layers(one_epoch)
    for name, arrays in theirs.items():
        same = all(np.array_equal(a, b) for a, b in zip(arrays, ours[name].get_weights(), strict=False))
        assert same == (name != "logits"), name
    run = train(config, tiny_dataset, tmp_path / "run", resume=True)
    assert run.config.provenance["init"]["path"] == str(moved)
    rows, expected = read_history(run.path), read_history(whole.path)
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], abs=1e-6)
    for name, arrays in best_layers(whole).items():
        assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(arrays, best_layers(run)[name], strict=True)), name
    last = best_layers(run)
    for name in ("encoder0_1_conv", "decoder1_2_conv"):
        assert not np.allclose(theirs[name][0], last[name][0])


@pytest.mark.parametrize("name", ["network.weights.h5", "network.h5"])
def test_a_file_of_weights_is_taken_by_layer_too(source, tiny_dataset, tmp_path, caplog, name):
    """Without a config, the labels of its outputs are not known, so the head is new."""
    model = build_model(source.config)
    model.load_weights(source.weights)
    model.save_weights(tmp_path / name)
    taken = initial(tiny_config(model__init=str(tmp_path / name)), tiny_dataset)
    theirs = best_layers(source)
    assert taken.weights.keys() == theirs.keys() - {"logits"}
    assert all(np.array_equal(a, b) for k in taken.weights for a, b in zip(taken.weights[k], theirs[k], strict=True))
    assert "does not say which patients it was trained on" in caplog.text
    wider = initial(tiny_config(model__init=str(tmp_path / name), data__window_slices=5), tiny_dataset)
    stem = theirs["encoder0_1_conv"][0]
    mean = np.repeat(stem.mean(2, keepdims=True), 5, 2) * 3 / 5
    assert np.allclose(wider.weights["encoder0_1_conv"][0], mean, atol=1e-6)


def test_a_network_without_a_fitting_convolution_is_refused_before_the_run_folder_is_written(
    source, tiny_dataset, tmp_path, refusal
):
    config = tiny_config(model__init=str(source.path), model__filters=8)
    message = refusal(train, config, tiny_dataset, tmp_path / "run")
    assert message.startswith(f"{source.path}: no convolution of its network (unet_plain) fits this one (unet_plain); ")
    assert not has_begun(tmp_path / "run")


def test_a_run_on_held_out_patients_is_refused(source, other_dataset, tmp_path, refusal):
    config = tiny_config(model__init=str(source.path), data__fold=1)
    message = refusal(train, config, other_dataset, tmp_path / "run")
    assert "was trained on patients held out here (case1" in message and not has_begun(tmp_path / "run")
    initial(tiny_config(model__init=str(source.path), data__fold=0), other_dataset)
    initial(tiny_config(model__init=str(source.path), data__fold=None), other_dataset)


def test_a_cross_validation_is_refused_as_a_whole_before_its_first_fold(source, other_dataset, tmp_path, refusal):
    message = refusal(train_folds, tiny_config(model__init=str(source.path)), other_dataset, tmp_path / "folds")
    assert "was trained on patients held out here (case1" in message and not (tmp_path / "folds").exists()


def test_a_damaged_file_is_refused(tiny_dataset, tmp_path, refusal):
    (tmp_path / "network.h5").write_bytes(b"not HDF5")
    config = tiny_config(model__init=str(tmp_path / "network.h5"))
    assert f"{tmp_path / 'network.h5'}: is damaged, or not of the network" in refusal(initial, config, tiny_dataset)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model.init": "runs/a", "model.pretrained": "imagenet"}, "init is runs/a and pretrained is imagenet"),
        ({"training.freeze_epochs": 1}, "training.freeze_epochs is 1, but no layer is loaded; set model.init or"),
        ({"training.unfreeze_warmup_epochs": 0.5}, "training.unfreeze_warmup_epochs is 0.5, but no layer is loaded"),
        ({"model.init": "runs/a", "training.freeze_epochs": 3}, "they must leave some of training.epochs (3)"),
    ],
)
def test_contradicting_keys_are_refused(refusal, changes, problem):
    message = refusal(load_config, None, changes)
    assert problem in message
