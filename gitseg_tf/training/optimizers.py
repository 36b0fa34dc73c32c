"""Optimizers and learning-rate schedules."""

import tensorflow as tf
import tf_keras as keras

from gitseg_tf.sections.training import TrainingConfig


class AveragingAdamW(keras.optimizers.AdamW):
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) with a moving average of the weights that starts fast.

    The decay at step t is min(ema_momentum, (1 + t) / (10 + t)), as in tf.train.ExponentialMovingAverage, so that the
    average forgets the initial weights within the first epochs.
    """

    def _update_model_variables_moving_average(self, var_list):
        if not self.use_ema:
            return
        step = tf.cast(self.iterations, tf.float32)
        decay = tf.minimum(self.ema_momentum, (1.0 + step) / (10.0 + step))

        def update(average, variable):
            average.assign_sub((1.0 - decay) * (average - variable))

        for variable in var_list:
            average = self._model_variables_moving_average[self._index_dict[self._var_key(variable)]]
            tf.distribute.get_strategy().extended.update(average, update, args=(variable,), group=False)

    def swap_average(self, variables) -> None:
        """Exchange the variables' values with their averages; a second call undoes the first.

        Args:
            variables: the model's trainable variables.
        """
        if not self.use_ema:
            return
        for variable in variables:
            average = self._model_variables_moving_average[self._index_dict[self._var_key(variable)]]
            value = variable.numpy()
            variable.assign(average)
            average.assign(value)


def build_optimizer(config: TrainingConfig, total_steps: int, schedule=None) -> AveragingAdamW:
    """AdamW with linear warm-up, cosine decay to zero, clipping by global norm and a moving average of the weights.

    Args:
        config: rates and factors; no weight decay is put on biases and normalisation.
        total_steps: of the whole training.
        schedule: a keras LearningRateSchedule instead of that one.

    Returns:
        The optimizer, not yet built.
    """
    warmup = round(config.warmup * total_steps)
    schedule = schedule or keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else config.learning_rate,
        decay_steps=max(total_steps - warmup, 1),
        warmup_target=config.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    optimizer = AveragingAdamW(
        learning_rate=schedule,
        weight_decay=config.weight_decay,
        global_clipnorm=config.clip_norm,
        use_ema=config.ema > 0,
        ema_momentum=config.ema,
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer
