import numpy as np
import pytest
import tf_keras as keras

from gitseg_tf.training.callbacks.divergence import non_finite_parts


@pytest.fixture
def model():
    block = keras.Sequential([keras.layers.Conv1D(2, 1), keras.layers.BatchNormalization(name="inner")], name="block")
    inputs = keras.Input([4, 1])
    x = keras.layers.BatchNormalization(name="outer")(block(inputs))
    return keras.Model(inputs, keras.layers.Dense(1, name="logits")(x))


def test_the_first_layer_with_non_finite_statistics_is_named_even_inside_a_block(model):
    model.get_layer("outer").moving_mean.assign([np.nan, 0])
    assert "reach layer outer are not finite (0 of 8 weights affected" in non_finite_parts(model)
    model.get_layer("block").get_layer("inner").moving_variance.assign([0, np.inf])
    assert "reach layer inner are not finite" in non_finite_parts(model)


def test_a_non_finite_gradient_is_distinguished_from_non_finite_activations(model):
    model.get_layer("logits").kernel.assign([[np.nan], [0]])
    model.get_layer("logits").bias.assign([np.inf])
    assert (
        non_finite_parts(model)
        == "the activations are finite, but the loss or its gradient is not (2 of 8 weights affected)"
    )


def test_with_finite_weights_the_loss_is_blamed(model):
    assert non_finite_parts(model) == "all weights are finite, so the loss itself overflowed"
