"""Voxels that are excluded from the loss and the metrics: the mask is negative (-1) there.

They belong to a label that is not annotated in a scan, or to the ignore label, or, in the validation of 3-D networks,
another patch counts them.
"""

import tensorflow as tf


def split_mask(mask):
    """Split a mask into the reference and the voxels that count.

    Args:
        mask: [N, ..., L], 0 to 1, or negative where a voxel is excluded for a label.

    Returns:
        reference: float32 [N, ..., L], 0 to 1, and 0 where a voxel is excluded.
        counted: float32 of the same shape, 1 where a voxel counts for a label, otherwise 0.
    """
    mask = tf.cast(mask, tf.float32)
    return tf.maximum(mask, 0.0), tf.cast(mask >= 0.0, tf.float32)
