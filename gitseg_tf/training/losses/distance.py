"""Distance maps made in the training step: static shapes, no host."""

import tensorflow as tf


def distance_to_outline(mask, reach: int):
    """How deep a pixel is in an organ or outside of it: the absolute value of Kervadec's signed distance map.

    Args:
        mask: float [N, ..., C], organ from 0.5 on; the spatial axes have static sizes.
        reach: pixels; the largest distance.

    Returns:
        float32 of the same shape. Of a pixel outside: Euclidean distance, in pixels, to the nearest one inside. Of a
        pixel inside: that to the nearest one outside, less 1. Neither is more than `reach`, which is also the distance
        everywhere when a plane is empty or full.
    """
    inside = mask >= 0.5
    # The square is the lower envelope of parabolas, an axis after the other (Felzenszwalb and Huttenlocher 2012).
    far = float(4 * (reach + 2) ** 2)
    squared = tf.where(tf.concat([inside, ~inside], axis=-1), 0.0, far)
    for axis in range(1, mask.shape.rank - 1):
        squared = _lower_envelope(squared, axis, reach + 1, far)
    to_inside, to_outside = tf.split(tf.sqrt(squared), 2, axis=-1)
    return tf.stop_gradient(tf.minimum(tf.where(inside, to_outside - 1.0, to_inside), float(reach)))


def _lower_envelope(squared, axis: int, reach: int, far: float):
    """The least of squared[i + k] + k^2 over -reach <= k <= reach, along an axis."""
    size = squared.shape[axis]
    reach = min(reach, size - 1)
    padding = [[reach, reach] if k == axis else [0, 0] for k in range(squared.shape.rank)]
    padded = tf.pad(squared, padding, constant_values=far)
    least = squared
    for k in range(1, reach + 1):
        before, after = (tf.slice(padded, *_band(squared, axis, start, size)) for start in (reach - k, reach + k))
        least = tf.minimum(least, tf.minimum(before, after) + float(k * k))
    return least


def _band(tensor, axis: int, start: int, size: int):
    rank = tensor.shape.rank
    return [start if k == axis else 0 for k in range(rank)], [size if k == axis else -1 for k in range(rank)]
