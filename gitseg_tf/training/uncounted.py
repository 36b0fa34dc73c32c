"""Voxels that neither loss nor metrics count, for another patch of the validation has them too: their mask is -1."""

from collections.abc import Callable

import tensorflow as tf

_SURELY_OUTSIDE = -100.0


def counting(loss: Callable) -> Callable:
    """A loss that takes uncounted voxels as right and certain, at which every loss of logits is zero.

    Args:
        loss: function of (mask [N, ..., 3] of 0 and 1, logits [N, ..., 3]) to float32 [N].

    Returns:
        The same function of masks that may be -1.
    """
    return lambda mask, logits: loss(*without_uncounted(mask, logits))


def without_uncounted(mask, logits):
    """Replace uncounted voxels by background that is predicted as such with certainty.

    Args:
        mask: [N, ..., 3] of 0 and 1, or -1 where nothing is to be counted.
        logits: float, the same shape.

    Returns:
        float32 mask of 0 and 1, and logits; unchanged where the mask was 0 or 1.
    """
    mask = tf.cast(mask, tf.float32)
    counted = mask >= 0
    return tf.where(counted, mask, 0.0), tf.where(counted, logits, tf.cast(_SURELY_OUTSIDE, logits.dtype))
