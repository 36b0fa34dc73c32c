"""Masks packed as bits, eight labels per byte, in TensorFlow: which slices show a label, and resizing."""

import numpy as np
import tensorflow as tf

from gitseg_tf.data.pipeline.geometry import to_model

_PLANES_AT_ONCE = 16
_ROWS = 512


def bits_present(planes):
    """Find the bits that are set anywhere in a slice.

    Args:
        planes: uint8 [D, G, H, W].

    Returns:
        bool [D, 8 * G]: bit k % 8 of plane k // 8.
    """
    depth, groups = tf.shape(planes)[0], planes.shape[1]
    flat = tf.reshape(planes, [depth * groups, tf.shape(planes)[2] * tf.shape(planes)[3]])
    flat = tf.pad(flat, [[0, 0], [0, -tf.shape(flat)[1] % (8 * _ROWS)]])
    # Combine eight bytes at a time with OR, halving the rows: one pass over the voxels for any number of labels.
    words = tf.bitcast(tf.reshape(flat, [depth * groups, _ROWS, -1, 8]), tf.int64)
    rows = _ROWS
    while rows > 1:
        rows //= 2
        words = tf.bitwise.bitwise_or(words[:, :rows], words[:, rows:])
    values = tf.reshape(tf.bitcast(words, tf.uint8), [depth * groups, -1])
    bits = tf.bitwise.bitwise_and(values[..., None], tf.constant(1 << np.arange(8), tf.uint8)) > 0
    return tf.reshape(tf.reduce_any(bits, 1), [depth, 8 * groups])


def resize_masks(planes, shown, *, sources: tuple[int, ...], placement: dict, size: tuple[int, int]):
    """Resize masks to the model's size by linear interpolation, thresholded at one half.

    Args:
        planes: uint8 [D, G, H, W]; mask k of the result is bit s % 8 of plane s // 8, with s = sources[k].
        shown: bool [D, N], which masks are not empty; the others are not resized, to save time.
        sources: source bit of each of the N masks.
        placement: from `place`.
        size: (height, width) of the model.

    Returns:
        uint8 [D, ceil(N / 8), height, width]: bit k % 8 of plane k // 8 is mask k.
    """
    pairs = tf.cast(tf.where(shown), tf.int32)  # slice and mask
    source = tf.gather(tf.constant(sources, tf.int32), pairs[:, 1])
    resized = tf.zeros([tf.shape(shown)[0], -(-len(sources) // 8), *size], tf.uint8)

    def bit(number):
        return tf.bitwise.left_shift(tf.constant(1, tf.uint8), tf.cast(number % 8, tf.uint8))[:, None, None]

    def add(start, resized):
        part = slice(start, start + _PLANES_AT_ONCE)
        (z, mask), s = tf.unstack(pairs[part], axis=1), source[part]
        selected = tf.gather_nd(planes, tf.stack([z, s // 8], 1))
        selected = tf.cast(tf.bitwise.bitwise_and(selected, bit(s)) > 0, tf.float32)
        inside = tf.cast(to_model(selected, placement, size) >= 0.5, tf.uint8) * bit(mask)
        return start + _PLANES_AT_ONCE, tf.tensor_scatter_nd_add(resized, tf.stack([z, mask // 8], 1), inside)

    # Loop over the pairs instead of the labels, so that the size of the graph does not depend on the number of labels.
    return tf.while_loop(lambda start, _: start < tf.shape(pairs)[0], add, (0, resized), parallel_iterations=1)[1]
