"""Learning rate schedules as pure functions of the step."""

import math

import tensorflow as tf
import tf_keras as keras

from gitseg_tf.config.training import SCHEDULES, TrainingConfig

# Start and end of one_cycle, as fractions of the peak.
_ONE_CYCLE_START, _ONE_CYCLE_END = 1 / 25, 1 / 25e4


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Warm-up to the peak, followed by the schedule of the config, a row of config.training.SCHEDULES.

    Args:
        config: schedule, learning_rate (the peak), warmup, power.
        total_steps: number of steps of the whole training.

    Attributes:
        power: exponent of the polynomial schedule.
        warmup_steps, total_steps: numbers of steps.
    """

    def __init__(self, config: TrainingConfig, total_steps: int):
        self.name, self.peak, self.power = config.schedule, config.learning_rate, config.power
        self.total_steps, self.warmup_steps = total_steps, round(config.warmup * total_steps)

    def __call__(self, step):
        """Compute the learning rate of a step, float32; steps are counted from 0."""
        return self.peak * SCHEDULES.get(self.name)(tf.cast(step, tf.float32), self)

    def progress(self, step):
        """Compute the completed fraction of the steps after the warm-up, 0 to 1."""
        steps = max(self.total_steps - self.warmup_steps, 1)
        return tf.clip_by_value((step - self.warmup_steps) / steps, 0.0, 1.0)

    def after_warmup(self, step, fraction):
        """Rise linearly from 0 during the warm-up, then return `fraction`."""
        return tf.where(step < self.warmup_steps, step / max(self.warmup_steps, 1), fraction)

    def get_config(self):
        return {
            "name": self.name,
            "peak": self.peak,
            "power": self.power,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
        }


def cosine(step, schedule: Schedule):
    """Compute (1 + cos(pi p)) / 2 with progress p (Loshchilov & Hutter 2016, arXiv:1608.03983, without restarts)."""
    return schedule.after_warmup(step, _half_cosine(schedule.progress(step), 1.0, 0.0))


def polynomial(step, schedule: Schedule):
    """Compute (1 - p)^power with progress p (Liu et al. 2015, arXiv:1506.04579; DeepLab)."""
    return schedule.after_warmup(step, (1.0 - schedule.progress(step)) ** schedule.power)


def constant(step, schedule: Schedule):
    """Return 1 after the warm-up."""
    return schedule.after_warmup(step, 1.0)


def one_cycle(step, schedule: Schedule):
    """Rise from 1/25 to 1 during the warm-up, then fall to 1/250,000, both along half a cosine.

    It follows Smith & Topin 2017, arXiv:1708.07120, and Smith 2018, arXiv:1803.09820, like torch's OneCycleLR, whose
    pct_start is the fraction of the warm-up. The momentum is constant.
    """
    warmup = schedule.warmup_steps
    rising = _half_cosine(step / max(warmup - 1, 1), _ONE_CYCLE_START, 1.0)
    falling = _half_cosine((step - (warmup - 1)) / max(schedule.total_steps - warmup, 1), 1.0, _ONE_CYCLE_END)
    return tf.where(step < warmup, rising, falling)


def _half_cosine(fraction, start: float, end: float):
    return end + (start - end) * 0.5 * (1.0 + tf.cos(math.pi * tf.clip_by_value(fraction, 0.0, 1.0)))
