"""Metrics that accumulate over batches and replicas."""

import math
from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

from gitseg_tf.training.losses.ignore import split_mask


class StreamingDice(keras.metrics.Metric):
    """Dice over all voxels seen so far, per label and averaged; a voxel is inside if it reaches `threshold`.

    The result is a dict of dice and dice_LABEL for each label. A label that is neither in the reference nor predicted
    has Dice 1. A label that was never annotated has Dice NaN and is excluded from the mean; the mean is NaN if no label
    remains.

    Args:
        labels: names of the labels, in the order of the masks.
        threshold: probability between 0 and 1.

    Example:
        >>> metric = StreamingDice(["liver", "spleen"])
        >>> metric.update_state([[[1.0, -1.0], [0.0, -1.0]]], [[[2.0, 2.0], [1.0, 2.0]]])
        >>> {name: round(float(value), 3) for name, value in metric.result().items()}
        {'dice': 0.667, 'dice_liver': 0.667, 'dice_spleen': nan}
    """

    def __init__(self, labels: Sequence[str], threshold: float = 0.5, name: str = "dice", **kwargs):
        super().__init__(name=name, **kwargs)
        self.labels = tuple(labels)
        self.logit = math.log(threshold / (1 - threshold))
        sums = ("both", "sizes", "counted")
        weights = [self.add_weight(name, shape=[len(self.labels)], initializer="zeros") for name in sums]
        self.both, self.sizes, self.counted = weights

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch: masks and logits [N, ..., L], weights [N]. Voxels with a negative mask are excluded."""
        reference, counted = split_mask(y_true)
        predicted = tf.cast(tf.cast(y_pred, tf.float32) >= self.logit, tf.float32) * counted
        axes = list(range(1, reference.shape.rank - 1))
        sums = [tf.reduce_sum(x, axes) for x in (reference * predicted, reference + predicted, counted)]
        if sample_weight is not None:
            weight = tf.reshape(tf.cast(sample_weight, tf.float32), [-1, 1])
            sums = [x * weight for x in sums]
        for variable, batch in zip((self.both, self.sizes, self.counted), sums, strict=True):
            variable.assign_add(tf.reduce_sum(batch, axis=0))

    def reset_state(self):
        """Forget all batches."""
        for variable in (self.both, self.sizes, self.counted):
            variable.assign(tf.zeros_like(variable))

    def result(self):
        """Return the dict described above."""
        known = self.counted > 0
        dice = tf.where(self.sizes > 0, 2.0 * self.both / tf.maximum(self.sizes, 1e-6), 1.0)
        mean = tf.reduce_sum(tf.where(known, dice, 0.0)) / tf.reduce_sum(tf.cast(known, tf.float32))
        dice = tf.where(known, dice, math.nan)
        return {"dice": mean} | {f"dice_{label}": dice[k] for k, label in enumerate(self.labels)}
