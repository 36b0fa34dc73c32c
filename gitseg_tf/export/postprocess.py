"""The steps of `gitseg_tf.inference.postprocess` as a TensorFlow graph.

Both implementations are needed: a graph can only contain TensorFlow operations, which take five times as long as NumPy
and SciPy. tests/export/test_graph.py checks that they agree.
"""

import numpy as np
import tensorflow as tf

from gitseg_tf.config.postprocess import LabelPostprocess
from gitseg_tf.export.components import components
from gitseg_tf.inference.postprocess import is_cleaned

# Each step is a separate function, so that the graph contains it once for all labels; settings are passed as tensors.
_step = tf.function(autograph=False, reduce_retracing=True)


def label_mask(probabilities, settings: LabelPostprocess, numbers, spacing, presence=None):
    """Apply all steps to one label.

    Args:
        probabilities: float32 [D, H, W].
        settings: settings of the label, with a threshold.
        numbers: int64 [D], the slice numbers in ascending order.
        spacing: float32 [3], (z, y, x) in mm.
        presence: float32 [D], the probability that the slice shows the label; needed with min_presence.

    Returns:
        bool [D, H, W].
    """
    if not settings.smooth_mm:
        mask = remove_absent(probabilities >= settings.threshold, presence, settings.min_presence)
        return clean_mask(mask, settings, numbers, spacing)
    # Other columns cannot reach the threshold, as in inference.postprocess.
    reaching = tf.reduce_any(probabilities >= settings.threshold, 0)
    (top, bottom), (left, right) = (_extent(tf.reduce_any(reaching, axis)) for axis in (1, 0))
    box = probabilities[:, top:bottom, left:right]
    mask = (
        smooth_across_slices(box, numbers, spacing[0], tf.constant(settings.smooth_mm, tf.float64))
        >= settings.threshold
    )
    _, height, width = tf.unstack(tf.shape(probabilities))
    mask = tf.pad(mask, [[0, 0], [top, height - bottom], [left, width - right]])
    return clean_mask(remove_absent(mask, presence, settings.min_presence), settings, numbers, spacing)


def remove_absent(mask, presence, min_presence: float):
    """Remove a label from slices without presence: bool [..., H, W] and float32 [...] to bool [..., H, W]."""
    return mask & (presence >= np.float32(min_presence))[..., None, None] if min_presence else mask


def clean_mask(mask, settings: LabelPostprocess, numbers, spacing):
    """Apply the steps after the threshold and the presence to one label, within the mask's bounding box.

    Args:
        mask: bool [D, H, W].
        settings: settings of the label; smoothing, threshold and presence are not used.
        numbers: int64 [D], the slice numbers in ascending order.
        spacing: float32 [3], (z, y, x) in mm.

    Returns:
        bool [D, H, W]; the mask itself if every step is off.
    """
    if not is_cleaned(settings):
        return mask
    ends = [_extent(tf.reduce_any(mask, axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    (front, back), (top, bottom), (left, right) = ends
    inside, numbers = mask[front:back, top:bottom, left:right], numbers[front:back]
    if settings.fill_single_gaps:
        inside = fill_single_gaps(inside, numbers)
    if settings.fill_holes:
        inside = fill_holes(inside)
    if settings.min_component_ml:
        inside = remove_small_components(inside, spacing, tf.constant(settings.min_component_ml, tf.float64))
    if settings.keep_largest_component:
        inside = keep_largest_component(inside)
    if settings.min_adjacent_slices > 1:
        inside = remove_short_runs(inside, numbers, tf.constant(settings.min_adjacent_slices, tf.int64))
    if settings.max_gap_mm:
        inside = remove_far_slices(inside, spacing[0], tf.constant(settings.max_gap_mm, tf.float64))
    extents = tf.unstack(tf.shape(mask))
    return tf.pad(inside, [[first, extent - last] for (first, last), extent in zip(ends, extents, strict=True)])


@_step
def smooth_across_slices(probabilities, numbers, thickness, sigma_mm):
    """Average each voxel with those above and below it, with Gaussian weights, within runs of slice numbers.

    Args:
        probabilities: float32 [D, H, W].
        numbers: int64 [D], the slice numbers in ascending order.
        thickness: float32, distance in mm between slices with successive numbers.
        sigma_mm: float64, standard deviation of the Gaussian in mm, above 0.

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
def fill_single_gaps(mask, numbers):
    """Fill a slice without the label between two adjacent ones with it: bool [D, H, W], int64 [D] to bool [D, H, W]."""
    padded, known = tf.pad(mask, [[1, 1], [0, 0], [0, 0]]), tf.pad(numbers, [[1, 1]])
    between = (known[2:] - known[:-2] == 2) & ~tf.reduce_any(mask, [1, 2])
    # The padding is empty, so that the ends are not filled whatever their numbers are.
    return mask | (between[:, None, None] & padded[:-2] & padded[2:])


@_step
def fill_holes(mask):
    """Fill background that is not edge-connected to the border of its slice: bool [D, H, W] to the same."""
    background = components(tf.pad(~mask, [[0, 0], [1, 1], [1, 1]], constant_values=True), ((0, 1),), diagonal=False)
    # The outside starts at the first pixel of its slice, after the border added by `components`.
    height, width = tf.unstack(tf.shape(background.mask, tf.int64)[1:])
    first = tf.gather(background.starts, background.roots) % (height * width)
    return ~background.keep(first == width + 1)[:, 1:-1, 1:-1]


@_step
def remove_small_components(mask, spacing, min_component_ml):
    """Remove 3-D components below a volume in ml: bool [D, H, W] to the same."""
    parts = components(mask)
    ml = tf.cast(parts.sizes(), tf.float64) * (tf.reduce_prod(tf.cast(spacing, tf.float64)) / 1000)
    # The margin allows for rounding: a component of exactly this volume is kept.
    return parts.keep(tf.gather(ml, parts.roots) >= min_component_ml * (1 - 1e-6))


@_step
def keep_largest_component(mask):
    """Remove all 3-D components but the largest, or the first of equal ones: bool [D, H, W] to the same."""
    parts = components(mask)
    return parts.keep(parts.roots == _position_of_largest(parts.sizes()))


@_step
def remove_short_runs(mask, numbers, min_slices):
    """Remove runs of fewer adjacent slices, as in inference.postprocess: bool [D, H, W] to the same."""
    occupied = tf.where(tf.reduce_any(mask, [1, 2]))[:, 0]
    shown = tf.gather(numbers, occupied)
    run = tf.cumsum(tf.concat([tf.zeros_like(shown[:1]), tf.cast(shown[1:] - shown[:-1] > 1, tf.int64)], 0))
    lengths = tf.math.unsorted_segment_sum(tf.ones_like(run), run, tf.size(run))
    kept = tf.cast(tf.gather(lengths, run) >= min_slices, tf.int32)
    return mask & (tf.scatter_nd(occupied[:, None], kept, tf.shape(numbers, tf.int64)) > 0)[:, None, None]


@_step
def remove_far_slices(mask, thickness, max_gap_mm):
    """Remove slices beyond a gap in mm, as in inference.postprocess: bool [D, H, W] to the same."""
    voxels = tf.math.count_nonzero(mask, [1, 2])
    occupied = tf.where(voxels > 0)[:, 0]
    steps = tf.cast(occupied[1:] - occupied[:-1], tf.float64) * tf.cast(thickness, tf.float64)
    # The margin allows for rounding, such as with a thickness of 3.3.
    group = tf.cumsum(tf.concat([tf.zeros_like(occupied[:1]), tf.cast(steps > max_gap_mm * (1 + 1e-6), tf.int64)], 0))
    sums = tf.math.unsorted_segment_sum(tf.gather(voxels, occupied), group, tf.size(group))
    kept = tf.cast(group == _position_of_largest(sums), tf.int32)
    near = tf.scatter_nd(occupied[:, None], kept, tf.shape(voxels, tf.int64))
    return mask & (near > 0)[:, None, None]


def _position_of_largest(numbers):
    """Return the index, int64, of the first of the largest positive numbers; -1 if there is none."""
    return tf.argmax(tf.concat([[0], numbers], 0)) - 1


def _extent(occupied):
    """Return the index, int32, of the first true entry, and one past the last; 0 and 0 if there is none."""
    index = tf.cast(tf.where(occupied)[:, 0], tf.int32)
    # Prepending 0 gives 0 if there are no true entries.
    return tuple(tf.reduce_max(tf.concat([[0], end], 0)) for end in (index[:1], index[-1:] + 1))
