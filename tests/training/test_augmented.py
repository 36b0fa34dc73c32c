import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from helpers.configs import tiny_config

from gitseg_tf.config import load_config
from gitseg_tf.config.augment import AugmentConfig
from gitseg_tf.runs.folder import read_history
from gitseg_tf.training.step import TrainingModel
from gitseg_tf.training.trainer import train

ALL_OFF = {f"augment.{name}.p": 0 for name in ("flip", "affine", "elastic", "grid", "dropout")}
SETTINGS = ALL_OFF | {
    "data.input_size": [32, 32],
    "data.window_slices": 3,
    "data.fold": 1,
    "data.batch_size": 8,
    "model.filters": 4,
    "model.levels": 2,
    "training.epochs": 1,
    "training.strategy": "one_device",
    "training.precision": "float32",
}


def mean_of_windows(augment, jit_compile):
    """Training and validation loss of an identity model, where the loss is the mean of the output."""
    inputs = keras.Input((32, 32, 3))
    model = TrainingModel(
        inputs,
        keras.layers.Conv2D(3, 1, use_bias=False)(inputs),
        config=tiny_config(augment=augment.model_dump() | {"backend": "tensorflow"}),
        schedule=lambda step: 0.0,
        loss=lambda mask, output: tf.reduce_mean(output, axis=[1, 2, 3]),
    )
    model.set_weights([np.eye(3, dtype=np.float32)[None, None]])
    model.compile(keras.optimizers.SGD(0.0), weighted_metrics=[], jit_compile=jit_compile)
    windows = np.full((8, 32, 32, 3), 0.7, np.float32)
    masks = np.zeros((8, 32, 32, 3), np.float32)
    losses = [call(windows, masks, reset_metrics=True)[0] for call in (model.train_on_batch, model.test_on_batch)]
    return tuple(losses)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_training_steps_augment_and_validation_steps_do_not(jit_compile):
    off = {name: {"p": 0} for name in ("flip", "affine", "elastic", "grid")}
    everything = AugmentConfig(**off, dropout={"p": 1, "holes": 1, "size": [1, 1]})
    trained, validated = mean_of_windows(everything, jit_compile)
    assert trained == 0 and validated == pytest.approx(0.7, abs=1e-4)


def refused(dataset, out, refusal, **changes):
    config = load_config(None, SETTINGS | {key.replace("__", "."): value for key, value in changes.items()})
    return refusal(train, config, dataset, out)


def test_mixing_a_single_window_is_refused(tiny_dataset, tmp_path, refusal):
    changes = {"augment__backend": "tensorflow", "augment__mixup__p": 0.5, "data__batch_size": 1}
    assert "need at least two windows per replica" in refused(tiny_dataset, tmp_path / "run", refusal, **changes)


def test_the_addons_warp_without_addons_is_refused_before_anything_is_written(
    tiny_dataset, tmp_path, refusal, monkeypatch
):
    monkeypatch.setattr("gitseg_tf.core.addons.importlib.util.find_spec", lambda name: None)
    changes = {"augment__backend": "tensorflow", "augment__tensorflow_warp": "addons"}
    assert "tensorflow-addons is not installed" in refused(tiny_dataset, tmp_path / "run", refusal, **changes)
    assert not (tmp_path / "run").exists()


def test_excluding_a_whole_fold_is_refused(tiny_dataset, tmp_path, refusal):
    held_out = [scan.id for scan in tiny_dataset.scans_of([1])]
    message = refused(tiny_dataset, tmp_path / "run", refusal, data__exclude_scans=held_out)
    assert "data.exclude_scans excludes all scans of fold 1" in message


@pytest.mark.slow
def test_without_augmentation_both_backends_train_identically(tiny_dataset, tmp_path):
    losses = []
    for backend in ("opencv", "tensorflow"):
        config = load_config(None, SETTINGS | {"augment.backend": backend})
        train(config, tiny_dataset, tmp_path / backend)
        losses.append(read_history(tmp_path / backend)[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.xla
def test_all_augmentations_run_inside_an_xla_compiled_step():
    names = [name for name in AugmentConfig.model_fields if name not in ("backend", "tensorflow_warp", "tilt")]  # 2-D
    every = AugmentConfig(**{name: {"p": 0.5} for name in names})
    trained, validated = mean_of_windows(every, jit_compile=True)
    assert 0 < trained < 1 and abs(trained - validated) > 1e-3
