"""An average of the weights beside the weights: exponential, or equal over the last epochs."""

from collections.abc import Callable
from itertools import islice

import numpy as np
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.sections.training import TrainingConfig
from gitseg_tf.training.replicated import change_variables

_BATCHES_FOR_STATISTICS = 100


class WeightAverage:
    """Follows variables and takes their place for validation.

    Args:
        variables: the model's trainable variables.
        statistics: moving statistics of its batch normalisation, which are not averaged.
        share: function of the step, counted from 0, to the share of the way that the average goes to the weights
            after that step; None is no average.

    Attributes:
        values: the averages, variables; what is to be saved with the model. Empty without an average.
    """

    def __init__(self, variables: list, statistics: list, share: Callable | None):
        self.variables, self.statistics, self._share = variables, statistics, share
        self.values = [_copy_of(variable) for variable in variables] if share else []
        self._held = None

    def follow(self, step) -> None:
        """Move the averages towards the weights; part of the training step."""
        if not self.values:
            return
        share = self._share(step)

        def move(average, variable, share):
            average.assign_add(share * (variable - average))

        change_variables(move, self.values, self.variables, [share] * len(self.values))

    def swap(self) -> None:
        """Exchange the weights with their averages, and the statistics with those that belong to the averages.

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
        """Let the averages have statistics of their own from the next swap on, zeros at first."""
        self._held = [np.zeros(variable.shape, np.float32) for variable in self.statistics]


def weight_average(model: keras.Model, config: TrainingConfig, steps_per_epoch: int) -> WeightAverage:
    """The average that a config asks for; call it in the strategy's scope.

    Args:
        model: whose weights are averaged.
        config: `ema` is the decay of an exponential average; `swa` the number of last epochs at whose ends weights are
            averaged equally (stochastic weight averaging, Izmailov et al. 2018, arXiv:1803.05407).
        steps_per_epoch: training steps.
    """
    share = None
    if config.swa:
        share = swa_share(config.swa, config.epochs, steps_per_epoch)
    elif config.ema:
        share = ema_share(config.ema)
    normalizations = normalizations_of(model) if config.swa else []
    statistics = [v for layer in normalizations for v in (layer.moving_mean, layer.moving_variance)]
    return WeightAverage(model.trainable_variables, statistics, share)


def ema_share(momentum: float) -> Callable:
    """An exponential average that starts fast: its decay at step t is min(momentum, (1 + t) / (10 + t)).

    This is tf.train.ExponentialMovingAverage's; the initial weights are forgotten within the first epochs.
    """

    def share(step):
        step = tf.cast(step, tf.float32)
        return 1.0 - tf.minimum(momentum, (1.0 + step) / (10.0 + step))

    return share


def swa_share(averaged: int, epochs: int, steps_per_epoch: int) -> Callable:
    """The weights themselves, then the mean of those at the ends of the last epochs.

    Args:
        averaged: the number of last epochs.
        epochs: in all.
        steps_per_epoch: training steps.
    """
    first = (epochs - averaged + 1) * steps_per_epoch

    def share(step):
        done = tf.cast(step, tf.int64) + 1
        count = tf.cast((done - first) // steps_per_epoch + 1, tf.float32)
        at_an_end = tf.cast(done % steps_per_epoch == 0, tf.float32)
        return tf.where(done <= first, 1.0, at_an_end / tf.maximum(count, 1.0))

    return share


def normalizations_of(model: keras.Model) -> list:
    """Its batch normalisations that are trained."""
    kinds = (keras.layers.BatchNormalization, keras.layers.experimental.SyncBatchNormalization)
    return [layer for layer in model.submodules if isinstance(layer, kinds) and layer.trainable]


def recompute_statistics(model, windows: tf.data.Dataset, steps: int) -> None:
    """Replace the moving statistics of batch normalisation by those of the weights as they are now.

    Averaged weights have seen no batch: their statistics are the moving averages, begun at zero and freed from that
    bias, over batches in training mode.

    Args:
        model: a TrainingModel, whose statistics are zero.
        windows: batches as for training.
        steps: batches in an epoch; as many are taken, 100 at most.
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
