"""Voxels that neither loss nor metrics count, for another patch of the validation has them too: their mask is -1."""

from collections.abc import Callable

import tensorflow as tf

SURELY_OUTSIDE = -100.0


def counting(loss: Callable) -> Callable:
    """A loss that takes uncounted voxels as background predicted with certainty, which costs nothing.

    Args:
        loss: function of (mask [N, ..., 3] of 0 to 1, outputs) to float32 [N]; outputs are logits, or a dict of them as
            `logits` and, at resolutions that divide the mask's, `deep1`, ...

    Returns:
        The same function of masks that may be -1.
    """

    def of_counted(mask, outputs):
        if not isinstance(outputs, dict):
            return loss(*without_uncounted(mask, outputs))
        counted = {
            name: without_uncounted(_middles(mask, level), level)[1]
            for name, level in outputs.items()
            if len(level.shape) == len(mask.shape)
        }
        return loss(tf.maximum(tf.cast(mask, tf.float32), 0.0), outputs | counted)

    return of_counted


def without_uncounted(mask, logits):
    """Replace uncounted voxels by background that is predicted as such with certainty.

    Args:
        mask: [N, ..., 3] of 0 to 1, or -1 where nothing is to be counted.
        logits: float, the same shape.

    Returns:
        float32 mask of 0 to 1, and logits; unchanged where the mask was not negative.
    """
    mask = tf.cast(mask, tf.float32)
    return tf.maximum(mask, 0.0), tf.where(mask >= 0, logits, tf.cast(SURELY_OUTSIDE, logits.dtype))


def _middles(mask, level):
    """The mask's voxel nearest to the middle of each of the level's: the one that the level is compared with."""
    factors = [fine // coarse for fine, coarse in zip(mask.shape[1:-1], level.shape[1:-1], strict=True)]
    return mask[(slice(None), *(slice(factor // 2, None, factor) for factor in factors))]
