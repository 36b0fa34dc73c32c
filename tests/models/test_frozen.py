import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.models.frozen import freeze
from gitseg_tf.models.layers import conv_block


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


def test_a_frozen_network_gives_what_it_gave_whatever_the_batch(model):
    found = frozen(model)
    for count in (1, 3):
        windows = np.random.default_rng(count).random((count, 8, 8, 3), np.float32)
        assert np.allclose(found(windows), model(windows, training=False), rtol=1e-5)


def test_later_changes_of_the_weights_are_not_seen(model):
    found, windows = frozen(model), np.ones((1, 8, 8, 3), np.float32)
    before = found(windows).numpy()
    model.set_weights([2 * array for array in model.get_weights()])
    assert np.array_equal(found(windows), before) and not np.allclose(model(windows, training=False), before)


def test_large_kernels_are_arguments_and_all_else_is_in_the_graph(model):
    graph = tf.function(frozen(model)).get_concrete_function(tf.TensorSpec(model.input_shape)).graph
    large = [variable for variable in model.variables if variable.shape.num_elements() >= 4096]
    assert len(graph.captures) == len(large) == (model.output_shape[-1] == 200)
