"""Voxel losses: terms (see `term`) that are a mean over the voxels that count, float32 [N]."""

import math

import tensorflow as tf

from gitseg_tf.config.loss import BceConfig, FocalConfig, TopKConfig


def bce(mask, logits, *, counted, section: BceConfig):
    """Compute the mean binary cross-entropy."""
    if section.smoothing:
        mask = mask * (1.0 - section.smoothing) + section.smoothing / 2
    return _mean(tf.nn.sigmoid_cross_entropy_with_logits(mask, logits), counted)


def focal(mask, logits, *, counted, section: FocalConfig):
    """Compute the mean focal loss, -a (1 - p)^gamma log(p), where p is the probability of the correct class.

    a is alpha inside a label and 1 - alpha outside (Lin et al. 2017, arXiv:1708.02002). A soft mask, such as from
    MixUp, weights the two costs accordingly.
    """
    # Compute (1 - p)^gamma from the logit: the power of a probability that rounds to 0 would have no gradient.
    missed = section.alpha * tf.exp(-section.gamma * tf.nn.softplus(logits)) * tf.nn.softplus(-logits)
    false = (1.0 - section.alpha) * tf.exp(-section.gamma * tf.nn.softplus(-logits)) * tf.nn.softplus(logits)
    return _mean(mask * missed + (1.0 - mask) * false, counted)


def top_k(mask, logits, *, counted, section: TopKConfig):
    """Compute the mean binary cross-entropy of the hardest `fraction` of a sample's voxels, over all labels together.

    This is the bootstrapped cross-entropy of Wu et al. 2016, arXiv:1605.06885. At least one voxel is used.
    """
    cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(mask, logits)
    voxels = math.prod(logits.shape[1:])
    most = max(1, round(section.fraction * voxels))
    # Excluded voxels are ranked last; fewer than `most` voxels are used of a sample that has some.
    ranked = tf.reshape(tf.where(counted > 0.0, cross_entropy, -1.0), [-1, voxels])
    hardest = tf.math.top_k(ranked, most).values
    available = tf.reduce_sum(tf.reshape(tf.cast(counted, tf.int32), [-1, voxels]), axis=1)
    partial = tf.maximum(1, tf.cast(tf.round(section.fraction * tf.cast(available, tf.float32)), tf.int32))
    used = tf.where(available == voxels, most, tf.minimum(tf.minimum(partial, most), available))
    kept = tf.cast(tf.range(most) < used[:, None], tf.float32)
    return tf.math.divide_no_nan(tf.reduce_sum(hardest * kept, axis=1), tf.cast(used, tf.float32))


def _mean(costs, counted):
    axes = list(range(1, costs.shape.rank))
    return tf.math.divide_no_nan(tf.reduce_sum(costs * counted, axes), tf.reduce_sum(counted, axes))
