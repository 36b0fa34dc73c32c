"""`gitseg_tf.inference.postprocess` in a TensorFlow graph: the same steps in the same order."""

import tensorflow as tf

from gitseg_tf.sections.postprocess import OrganConfig
from gitseg_tf.serving.components import components

# A function of its own in the graph, which holds it once for all organs; so numbers that differ are tensors.
_step = tf.function(autograph=False, reduce_retracing=True)


def organ_mask(probabilities, settings: OrganConfig, numbers, spacing):
    """All steps for one organ.

    Args:
        probabilities: float32 [D, H, W].
        settings: with a threshold.
        numbers: int64 [D], the slices' numbers, rising.
        spacing: float32 [3], (z, y, x) in mm.

    Returns:
        bool [D, H, W].
    """
    if not settings.smooth_mm:
        return clean_mask(probabilities >= settings.threshold, settings, spacing)
    # As in inference.postprocess: other columns cannot reach the threshold.
    reaching = tf.reduce_any(probabilities >= settings.threshold, 0)
    (top, bottom), (left, right) = (_extent(tf.reduce_any(reaching, axis)) for axis in (1, 0))
    box = probabilities[:, top:bottom, left:right]
    mask = (
        smooth_across_slices(box, numbers, spacing[0], tf.constant(settings.smooth_mm, tf.float64))
        >= settings.threshold
    )
    _, height, width = tf.unstack(tf.shape(probabilities))
    mask = tf.pad(mask, [[0, 0], [top, height - bottom], [left, width - right]])
    return clean_mask(mask, settings, spacing)


def clean_mask(mask, settings: OrganConfig, spacing):
    """The steps behind the threshold for one organ, within the mask's bounding box.

    Args:
        mask: bool [D, H, W].
        settings: their threshold and smoothing are not looked at.
        spacing: float32 [3], (z, y, x) in mm.

    Returns:
        bool [D, H, W]; the mask itself where no step is on.
    """
    if not (settings.fill_holes or settings.smallest_ml or settings.largest_only or settings.gap_mm):
        return mask
    ends = [_extent(tf.reduce_any(mask, axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    (front, back), (top, bottom), (left, right) = ends
    inside = mask[front:back, top:bottom, left:right]
    if settings.fill_holes:
        inside = fill_holes(inside)
    if settings.smallest_ml:
        inside = remove_small_components(inside, spacing, tf.constant(settings.smallest_ml, tf.float64))
    if settings.largest_only:
        inside = keep_largest_component(inside)
    if settings.gap_mm:
        inside = remove_far_slices(inside, spacing[0], tf.constant(settings.gap_mm, tf.float64))
    extents = tf.unstack(tf.shape(mask))
    return tf.pad(inside, [[first, extent - last] for (first, last), extent in zip(ends, extents, strict=True)])


@_step
def smooth_across_slices(probabilities, numbers, thickness, sigma_mm):
    """Average each voxel with those above and below it, with Gaussian weights, within runs of slice numbers.

    Args:
        probabilities: float32 [D, H, W].
        numbers: int64 [D], the slices' numbers, rising.
        thickness: float32, distance of slices with successive numbers, mm.
        sigma_mm: float64, standard deviation of the Gaussian, mm, above 0.

    Returns:
        float32 [D, H, W].
    """
    run = tf.cumsum(tf.cast(numbers - tf.concat([numbers[:1], numbers[:-1]], 0) > 1, tf.int32))
    distance = tf.cast(numbers[:, None] - numbers, tf.float64) * tf.cast(thickness, tf.float64)
    weights = tf.exp(-0.5 * (distance / sigma_mm) ** 2) * tf.cast(run[:, None] == run, tf.float64)
    weights = tf.cast(weights / tf.reduce_sum(weights, 1, keepdims=True), tf.float32)
    shape = tf.shape(probabilities)
    return tf.reshape(weights @ tf.reshape(probabilities, [shape[0], shape[1] * shape[2]]), shape)


@_step
def fill_holes(mask):
    """Fill background that no path over pixel edges joins to the border of its slice: bool [D, H, W] to the same."""
    background = components(tf.pad(~mask, [[0, 0], [1, 1], [1, 1]], constant_values=True), ((0, 1),), diagonal=False)
    # What is outside begins with the first pixel of its slice, behind the border that `components` adds.
    height, width = tf.unstack(tf.shape(background.mask, tf.int64)[1:])
    first = tf.gather(background.starts, background.roots) % (height * width)
    return ~background.keep(first == width + 1)[:, 1:-1, 1:-1]


@_step
def remove_small_components(mask, spacing, smallest_ml):
    """Remove 3-D components below a volume in ml: bool [D, H, W] to the same."""
    found = components(mask)
    ml = tf.cast(found.sizes(), tf.float64) * (tf.reduce_prod(tf.cast(spacing, tf.float64)) / 1000)
    # The margin is for rounding: a component of just this volume stays.
    return found.keep(tf.gather(ml, found.roots) >= smallest_ml * (1 - 1e-6))


@_step
def keep_largest_component(mask):
    """Remove all 3-D components but the largest, of equal ones the first: bool [D, H, W] to the same."""
    found = components(mask)
    return found.keep(found.roots == _position_of_largest(found.sizes()))


@_step
def remove_far_slices(mask, thickness, gap_mm):
    """Remove slices beyond a gap in mm, as inference.postprocess does: bool [D, H, W] to the same."""
    voxels = tf.math.count_nonzero(mask, [1, 2])
    occupied = tf.where(voxels > 0)[:, 0]
    steps = tf.cast(occupied[1:] - occupied[:-1], tf.float64) * tf.cast(thickness, tf.float64)
    # The margin is for rounding, as of a thickness of 3.3.
    group = tf.cumsum(tf.concat([tf.zeros_like(occupied[:1]), tf.cast(steps > gap_mm * (1 + 1e-6), tf.int64)], 0))
    sums = tf.math.unsorted_segment_sum(tf.gather(voxels, occupied), group, tf.size(group))
    kept = tf.cast(group == _position_of_largest(sums), tf.int32)
    near = tf.scatter_nd(occupied[:, None], kept, tf.shape(voxels, tf.int64))
    return mask & (near > 0)[:, None, None]


def _position_of_largest(numbers):
    """int64: where the first of the largest of positive numbers is; -1 where there is none."""
    return tf.argmax(tf.concat([[0], numbers], 0)) - 1


def _extent(occupied):
    """int32: the first true entry and the one behind the last; 0 and 0 where there is none."""
    index = tf.cast(tf.where(occupied)[:, 0], tf.int32)
    # Of nothing and 0 the highest is 0.
    return tuple(tf.reduce_max(tf.concat([[0], end], 0)) for end in (index[:1], index[-1:] + 1))
