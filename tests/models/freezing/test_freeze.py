import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from helpers.configs import tiny_config
from tensorflow.python.util._pywrap_util_port import IsMklEnabled

from gitseg_tf.models.build import build_model
from gitseg_tf.models.freezing.bias_add import biases_for_normalizations
from gitseg_tf.models.freezing.freeze import freeze, inference_network
from gitseg_tf.models.layers import UpsampleConv, conv_block


@pytest.fixture(params=[4, 200], ids=["constants", "arguments"])
def model(request):
    """The kernel of 200 filters is large enough to stay out of the graph."""
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, conv_block(inputs, request.param, "block"))
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 1.5, array.shape) for array in model.get_weights()])
    return model


def frozen(model):
    return freeze(lambda windows: model(windows, training=False), tf.TensorSpec(model.input_shape))


def test_a_frozen_network_matches_the_model_for_any_batch_size(model):
    found = frozen(model)
    for count in (1, 3):
        windows = np.random.default_rng(count).random((count, 8, 8, 3), np.float32)
        assert np.allclose(found(windows), model(windows, training=False), rtol=1e-5)


def test_later_weight_changes_do_not_affect_a_frozen_network(model):
    found, windows = frozen(model), np.ones((1, 8, 8, 3), np.float32)
    before = found(windows).numpy()
    model.set_weights([2 * array for array in model.get_weights()])
    assert np.array_equal(found(windows), before) and not np.allclose(model(windows, training=False), before)


def test_only_large_kernels_are_captured_as_arguments(model):
    graph = tf.function(frozen(model)).get_concrete_function(tf.TensorSpec(model.input_shape)).graph
    large = [variable for variable in model.variables if variable.shape.num_elements() >= 4096]
    assert len(graph.captures) == len(large) == (model.output_shape[-1] == 200)


def test_freezing_many_networks_logs_no_warning(monkeypatch):
    warnings, inputs = [], keras.Input((8, 8, 40))
    monkeypatch.setattr(tf.get_logger(), "warning", lambda *words: warnings.append(words))
    upsampled = keras.Model(inputs, UpsampleConv(40)([inputs]))
    for _ in range(7):
        frozen(upsampled)(np.ones((1, 8, 8, 40), np.float32))
    assert not warnings


@pytest.mark.skipif(not IsMklEnabled(), reason="TensorFlow fuses sums into convolutions only with oneDNN")
def test_the_session_fuses_sum_and_activation_into_decoder_convolutions(tmp_path):
    model = build_model(tiny_config(model__backbone="resnet18"))
    # TensorFlow would remove biases of zero.
    model.set_weights([np.full(array.shape, 0.5, np.float32) for array in model.get_weights()])
    served = tf.Module()
    served.network = tf.function(inference_network(model), input_signature=[tf.TensorSpec(model.input_shape)])
    tf.saved_model.save(served, str(tmp_path), {"serving_default": served.network.get_concrete_function()})
    decoders = [node for node in nodes_run_by_a_session(tmp_path, model.input_shape) if "decoder" in node.name]
    joined = [list(node.attr["fused_ops"].list.s) for node in decoders if "FusedConv2D" in node.op]
    assert not [node.name for node in decoders if node.op == "AddV2"]
    assert joined.count([b"BiasAdd", b"Add", b"Relu"]) == 4


@pytest.mark.parametrize("waited_for", ["convolved", "summed", "nothing"])
def test_a_sum_with_control_dependencies_is_preserved(waited_for):
    ones, zeros, bias = np.ones(4, np.float32), np.zeros(4, np.float32), np.arange(4, dtype=np.float32)

    @tf.function(input_signature=[tf.TensorSpec([2, 5, 5, 3]), tf.TensorSpec([2, 5, 5, 4])], autograph=False)
    def network(x, skip):
        convolved = tf.nn.conv2d(x, np.ones((1, 1, 3, 4), np.float32), 1, "SAME")
        summed = skip + convolved
        actual, *_ = tf.compat.v1.nn.fused_batch_norm(
            summed, ones, bias, zeros, ones - np.float32(0.1), epsilon=0.1, is_training=False
        )
        waited = {"convolved": [convolved], "summed": [summed], "nothing": []}[waited_for]
        with tf.control_dependencies(waited):
            return 2 * actual

    traced = network.get_concrete_function()
    graph = traced.graph.as_graph_def()
    given, (asked,) = [tensor.name for tensor in traced.inputs], [tensor.name for tensor in traced.outputs]
    biases_for_normalizations(graph)
    assert [node.op for node in graph.node].count("BiasAdd") == 1

    def rewritten(*tensors):
        return tf.graph_util.import_graph_def(graph, dict(zip(given, tensors, strict=True)), [asked], name="")[0]

    x, skip = (np.random.default_rng(channels).random((2, 5, 5, channels), np.float32) for channels in (3, 4))
    expected = 2 * (skip + x.sum(-1, keepdims=True) + np.arange(4))
    np.testing.assert_allclose(tf.function(rewritten)(tf.constant(x), tf.constant(skip)), expected, rtol=1e-5)


def nodes_run_by_a_session(folder, shape):
    metadata, trace = tf.compat.v1.RunMetadata(), tf.compat.v1.RunOptions(output_partition_graphs=True)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(folder)).signature_def["serving_default"]
        (given,), (asked,) = loaded.inputs.values(), loaded.outputs.values()
        session.run(asked.name, {given.name: np.ones((2, *shape[1:]), np.float32)}, trace, metadata)
    return [node for graph in metadata.partition_graphs for node in graph.node]
