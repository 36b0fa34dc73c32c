import numpy as np
import pytest
import tf_keras as keras

from gitseg_tf.training.divergence import spoilt_parts


@pytest.fixture
def model():
    block = keras.Sequential([keras.layers.Conv1D(2, 1), keras.layers.BatchNormalization(name="inner")], name="block")
    inputs = keras.Input([4, 1])
    x = keras.layers.BatchNormalization(name="outer")(block(inputs))
    return keras.Model(inputs, keras.layers.Dense(1, name="logits")(x))


def test_the_first_layer_whose_statistics_are_spoilt_is_named_within_a_block_too(model):
    model.get_layer("outer").moving_mean.assign([np.nan, 0])
    assert "reach layer outer are not finite (0 of 8 weights" in spoilt_parts(model)
    model.get_layer("block").get_layer("inner").moving_variance.assign([0, np.inf])
    assert "reach layer inner are not finite" in spoilt_parts(model)


def test_a_spoilt_gradient_is_told_from_spoilt_activations(model):
    model.get_layer("logits").kernel.assign([[np.nan], [0]])
    model.get_layer("logits").bias.assign([np.inf])
    assert (
        spoilt_parts(model) == "the activations are finite, the loss or its gradient is not (2 of 8 weights are spoilt)"
    )


def test_finite_weights_leave_the_loss(model):
    assert spoilt_parts(model) == "all weights are finite, the loss itself overflowed"
