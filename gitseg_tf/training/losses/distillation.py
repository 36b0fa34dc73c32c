"""The loss against the probabilities of a teacher."""

import tensorflow as tf

from gitseg_tf.training.losses.ignore import split_mask
from gitseg_tf.training.losses.term import over_replicas, spatial_axes


def soft_target_loss(targets, logits):
    """Compute binary cross-entropy plus Dice against soft targets.

    The Dice is 1 - (sum(p) + sum(t) - sum|p - t| + 1) / (sum(p) + sum(t) + 1) over the batch, averaged over the labels:
    the Dice semimetric loss (Wang et al. 2023, arXiv:2303.16296), which equals soft Dice for targets of 0 and 1. Soft
    Dice itself is not smallest where p = t: it would pull the probabilities to 0 and 1.

    Args:
        targets: [N, ..., L], the teacher's probabilities, or negative where a voxel is excluded.
        logits: [N, ..., L] of any float type.

    Returns:
        float32 [N].
    """
    targets, counted = split_mask(targets)
    logits = tf.where(counted > 0.0, tf.cast(logits, tf.float32), 0.0)
    everywhere = list(range(1, logits.shape.rank))
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits) * counted
    entropy = tf.math.divide_no_nan(tf.reduce_sum(entropy, everywhere), tf.reduce_sum(counted, everywhere))
    probability, axes = tf.sigmoid(logits) * counted, [0, *spatial_axes(logits)]
    both = (probability + targets, tf.abs(probability - targets), counted)
    sizes, apart, voxels = tf.unstack(over_replicas(tf.stack([tf.reduce_sum(x, axes) for x in both])))
    known = tf.cast(voxels > 0.0, tf.float32)
    dice = tf.math.divide_no_nan(tf.reduce_sum(apart / (sizes + 1.0) * known), tf.reduce_sum(known))
    return entropy + dice
