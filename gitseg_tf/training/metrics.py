"""Metrics that accumulate over batches and replicas."""

import math

import tensorflow as tf
import tf_keras as keras

from gitseg_tf.data.scans import ORGANS
from gitseg_tf.training.uncounted import without_uncounted


class StreamingDice(keras.metrics.Metric):
    """Dice of all pixels seen, per organ and their mean; a pixel is inside from `threshold` on.

    The result is a dict: dice (mean over organs), dice_large_bowel, dice_small_bowel, dice_stomach. An organ neither
    present nor predicted so far has Dice 1.

    Args:
        threshold: probability between 0 and 1.
    """

    def __init__(self, threshold: float = 0.5, name: str = "dice", **kwargs):
        super().__init__(name=name, **kwargs)
        self.logit = math.log(threshold / (1 - threshold))
        self.both = self.add_weight("both", shape=[len(ORGANS)], initializer="zeros")
        self.sizes = self.add_weight("sizes", shape=[len(ORGANS)], initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch: masks and logits [N, ..., 3], weights [N]. Where the mask is negative nothing is counted."""
        truth, logits = without_uncounted(y_true, tf.cast(y_pred, tf.float32))
        predicted = tf.cast(logits >= self.logit, tf.float32)
        space = range(1, truth.shape.rank - 1)
        both = tf.reduce_sum(truth * predicted, axis=space)
        sizes = tf.reduce_sum(truth + predicted, axis=space)
        if sample_weight is not None:
            weight = tf.reshape(tf.cast(sample_weight, tf.float32), [-1, 1])
            both, sizes = both * weight, sizes * weight
        self.both.assign_add(tf.reduce_sum(both, axis=0))
        self.sizes.assign_add(tf.reduce_sum(sizes, axis=0))

    def reset_state(self):
        """Forget all batches."""
        for variable in (self.both, self.sizes):
            variable.assign(tf.zeros_like(variable))

    def result(self):
        """The dict described above."""
        dice = tf.where(self.sizes > 0, 2.0 * self.both / tf.maximum(self.sizes, 1e-6), 1.0)
        return {"dice": tf.reduce_mean(dice)} | {f"dice_{organ}": dice[k] for k, organ in enumerate(ORGANS)}
