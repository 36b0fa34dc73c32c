"""Learning rates as pure functions of the step."""

import math

import tensorflow as tf
import tf_keras as keras

from gitseg_tf.sections.training import TrainingConfig

# Of the peak: where one_cycle starts, and where it ends.
_ONE_CYCLE_START, _ONE_CYCLE_END = 1 / 25, 1 / 25e4


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to the peak, then the course that the config names.

    With p the share of the steps after the warm-up that have passed, the rate is the peak times

    - cosine: (1 + cos(pi p)) / 2 (Loshchilov & Hutter 2016, arXiv:1608.03983, without restarts);
    - polynomial: (1 - p)^power (Liu et al. 2015, arXiv:1506.04579; DeepLab);
    - constant: 1;
    - one_cycle: from 1/25 to 1 within the warm-up and from 1 to 1/250,000 after it, both along half a cosine (Smith &
      Topin 2017, arXiv:1708.07120; Smith 2018, arXiv:1803.09820), as torch's OneCycleLR, whose pct_start is the
      warm-up's share. The momentum stays as it is.

    Args:
        config: schedule, learning_rate (the peak), warmup, power.
        total_steps: of the whole training.
    """

    def __init__(self, config: TrainingConfig, total_steps: int):
        self.name, self.peak, self.power = config.schedule, config.learning_rate, config.power
        self.total, self.rise = total_steps, round(config.warmup * total_steps)

    def __call__(self, step):
        """The rate of a step, float32; steps are counted from 0."""
        step = tf.cast(step, tf.float32)
        if self.name == "one_cycle":
            risen = _cosine(step / max(self.rise - 1, 1), _ONE_CYCLE_START, 1.0)
            fallen = _cosine((step - (self.rise - 1)) / max(self.total - self.rise, 1), 1.0, _ONE_CYCLE_END)
            return self.peak * tf.where(step < self.rise, risen, fallen)
        passed = tf.clip_by_value((step - self.rise) / max(self.total - self.rise, 1), 0.0, 1.0)
        courses = {
            "cosine": lambda: _cosine(passed, 1.0, 0.0),
            "polynomial": lambda: (1.0 - passed) ** self.power,
            "constant": lambda: tf.ones([]),
        }
        return self.peak * tf.where(step < self.rise, step / max(self.rise, 1), courses[self.name]())

    def get_config(self):
        return {"name": self.name, "peak": self.peak, "power": self.power, "total": self.total, "rise": self.rise}


def _cosine(share, start: float, end: float):
    return end + (start - end) * 0.5 * (1.0 + tf.cos(math.pi * tf.clip_by_value(share, 0.0, 1.0)))
