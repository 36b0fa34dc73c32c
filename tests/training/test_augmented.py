import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.config import load_config
from gitseg_tf.sections.augment import AugmentConfig
from gitseg_tf.training.callbacks import read_history
from gitseg_tf.training.step import TrainingModel
from gitseg_tf.training.trainer import train

ALL_OFF = {f"augment.{name}.p": 0 for name in ("flip", "affine", "elastic", "grid", "dropout")}
SETTINGS = ALL_OFF | {
    "data.size": [32, 32],
    "data.slices": 3,
    "data.fold": 1,
    "data.batch_size": 8,
    "model.filters": 4,
    "model.levels": 2,
    "training.epochs": 1,
    "training.strategy": "one_device",
    "training.precision": "float32",
}


def mean_of_windows(augment, jit_compile):
    """The loss of a model that gives back its first channel, where the loss is the mean of the output."""
    inputs = keras.Input((32, 32, 3))
    model = TrainingModel(
        inputs,
        keras.layers.Conv2D(3, 1, use_bias=False)(inputs),
        config=load_config(None, {"augment": augment.model_dump() | {"on": "accelerator"}}),
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
def test_a_training_step_changes_its_windows_and_a_validation_does_not(jit_compile):
    off = {name: {"p": 0} for name in ("flip", "affine", "elastic", "grid")}
    everything = AugmentConfig(**off, dropout={"p": 1, "holes": 1, "size": [1, 1]})
    trained, validated = mean_of_windows(everything, jit_compile)
    assert trained == 0 and validated == pytest.approx(0.7, abs=1e-4)


def refused(dataset, out, refusal, **changes):
    config = load_config(None, SETTINGS | {key.replace("__", "."): value for key, value in changes.items()})
    return refusal(train, config, dataset, out, say=lambda line: None)


def test_mixing_a_single_window_is_refused(drawn_dataset, tmp_path, refusal):
    changes = {"augment__on": "accelerator", "augment__mixup__p": 0.5, "data__batch_size": 1}
    assert "need two windows a replica" in refused(drawn_dataset, tmp_path / "run", refusal, **changes)


def test_the_warp_of_tensorflow_addons_without_them_is_refused_before_anything_is_written(
    drawn_dataset, tmp_path, refusal, monkeypatch
):
    monkeypatch.setattr("gitseg_tf.addons.importlib.util.find_spec", lambda name: None)
    changes = {"augment__on": "accelerator", "augment__accelerator_warp": "addons"}
    assert "tensorflow-addons is not installed" in refused(drawn_dataset, tmp_path / "run", refusal, **changes)
    assert not (tmp_path / "run").exists()


def test_excluding_a_whole_fold_is_told(drawn_dataset, tmp_path, refusal):
    held_out = [scan.id for scan in drawn_dataset.scans_of([1])]
    said = refused(drawn_dataset, tmp_path / "run", refusal, data__exclude_scans=held_out)
    assert "data.exclude_scans names all scans of fold 1" in said


def test_without_changes_a_run_is_that_of_the_host(drawn_dataset, tmp_path):
    losses = []
    for place in ("host", "accelerator"):
        config = load_config(None, SETTINGS | {"augment.on": place})
        train(config, drawn_dataset, tmp_path / place, say=lambda line: None)
        losses.append(read_history(tmp_path / place)[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_all_changes_are_drawn_and_made_inside_of_a_step_compiled_by_xla():
    names = [name for name in AugmentConfig.model_fields if name not in ("on", "accelerator_warp")]
    every = AugmentConfig(**{name: {"p": 0.5} for name in names})
    trained, validated = mean_of_windows(every, jit_compile=True)
    assert 0 < trained < 1 and abs(trained - validated) > 1e-3
