"""Batch normalisation in the kernels before it, against the same network without."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.models.folded import fold_normalization
from gitseg_tf.models.frozen import inference_network
from gitseg_tf.models.layers import AtrousSeparableConv, UpsampleConv, conv_block, normalized

LAYERS = {
    "convolution": lambda x: keras.layers.Conv2D(6, 3, use_bias=False)(x),
    "convolution with bias": lambda x: keras.layers.Conv2D(6, 3, bias_initializer="random_normal")(x),
    "depthwise": lambda x: keras.layers.DepthwiseConv2D(3, use_bias=False)(x),
    "upsampled": lambda x: UpsampleConv(6)([x]),
    "upsampled and joined": lambda x: UpsampleConv(6)([keras.layers.AveragePooling2D()(x), x]),
    "separable": lambda x: AtrousSeparableConv(6, 2)(x),
    "separable of one tap": lambda x: AtrousSeparableConv(6, 20)(x),
}


def network(make, size=12):
    inputs = keras.Input((size, size, 4))
    model = keras.Model(inputs, make(inputs))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, array.shape) for array in layer.get_weights()])
    return model, rng.standard_normal((3, *model.input_shape[1:])).astype(np.float32)


def normalizations(model):
    traced = tf.function(lambda x: model(x, training=False)).get_concrete_function(tf.TensorSpec(model.input_shape))
    graph = tf.function(inference_network(model)).get_concrete_function(tf.TensorSpec(model.input_shape)).graph
    written = graph.as_graph_def()
    nodes = [node.op for function in written.library.function for node in function.node_def]
    before = [op.type for op in traced.graph.get_operations()]
    return (sum(op.startswith("FusedBatchNorm") for op in ops) for ops in (before, nodes))


@pytest.mark.parametrize("kind", LAYERS)
def test_the_function_stays_and_the_normalisation_goes(kind):
    model, windows = network(lambda x: normalized(LAYERS[kind](x), "block"))
    expected = model(windows, training=False).numpy()
    found = inference_network(model)(windows).numpy()
    np.testing.assert_allclose(found, tf.sigmoid(expected), atol=1e-5)
    assert np.ptp(expected) > 1
    assert list(normalizations(model)) == [1, 0]


def shared(x):
    seen = keras.layers.Conv2D(4, 3, padding="same")(x)
    return keras.layers.Concatenate()([seen, keras.layers.BatchNormalization()(seen)])


NOT_FOLDED = {
    "seen by others": shared,
    "not linear": lambda x: keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, activation="relu")(x)),
    "after an activation": lambda x: keras.layers.BatchNormalization()(conv_block(x, 4, "first")),
    "two axes": lambda x: keras.layers.BatchNormalization()(keras.layers.DepthwiseConv2D(3, depth_multiplier=2)(x)),
    "of the input": lambda x: keras.layers.BatchNormalization()(x),
}


@pytest.mark.parametrize("kind", NOT_FOLDED)
def test_where_it_cannot_be_folded_it_stays(kind):
    model, windows = network(NOT_FOLDED[kind])
    expected = tf.sigmoid(model(windows, training=False))
    np.testing.assert_allclose(inference_network(model)(windows), expected, atol=1e-5)
    assert list(normalizations(model))[1] == 1


def test_neither_scale_nor_offset_are_needed():
    plain = keras.layers.BatchNormalization(center=False, scale=False)
    model, windows = network(lambda x: plain(keras.layers.Conv2D(4, 3)(x)))
    expected = model(windows, training=False)
    fold_normalization(model)
    np.testing.assert_allclose(model(windows, training=False), expected, atol=1e-5)
    np.testing.assert_allclose(plain.moving_variance, 1 - plain.epsilon)


def test_a_network_inside_of_another_is_folded_too():
    inner, _ = network(lambda x: conv_block(x, 4, "inner"))
    model, windows = network(lambda x: conv_block(inner(x), 4, "outer"))
    expected = tf.sigmoid(model(windows, training=False))
    np.testing.assert_allclose(inference_network(model)(windows), expected, atol=1e-5)
    assert list(normalizations(model)) == [2, 0]


@pytest.mark.parametrize("seen", ["convolution", "sum"])
def test_a_bias_that_goes_to_a_convolution_under_a_sum_is_not_seen_by_others(seen):
    norm = keras.layers.BatchNormalization()

    def joined(x):
        convolution = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(x)
        total = keras.layers.Add()([x, convolution])
        return keras.layers.Concatenate()([norm(total), {"convolution": convolution, "sum": total}[seen]])

    model, windows = network(joined)
    ones = np.ones(4, np.float32)
    norm.set_weights([ones, 2 * ones, 0 * ones, (1 - norm.epsilon) * ones])
    expected = tf.sigmoid(model(windows, training=False))
    np.testing.assert_allclose(inference_network(model)(windows), expected, atol=1e-5)
    assert list(normalizations(model)) == [1, 0]
