"""Distance maps computed within the training step, with static shapes and without host operations."""

import tensorflow as tf


def distance_to_outline(mask, reach: int, counted):
    """Compute the distance of each voxel from a label's outline: the absolute value of Kervadec's signed distance map.

    Args:
        mask: float [N, ..., L]; a voxel is inside if the value is at least 0.5. The spatial axes have static sizes.
        reach: maximum distance in voxels.
        counted: float of the same shape, 0 where a voxel is excluded: it is then neither inside nor outside.

    Returns:
        float32 of the same shape. For a voxel outside: the Euclidean distance in voxels to the nearest voxel inside.
        For a voxel inside: the distance to the nearest voxel outside, minus 1. Both are clipped to `reach`, which is
        also the distance everywhere if a label is empty or fills everything.
    """
    inside = mask >= 0.5
    seeds = tf.concat([inside, ~inside & (counted > 0.0)], axis=-1)
    # The squared distance is a lower envelope of parabolas, axis by axis (Felzenszwalb and Huttenlocher 2012).
    far = float(4 * (reach + 2) ** 2)
    squared = tf.where(seeds, 0.0, far)
    for axis in range(1, mask.shape.rank - 1):
        squared = _lower_envelope(squared, axis, reach + 1, far)
    to_inside, to_outside = tf.split(tf.sqrt(squared), 2, axis=-1)
    return tf.stop_gradient(tf.minimum(tf.where(inside, to_outside - 1.0, to_inside), float(reach)))


def _lower_envelope(squared, axis: int, reach: int, far: float):
    """Compute the minimum of squared[i + k] + k^2 over -reach <= k <= reach along an axis."""
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
