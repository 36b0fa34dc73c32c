"""Batch normalization folded into the preceding kernels, against the original network."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from helpers.configs import tiny_config

from gitseg_tf.config.model import DECODERS
from gitseg_tf.models.backbones import BACKBONES
from gitseg_tf.models.build import build_model
from gitseg_tf.models.freezing.fold_batchnorm import fold_normalization
from gitseg_tf.models.freezing.freeze import inference_network
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
    for layer in model.submodules:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, array.shape) for array in layer.get_weights()])
    return model, rng.standard_normal((3, *model.input_shape[1:])).astype(np.float32)


def frozen_nodes(model):
    graph = tf.function(inference_network(model)).get_concrete_function(tf.TensorSpec(model.input_shape)).graph
    return [node for function in graph.as_graph_def().library.function for node in function.node_def]


def normalizations(model):
    traced = tf.function(lambda x: model(x, training=False)).get_concrete_function(tf.TensorSpec(model.input_shape))
    before, after = [op.type for op in traced.graph.get_operations()], [node.op for node in frozen_nodes(model)]
    return (sum(op.startswith("FusedBatchNorm") for op in ops) for ops in (before, after))


@pytest.mark.parametrize("kind", LAYERS)
def test_folding_removes_the_normalization_and_keeps_the_outputs(kind):
    model, windows = network(lambda x: normalized(LAYERS[kind](x), "block"))
    expected = model(windows, training=False).numpy()
    actual = inference_network(model)(windows).numpy()
    np.testing.assert_allclose(actual, tf.sigmoid(expected), atol=1e-5)
    assert np.ptp(expected) > 1
    assert list(normalizations(model)) == [1, 0]


def shared(x):
    seen = keras.layers.Conv2D(4, 3, padding="same")(x)
    return keras.layers.Concatenate()([seen, keras.layers.BatchNormalization()(seen)])


def also_returned(x):
    inputs = keras.Input(x.shape[1:])
    seen = keras.layers.Conv2D(4, 3, padding="same")(inputs)
    return keras.layers.Concatenate()(keras.Model(inputs, [seen, keras.layers.BatchNormalization()(seen)])(x))


def twice(x):
    norm = keras.layers.BatchNormalization()
    return keras.layers.Concatenate()([norm(keras.layers.Conv2D(4, 3)(x)) for _ in range(2)])


def applied_twice(x):
    layer = keras.layers.Conv2D(4, 3)
    given = keras.Input(x.shape[1:])
    inner = keras.Model(given, [keras.layers.BatchNormalization()(layer(given)), layer(keras.layers.ReLU()(given))])
    return keras.layers.Concatenate()(inner(x))


NOT_FOLDED = {
    "used by others": shared,
    "an output of its model": also_returned,
    "of a kernel whose output is used elsewhere": applied_twice,
    "not linear": lambda x: keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, activation="relu")(x)),
    "after an activation": lambda x: keras.layers.BatchNormalization()(conv_block(x, 4, "first")),
    "two axes": lambda x: keras.layers.BatchNormalization()(keras.layers.DepthwiseConv2D(3, depth_multiplier=2)(x)),
    "of the input": lambda x: keras.layers.BatchNormalization()(x),
}


@pytest.mark.parametrize("kind", NOT_FOLDED)
def test_normalization_that_cannot_be_folded_is_kept(kind):
    model, windows = network(NOT_FOLDED[kind])
    expected = tf.sigmoid(model(windows, training=False))
    np.testing.assert_allclose(inference_network(model)(windows), expected, atol=1e-5)
    assert list(normalizations(model))[1] == 1


def test_normalization_shared_by_two_inputs_is_kept():
    model, windows = network(twice)
    expected = tf.sigmoid(model(windows, training=False))
    np.testing.assert_allclose(inference_network(model)(windows), expected, atol=1e-5)
    assert list(normalizations(model)) == [2, 2]


def left_after_folding(architecture, backbone):
    settings = {"model.architecture": architecture, "model.backbone": backbone, "model.levels": 5}
    model = build_model(tiny_config(data__input_size=[64, 64], **settings))
    norms = [layer for layer in model.submodules if isinstance(layer, keras.layers.BatchNormalization)]
    for norm in norms:
        norm.moving_variance.assign(2 * norm.moving_variance)
    fold_normalization(model)
    return [norm.name for norm in norms if (norm.moving_variance.numpy() == 2).any()]


@pytest.mark.parametrize("architecture", DECODERS)
def test_only_the_segformer_decoder_keeps_a_normalization(architecture):
    assert left_after_folding(architecture, "plain") == ["decoder_bn"] * (architecture == "segformer")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_encoders_keep_no_normalization(whole_table, backbone):
    assert left_after_folding("deeplabv3plus", backbone) == []


def test_normalization_without_scale_and_offset_is_folded():
    plain = keras.layers.BatchNormalization(center=False, scale=False)
    model, windows = network(lambda x: plain(keras.layers.Conv2D(4, 3)(x)))
    expected = model(windows, training=False)
    fold_normalization(model)
    np.testing.assert_allclose(model(windows, training=False), expected, atol=1e-5)
    np.testing.assert_allclose(plain.moving_variance, 1 - plain.epsilon)


def test_a_nested_network_is_folded():
    inner, _ = network(lambda x: conv_block(x, 4, "inner"))
    model, windows = network(lambda x: conv_block(inner(x), 4, "outer"))
    expected = tf.sigmoid(model(windows, training=False))
    np.testing.assert_allclose(inference_network(model)(windows), expected, atol=1e-5)
    assert list(normalizations(model)) == [2, 0]


def test_a_folded_bias_is_added_to_the_convolution_below_a_sum():
    """TensorFlow can then fuse convolution, bias, sum and activation."""
    model, _ = network(lambda x: normalized(LAYERS["upsampled and joined"](x), "block"))
    nodes = {node.name: node for node in frozen_nodes(model)}
    (total,) = [node for node in nodes.values() if node.op == "AddV2"]
    assert nodes[total.input[1].split(":")[0]].op == "BiasAdd"


@pytest.mark.parametrize("seen", ["convolution", "sum"])
def test_a_bias_moved_below_a_sum_does_not_change_other_consumers(seen):
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
