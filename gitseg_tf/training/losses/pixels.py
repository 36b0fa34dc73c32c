"""Losses of single pixels: functions of mask and logits [N, ..., 3] in float32, and their section, to float32 [N]."""

import math

import tensorflow as tf

from gitseg_tf.sections.loss import BceConfig, FocalConfig, TopKConfig
from gitseg_tf.training.uncounted import SURELY_OUTSIDE


def bce(mask, logits, section: BceConfig):
    """Mean binary cross-entropy."""
    labels = mask
    if section.smoothing:
        # Not of uncounted voxels: what is certain would not be free any more.
        smoothed = mask * (1.0 - section.smoothing) + section.smoothing / 2
        labels = tf.where(logits == SURELY_OUTSIDE, mask, smoothed)
    return _mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits))


def focal(mask, logits, section: FocalConfig):
    """Mean focal loss, -a (1 - p)^gamma log(p) where p is the probability of the right answer.

    a is alpha on organ pixels and 1 - alpha on the others (Lin et al. 2017, arXiv:1708.02002). A soft label, as of
    MixUp, has that share of either cost.
    """
    # (1 - p)^gamma from the logit's logarithm: a power of a probability that rounds to 0 would have no gradient.
    missed = section.alpha * tf.exp(-section.gamma * tf.nn.softplus(logits)) * tf.nn.softplus(-logits)
    invented = (1.0 - section.alpha) * tf.exp(-section.gamma * tf.nn.softplus(-logits)) * tf.nn.softplus(logits)
    return _mean(mask * missed + (1.0 - mask) * invented)


def top_k(mask, logits, section: TopKConfig):
    """Mean binary cross-entropy of the `share` of a sample's pixels, of all organs together, where it is highest.

    "Bootstrapped" cross-entropy (Wu et al. 2016, arXiv:1605.06885). At least one pixel counts.
    """
    cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(mask, logits)
    pixels = math.prod(logits.shape[1:])
    hardest = tf.math.top_k(
        tf.reshape(cross_entropy, [-1, pixels]), max(1, round(section.share * pixels)), sorted=False
    )
    return tf.reduce_mean(hardest.values, axis=1)


def _mean(costs):
    return tf.reduce_mean(costs, axis=list(range(1, costs.shape.rank)))
