"""Averages of the weights: exponential moving average, or equal weights over the last epochs."""

from collections.abc import Callable
from itertools import islice

import numpy as np
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.config.training import TrainingConfig
from gitseg_tf.training.distribute.replicated import change_variables

_BATCHES_FOR_STATISTICS = 100


class WeightAverage:
    """Averages variables, and swaps them in for validation.

    Args:
        variables: the model's trainable variables.
        statistics: moving statistics of its batch normalization, which are not averaged.
        share: function from the step, counted from 0, to the fraction by which the average moves toward the weights
            after that step; None for no average.

    Attributes:
        values: variables with the averages, saved with the model; empty without an average.
    """

    def __init__(self, variables: list, statistics: list, share: Callable | None):
        self.variables, self.statistics, self._share = variables, statistics, share
        self.values = [_copy_of(variable) for variable in variables] if share else []
        self._held: list[np.ndarray] | None = None

    def follow(self, step) -> None:
        """Move the averages toward the weights; called in the training step."""
        if not self.values or self._share is None:
            return
        share = self._share(step)

        def move(average, variable, share):
            average.assign_add(share * (variable - average))

        change_variables(move, self.values, self.variables, [share] * len(self.values))

    def swap(self) -> None:
        """Swap the weights with their averages, and the statistics with those of the averages.

        A second call undoes the first.
        """
        for variable, average in zip(self.variables, self.values, strict=False):
            value = variable.numpy()
            variable.assign(average)
            average.assign(value)
        if self._held is not None:
            now = [variable.numpy() for variable in self.statistics]
            for variable, value in zip(self.statistics, self._held, strict=True):
                variable.assign(value)
            self._held = now

    def begin_statistics(self) -> None:
        """Use separate statistics for the averages from the next swap on, initially zeros."""
        self._held = [np.zeros(variable.shape, np.float32) for variable in self.statistics]


def weight_average(model: keras.Model, config: TrainingConfig, steps_per_epoch: int) -> WeightAverage:
    """Create the weight average of a config; call it in the strategy's scope.

    Args:
        model: the model whose weights are averaged.
        config: `ema_decay` is the decay of an exponential average; `swa_epochs` is the number of last epochs after each
            of which the weights enter an equal average (stochastic weight averaging, Izmailov et al. 2018,
            arXiv:1803.05407).
        steps_per_epoch: number of training steps per epoch.

    Returns:
        The average, without values if the config disables it.
    """
    share = None
    if config.swa_epochs:
        share = swa_share(config.swa_epochs, config.epochs, steps_per_epoch)
    elif config.ema_decay:
        share = ema_share(config.ema_decay)
    normalizations = normalizations_of(model) if config.swa_epochs else []
    statistics = [v for layer in normalizations for v in (layer.moving_mean, layer.moving_variance)]
    return WeightAverage(model.trainable_variables, statistics, share)


def ema_share(momentum: float) -> Callable:
    """Return the schedule of an exponential average with decay min(momentum, (1 + t) / (10 + t)) at step t.

    This is the rule of tf.train.ExponentialMovingAverage; it forgets the initial weights within the first epochs.
    """

    def share(step):
        step = tf.cast(step, tf.float32)
        return 1.0 - tf.minimum(momentum, (1.0 + step) / (10.0 + step))

    return share


def swa_share(averaged: int, epochs: int, steps_per_epoch: int) -> Callable:
    """Return the schedule of stochastic weight averaging: the weights themselves, then the mean over the last epochs.

    Args:
        averaged: number of last epochs to average.
        epochs: total number of epochs.
        steps_per_epoch: number of training steps per epoch.
    """
    first = (epochs - averaged + 1) * steps_per_epoch

    def share(step):
        done = tf.cast(step, tf.int64) + 1
        count = tf.cast((done - first) // steps_per_epoch + 1, tf.float32)
        at_an_end = tf.cast(done % steps_per_epoch == 0, tf.float32)
        return tf.where(done <= first, 1.0, at_an_end / tf.maximum(count, 1.0))

    return share


def normalizations_of(model: keras.Model) -> list:
    """List the trainable batch normalization layers of a model."""
    kinds = (keras.layers.BatchNormalization, keras.layers.experimental.SyncBatchNormalization)
    return [layer for layer in model.submodules if isinstance(layer, kinds) and layer.trainable]


def recompute_statistics(model, windows: tf.data.Dataset, steps: int) -> None:
    """Recompute the moving statistics of batch normalization for the current weights.

    Averaged weights have no statistics of their own: they are computed as moving averages over batches in training
    mode, which start at zero and are corrected for that bias.

    Args:
        model: a TrainingModel whose statistics are zero.
        windows: training batches.
        steps: number of batches in an epoch; at most 100 are used.
    """
    steps = min(steps, _BATCHES_FOR_STATISTICS)
    strategy = model.distribute_strategy
    for batch in islice(iter(strategy.experimental_distribute_dataset(windows)), steps):
        model.pass_forward(batch)
    for layer in normalizations_of(model):
        for variable in (layer.moving_mean, layer.moving_variance):
            variable.assign(variable.numpy() / (1.0 - layer.momentum**steps))


def _copy_of(variable) -> tf.Variable:
    with tf.distribute.get_strategy().extended.colocate_vars_with(variable):
        return tf.Variable(variable.numpy(), trainable=False, name=f"average/{variable.name.split(':')[0]}")
