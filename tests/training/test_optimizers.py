import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.config import load_config
from gitseg_tf.training.optimizers import build_optimizer

STEPS = 100


def configured(**changes):
    return load_config(None, {f"training.{key}": value for key, value in changes.items()}).training


def optimizer_for(variables, steps=STEPS, **changes):
    optimizer = build_optimizer(configured(**changes), steps)
    optimizer.build(variables)
    return optimizer


def rate_at(step, **changes):
    variable = tf.Variable([1.0], name="kernel")
    optimizer = optimizer_for([variable], **changes)
    optimizer.iterations.assign(step)
    optimizer.apply_gradients([(tf.zeros(1), variable)])
    return float(optimizer.learning_rate)


@pytest.mark.parametrize(
    ("step", "share"),
    [
        (0, 0),
        (5, 0.5),
        (10, 1),
        (55, 0.5),
        (40, 0.5 * (1 + math.cos(math.pi / 3))),
        (100, 0),
        (150, 0),
    ],
)
def test_the_rate_rises_to_the_peak_and_falls_to_zero_as_a_cosine(step, share):
    assert rate_at(step, learning_rate=0.02, warmup=0.1) == pytest.approx(0.02 * share, abs=1e-7)


def test_without_warm_up_the_rate_starts_at_the_peak():
    assert rate_at(0, learning_rate=0.02, warmup=0) == pytest.approx(0.02)
    assert rate_at(50, learning_rate=0.02, warmup=0) == pytest.approx(0.01)


def test_weight_decay_shrinks_kernels_and_spares_biases_and_normalisation():
    convolution = keras.layers.Conv2D(2, 3, bias_initializer="ones")
    normalization = keras.layers.BatchNormalization(beta_initializer="ones")
    model = keras.Sequential([convolution, normalization])
    model.build((None, 8, 8, 3))
    before = [variable.numpy() for variable in model.trainable_variables]
    optimizer = optimizer_for(model.trainable_variables, learning_rate=0.1, warmup=0, weight_decay=0.25)
    optimizer.apply_gradients([(tf.zeros_like(variable), variable) for variable in model.trainable_variables])
    kept = [convolution.bias, normalization.gamma, normalization.beta]
    assert len(before) == 4 and all(np.all(variable.numpy() == 1) for variable in kept)
    assert convolution.kernel.numpy() == pytest.approx(before[0] * (1 - 0.1 * 0.25), rel=1e-6)


def test_the_moving_average_starts_fast_and_ends_at_its_decay():
    variable = tf.Variable([1.0, -2.0], name="kernel")
    optimizer = optimizer_for([variable], ema=0.6, learning_rate=0.5, warmup=0)
    average = variable.numpy().astype(float)
    rng, decays = np.random.default_rng(5), []
    for step in range(20):
        optimizer.apply_gradients([(tf.constant(rng.normal(size=2), tf.float32), variable)])
        decays.append(min(0.6, (1 + step) / (10 + step)))
        average = decays[-1] * average + (1 - decays[-1]) * variable.numpy()
    assert decays[0] == 0.1 and decays[-1] == 0.6
    optimizer.swap_average([variable])
    assert variable.numpy() == pytest.approx(average, rel=1e-5)


def adamw(weights, gradients, config, rate):
    """Decoupled weight decay (Loshchilov & Hutter 2017, algorithm 2) after clipping by the global norm."""
    first, second = [[np.zeros(w.shape) for w in weights] for _ in range(2)]
    for step, gradient in enumerate(gradients, 1):
        norm = math.sqrt(sum((g**2).sum() for g in gradient))
        for k, g in enumerate(gradient):
            g = g * min(1, config.clip_norm / norm)
            first[k] = 0.9 * first[k] + 0.1 * g
            second[k] = 0.999 * second[k] + 0.001 * g**2
            direction = first[k] / (1 - 0.9**step) / (np.sqrt(second[k] / (1 - 0.999**step)) + 1e-7)
            weights[k] = weights[k] - rate(step - 1) * (direction + config.weight_decay * weights[k])
    return weights


def test_steps_are_those_of_adamw_with_gradients_clipped_by_their_global_norm():
    changes = {"learning_rate": 0.05, "warmup": 0, "weight_decay": 0.1, "clip_norm": 1.0}
    rng = np.random.default_rng(6)
    start = [rng.normal(size=shape) for shape in ((3, 2), (4,))]
    # Norms from far below to far above the limit, for Adam alone does not care about a common factor.
    gradients = [[scale * rng.normal(size=w.shape) for w in start] for scale in (30, 0.1, 3, 0.01, 0.3)]
    variables = [tf.Variable(w, dtype=tf.float32, name=f"kernel{k}") for k, w in enumerate(start)]
    optimizer = optimizer_for(variables, **changes)
    for gradient in gradients:
        optimizer.apply_gradients([(tf.constant(g, tf.float32), v) for g, v in zip(gradient, variables, strict=True)])
    ends = adamw(start, gradients, configured(**changes), lambda step: 0.025 * (1 + math.cos(math.pi * step / STEPS)))
    for variable, end in zip(variables, ends, strict=True):
        assert variable.numpy() == pytest.approx(end, rel=1e-4, abs=1e-5)


def test_swapping_the_average_twice_changes_nothing():
    variables = [tf.Variable([1.0, 2.0], name="kernel"), tf.Variable([[3.0]], name="bias")]
    optimizer = optimizer_for(variables, learning_rate=0.5, warmup=0)
    for _ in range(3):
        optimizer.apply_gradients([(tf.ones_like(variable), variable) for variable in variables])
    everything = [variable.numpy() for variable in (*variables, *optimizer.variables)]
    optimizer.swap_average(variables)
    assert not np.array_equal(variables[0], everything[0]) and not np.array_equal(variables[1], everything[1])
    optimizer.swap_average(variables)
    assert all(map(np.array_equal, [v.numpy() for v in (*variables, *optimizer.variables)], everything))


def test_without_a_moving_average_the_weights_stay_where_they_are():
    variable = tf.Variable([1.0], name="kernel")
    optimizer = optimizer_for([variable], ema=0, warmup=0)
    optimizer.apply_gradients([(tf.ones(1), variable)])
    value = variable.numpy()
    optimizer.swap_average([variable])
    assert variable.numpy() == value != 1
