"""Losses on logits, one value a sample, so that a global batch gives the same loss on any number of replicas."""

import tensorflow as tf


def bce_dice_loss(bce_weight: float = 1.0, dice_weight: float = 1.0):
    """Binary cross-entropy plus soft Dice loss (Milletari et al. 2016, arXiv:1606.04797), organs independent.

    Args:
        bce_weight: factor of the mean binary cross-entropy.
        dice_weight: factor of the Dice loss: 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1) a sample and organ, then the
            mean over organs. The added ones make an organ that is absent and not predicted cost nothing.

    Returns:
        Function of (mask [N, H, W, 3] of 0 and 1, logits [N, H, W, 3]) to the loss, float32 [N].
    """

    def loss(mask, logits):
        mask, logits = tf.cast(mask, tf.float32), tf.cast(logits, tf.float32)
        bce = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(mask, logits), axis=[1, 2, 3])
        probability = tf.sigmoid(logits)
        both = tf.reduce_sum(probability * mask, axis=[1, 2])
        sizes = tf.reduce_sum(probability, axis=[1, 2]) + tf.reduce_sum(mask, axis=[1, 2])
        dice = tf.reduce_mean(1.0 - (2.0 * both + 1.0) / (sizes + 1.0), axis=-1)
        return bce_weight * bce + dice_weight * dice

    return loss
