"""Frozen layers, compared with a network in which Keras itself does not train them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers.frozen import FROZEN, IMAGES, KEYS, LOADED, MASKS, STEPS, WARMUP, network, squared, trained, weights_of

from gitseg_tf.training.optim.optimizers import build_optimizer
from gitseg_tf.training.optim.schedules import Schedule


def assert_same(one, other, atol=1e-6):
    for name in one:
        for a, b in zip(one[name], other[name], strict=True):
            np.testing.assert_allclose(a, b, atol=atol, rtol=0, err_msg=name)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_frozen_epochs_train_the_rest_as_if_keras_did_not_train_the_loaded_layers(optimizer):
    reference = network(optimizer)
    for name in LOADED:
        reference.get_layer(name).trainable = False
    head = reference.get_layer("logits").trainable_variables
    config = reference._settings.training
    optimizer_alone = build_optimizer(config, Schedule(config, 100), head)
    for start in list(range(0, len(IMAGES), 4)) * FROZEN:
        with tf.GradientTape() as tape:
            outputs = reference(IMAGES[start : start + 4], training=True)
            loss = tf.reduce_mean(squared(MASKS[start : start + 4], outputs))
        gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, head), config.clip_norm)
        head[0].assign_sub(config.learning_rate * config.weight_decay * head[0])
        optimizer_alone.apply_gradients(zip(gradients, head, strict=True))
    model = network(optimizer, freeze_epochs=FROZEN)
    before = weights_of(model)
    after = trained(model, FROZEN)
    assert_same({name: before[name] for name in LOADED}, after, atol=0)
    assert_same(weights_of(reference), after)
    assert np.abs(after["logits"][0] - before["logits"][0]).max() > 1e-3


def test_then_all_layers_train():
    model = network(freeze_epochs=FROZEN)
    before = weights_of(model)
    after = trained(model, FROZEN + 1)
    for name in before:
        assert all(np.abs(a - b).max() > 1e-5 for a, b in zip(before[name], after[name], strict=True)), name


def test_the_rate_of_the_loaded_layers_rises_after_freezing():
    freezing = network(freeze_epochs=FROZEN, unfreeze_warmup_epochs=WARMUP).freezing
    shares = [float(freezing.share(tf.constant(step, tf.int64))) for step in range(STEPS * 5)]
    assert shares[: STEPS * FROZEN] == [0.0] * STEPS * FROZEN
    rising = [(k + 1) / (STEPS * WARMUP) for k in range(STEPS * WARMUP)]
    assert shares[STEPS * FROZEN : STEPS * (FROZEN + WARMUP)] == pytest.approx(rising)
    assert shares[STEPS * (FROZEN + WARMUP) :] == [1.0] * STEPS


def test_the_first_updates_after_freezing_are_not_larger_than_the_learning_rate():
    """Adam with moments of zero would take steps of 3 to 6 times the learning rate."""
    model = network(freeze_epochs=4, weight_decay=0)
    before = trained(model, 4)
    after = trained(model, 5, first=4)
    change = np.abs(after["encoder_conv"][0] - before["encoder_conv"][0]).max()
    assert 0 < change < 1.5 * STEPS * KEYS["learning_rate"]


@pytest.mark.slow
def test_a_resumed_run_freezes_the_same_epochs(tmp_path):
    keys = {"freeze_epochs": FROZEN, "unfreeze_warmup_epochs": WARMUP}
    whole = trained(network(**keys), 4)
    for stop in (1, 2, 3):
        first = network(**keys)
        trained(first, stop)
        path = tf.train.Checkpoint(model=first, optimizer=first.optimizer).save(str(tmp_path / f"state{stop}"))
        second = network(**keys)
        state = tf.train.Checkpoint(model=second, optimizer=second.optimizer).restore(path)
        state.assert_existing_objects_matched()
        assert_same(whole, trained(second, 4, first=stop))


@pytest.mark.xla
def test_freezing_compiles_with_xla():
    keys = {"freeze_epochs": FROZEN, "unfreeze_warmup_epochs": WARMUP}
    assert_same(trained(network(**keys), 4), trained(network(jit_compile=True, **keys), 4), atol=1e-4)


def test_nothing_is_frozen_without_loaded_layers_or_epochs():
    assert network().freezing is None


@pytest.mark.process
def test_two_replicas_freeze_like_one_device():
    script = Path(__file__).parents[2] / "helpers" / "frozen.py"
    paths = os.pathsep.join([str(script.parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["held"] == 0 and seen["differ"] < 1e-5
    assert all(distance > 1e-4 for distance in seen["moved"].values()), seen
