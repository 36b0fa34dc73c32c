import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.training.optim.averages import WeightAverage, ema_share, recompute_statistics, swa_share


def followed(share, weights):
    """Yield the average after each step with these weights."""
    variable = tf.Variable(np.zeros_like(weights[0]))
    average = WeightAverage([variable], [], share)
    step = tf.function(lambda number: average.follow(number))
    for number, weight in enumerate(weights):
        variable.assign(weight)
        step(tf.constant(number, tf.int64))
        yield average.values[0].numpy()


def test_the_ema_decay_ramps_up_to_its_limit():
    weights = np.random.default_rng(5).normal(size=(20, 2)).astype(np.float32)
    expected, decays = np.zeros(2), []
    for step, average in enumerate(followed(ema_share(0.6), weights)):
        decays.append(min(0.6, (1 + step) / (10 + step)))
        expected = decays[-1] * expected + (1 - decays[-1]) * weights[step]
        assert average == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert decays[0] == 0.1 and decays[-1] == 0.6


def test_swa_averages_the_weights_at_the_ends_of_the_last_epochs():
    weights = np.random.default_rng(6).normal(size=(5 * 4, 3)).astype(np.float32)
    averages = list(followed(swa_share(averaged=3, epochs=5, steps_per_epoch=4), weights))
    for epoch in range(5):
        end = 4 * epoch + 3
        expected = weights[end] if epoch < 3 else weights[11 : end + 1 : 4].mean(axis=0)
        assert averages[end] == pytest.approx(expected, abs=1e-5)
        if epoch >= 3:
            assert averages[end - 1] == pytest.approx(averages[end - 4], abs=1e-6)


def test_swapping_twice_changes_nothing():
    variables = [tf.Variable([1.0, 2.0]), tf.Variable([[3.0]])]
    average = WeightAverage(variables, [], ema_share(0.9))
    for value in average.values:
        value.assign(value + 10)
    average.swap()
    assert variables[0].numpy().tolist() == [11, 12] and average.values[1].numpy() == 3
    average.swap()
    assert variables[0].numpy().tolist() == [1, 2] and average.values[1].numpy() == 13


def test_without_averaging_the_weights_are_unchanged():
    variable = tf.Variable([1.0])
    average = WeightAverage([variable], [], None)
    average.follow(0)
    average.swap()
    assert variable.numpy() == 1 and average.values == []


class Passing(keras.Model):
    """The part of TrainingModel that recompute_statistics needs."""

    def pass_forward(self, batch):
        self(batch[0], training=True)


def test_batchnorm_statistics_are_recomputed_for_averaged_weights():
    rng = np.random.default_rng(8)
    inputs = keras.Input((4, 4, 2))
    convolution = keras.layers.Conv2D(2, 1, use_bias=False)
    normalization = keras.layers.BatchNormalization(momentum=0.7)
    model = Passing(inputs, normalization(convolution(inputs)))
    statistics = [normalization.moving_mean, normalization.moving_variance]
    average = WeightAverage(model.trainable_variables, statistics, ema_share(0.9))
    kernel = rng.normal(size=(1, 1, 2, 2)).astype(np.float32)
    average.values[[v.name for v in model.trainable_variables].index(convolution.kernel.name)].assign(kernel)
    batches = rng.normal(1, 2, size=(3, 8, 4, 4, 2)).astype(np.float32)
    average.begin_statistics()
    average.swap()
    recompute_statistics(model, tf.data.Dataset.from_tensor_slices((batches, batches)), steps=3)
    seen = (batches @ kernel[0, 0]).reshape(3, -1, 2).astype(float)
    # The last batch counts most: the weights 0.3 * 0.7^2, 0.3 * 0.7 and 0.3, normalized by their sum.
    shares = np.array([0.49, 0.7, 1]) / 2.19
    mean, variance = shares @ seen.mean(1), shares @ seen.var(1)
    assert statistics[0].numpy() == pytest.approx(mean, rel=1e-4)
    assert statistics[1].numpy() == pytest.approx(variance, rel=2e-2)  # keras may divide by n - 1
    average.swap()
    assert [v.numpy().tolist() for v in statistics] == [[0, 0], [1, 1]]
    average.swap()
    assert statistics[0].numpy() == pytest.approx(mean, rel=1e-4)
