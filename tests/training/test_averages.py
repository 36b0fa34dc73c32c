import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.training.averages import WeightAverage, ema_share, recompute_statistics, swa_share


def followed(share, weights):
    """What the average is after each of the steps that gave these weights."""
    variable = tf.Variable(np.zeros_like(weights[0]))
    average = WeightAverage([variable], [], share)
    step = tf.function(lambda number: average.follow(number))
    for number, weight in enumerate(weights):
        variable.assign(weight)
        step(tf.constant(number, tf.int64))
        yield average.values[0].numpy()


def test_the_moving_average_starts_fast_and_ends_at_its_decay():
    weights = np.random.default_rng(5).normal(size=(20, 2)).astype(np.float32)
    expected, decays = np.zeros(2), []
    for step, average in enumerate(followed(ema_share(0.6), weights)):
        decays.append(min(0.6, (1 + step) / (10 + step)))
        expected = decays[-1] * expected + (1 - decays[-1]) * weights[step]
        assert average == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert decays[0] == 0.1 and decays[-1] == 0.6


def test_swa_is_the_weights_and_then_the_mean_over_the_ends_of_the_last_epochs():
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


def test_without_an_average_the_weights_stay_where_they_are():
    variable = tf.Variable([1.0])
    average = WeightAverage([variable], [], None)
    average.follow(0)
    average.swap()
    assert variable.numpy() == 1 and average.values == []


class Passing(keras.Model):
    """What recompute_statistics needs of a TrainingModel."""

    def pass_forward(self, batch):
        self(batch[0], training=True)


def test_averaged_weights_have_the_statistics_of_batches_that_pass_through_them():
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
    # Those of the last batch count most: shares 0.3 * 0.7^2, 0.3 * 0.7 and 0.3 of their sum.
    shares = np.array([0.49, 0.7, 1]) / 2.19
    mean, variance = shares @ seen.mean(1), shares @ seen.var(1)
    assert statistics[0].numpy() == pytest.approx(mean, rel=1e-4)
    assert statistics[1].numpy() == pytest.approx(variance, rel=2e-2)  # keras may divide by n - 1
    average.swap()
    assert [v.numpy().tolist() for v in statistics] == [[0, 0], [1, 1]]
    average.swap()
    assert statistics[0].numpy() == pytest.approx(mean, rel=1e-4)
