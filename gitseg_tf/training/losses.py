"""Losses on logits. A global batch gives the same loss and gradient on any number of replicas."""

import tensorflow as tf


def bce_dice_loss(bce_weight: float = 1.0, dice_weight: float = 1.0):
    """Binary cross-entropy plus soft Dice loss of the batch, organs independent.

    The Dice of the whole batch, not of each sample, is what nnU-Net calls batch Dice (Isensee et al. 2021,
    doi:10.1038/s41592-020-01008-z): slices that an organ barely touches do not outweigh those that it fills. Its sums
    run over all replicas.

    Args:
        bce_weight: factor of the mean binary cross-entropy of each sample.
        dice_weight: factor of the Dice loss, the mean over organs of 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)
            (Milletari et al. 2016, arXiv:1606.04797). The added ones make an organ that is absent from the batch and
            not predicted cost nothing.

    Returns:
        Function of (mask [N, ..., 3] of 0 and 1, logits [N, ..., 3]) to the loss, float32 [N].
    """

    def loss(mask, logits):
        mask, logits = tf.cast(mask, tf.float32), tf.cast(logits, tf.float32)
        bce = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(mask, logits), axis=range(1, mask.shape.rank))
        probability = tf.sigmoid(logits)
        both = _over_replicas(tf.reduce_sum(probability * mask, axis=range(mask.shape.rank - 1)))
        sizes = _over_replicas(tf.reduce_sum(probability + mask, axis=range(mask.shape.rank - 1)))
        dice = tf.reduce_mean(1.0 - (2.0 * both + 1.0) / (sizes + 1.0))
        return bce_weight * bce + dice_weight * dice

    return loss


def _over_replicas(value):
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)
