"""The body's bounding box in a scan, in TensorFlow."""

import tensorflow as tf

from gitseg_tf.data.volume import PERCENTILES

_LOW = PERCENTILES.index(1)
# A first percentile below _AIR_HU means that the scan is in Hounsfield units, with air or padding in its corners.
_AIR_HU, _BODY_HU = -900.0, -500.0
_TISSUE, _LEAST = 0.15, 0.03
# If less than _SMALL of a scan is tissue, a small bright region may have set the threshold: try lower percentiles.
_SMALL, _LOWER = 0.12, (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
_SAMPLE = 100_000
_BLOCKS = 64


def first_channel(image):
    """Take the first channel: [..., C] to [...], without a copy if there is only one."""
    return tf.squeeze(image, -1) if image.shape[-1] == 1 else image[..., 0]


def body_box(image, percentiles, spacing):
    """Find the body: a robust in-plane bounding box over the whole scan.

    Tissue is brighter than 15% of the range from the 1st to the 99th percentile of the first channel, and in CT also
    brighter than -500 HU, whatever the padding around the field of view. If that is less than 12% of the scan, a small
    bright region may have stretched the range. Then the highest percentile from 95 down to 70 replaces the 99th that
    gives at least twice as much tissue, without taking the air for tissue.

    Connected regions of tissue, seen along the slices, do not count if they are smaller than 3% of the largest, such as
    letters, or smaller than half of it and more than 2.5 times as bright, such as a hot corner. Both legs and arms next
    to the trunk count. A row or column belongs to the body if at least 3% of its voxels, over all slices, are
    tissue that counts, so isolated bright voxels in air do not. A margin of 10 mm is added on each side.

    Args:
        image: [D, H, W, C], any numeric type.
        percentiles: float32 [C, 11] of the whole scan.
        spacing: float32 [3], z, y, x in mm.

    Returns:
        int32 [4]: y, x, height, width; the whole slice if no tissue is found.
    """
    voxels = first_channel(image)
    low = percentiles[0, _LOW]
    values = tf.cast(voxels, tf.float32) - low
    tissue = tf.cast(values > _threshold(voxels, percentiles[0]), tf.float32)
    footprint = tf.reduce_mean(tissue, 0)
    footprint *= _regions_that_count(footprint, tf.reduce_mean(values * tissue, 0))
    ends = []
    for axis, pixels, mm in ((1, tf.shape(image)[1], spacing[1]), (0, tf.shape(image)[2], spacing[2])):
        inside = tf.reduce_mean(footprint, axis) >= _LEAST
        index = tf.where(inside, tf.range(pixels), pixels)
        margin = tf.cast(tf.math.ceil(10.0 / mm), tf.int32)
        first = tf.maximum(tf.reduce_min(index) - margin, 0)
        last = tf.minimum(tf.reduce_max(tf.where(inside, tf.range(pixels), -1)) + margin, pixels - 1)
        has_body = tf.reduce_any(inside)
        ends.append((tf.where(has_body, first, 0), tf.where(has_body, last - first + 1, pixels)))
    (y, height), (x, width) = ends
    return tf.stack([y, x, height, width])


def _threshold(voxels, percentiles):
    """Choose the least intensity of tissue above the first percentile, see `body_box`."""
    low = percentiles[_LOW]
    depth = tf.maximum(tf.size(voxels) // (9 * _SAMPLE), 1)
    sample = tf.cast(voxels[::depth, ::3, ::3], tf.float32) - low
    ranked = tf.sort(tf.reshape(sample, [-1]))

    def least(span):
        span = tf.where(span > 0.0, span, 1.0)
        return tf.where(low <= _AIR_HU, tf.maximum(_TISSUE * span, _BODY_HU - low), _TISSUE * span)

    def footprint(threshold):
        return tf.reduce_mean(tf.cast(sample > threshold, tf.float32), 0)

    usual = least(percentiles[PERCENTILES.index(99)] - low)
    chosen, before = usual, tf.reduce_mean(footprint(usual))
    for share in reversed(_LOWER):
        high = ranked[tf.cast(share * tf.cast(tf.size(ranked) - 1, tf.float32), tf.int32)]
        seen = footprint(least(high))
        after = tf.reduce_mean(seen)
        # In noise everything is tissue in some slices; around a body there is air.
        smooth = tf.nn.avg_pool2d(seen[None, ..., None], 3, 1, "SAME")
        air = tf.reduce_mean(tf.cast(smooth < 0.1, tf.float32))
        reveals = (before < _SMALL) & (high > 0.0) & (after >= 2.0 * before) & (air >= 0.5 * (1.0 - after))
        chosen = tf.where(reveals, least(high), chosen)
    return chosen


def _regions_that_count(footprint, brightness):
    """Leave out small and small bright regions, see `body_box`.

    Args:
        footprint: float32 [H, W], the share of the slices in which a pixel is tissue.
        brightness: float32 [H, W], the mean over the slices of the intensity of the tissue.

    Returns:
        float32 [H, W], 1 in the regions that count and next to them, otherwise 0.
    """
    height, width = tf.unstack(tf.shape(footprint))
    # Blocks suffice to separate regions, and take a fraction of the steps.
    side = (tf.maximum(height, width) + _BLOCKS - 1) // _BLOCKS
    rows, columns = (height + side - 1) // side, (width + side - 1) // side

    def in_blocks(pixels):
        padded = tf.pad(pixels, [[0, rows * side - height], [0, columns * side - width]])
        return tf.reduce_sum(tf.reshape(padded, [rows, side, columns, side]), [1, 3])

    areas = in_blocks(footprint)
    tissue = tf.cast(areas >= _LEAST * tf.cast(side * side, tf.float32), tf.float32)
    numbers = tf.reshape(tf.range(1, rows * columns + 1), [rows, columns])
    labels = _connected(tf.cast(numbers, tf.float32) * tissue)
    segments = tf.reshape(tf.cast(labels, tf.int32), [-1])

    def per_region(blocks):
        sums = tf.math.unsorted_segment_sum(tf.reshape(blocks, [-1]), segments, rows * columns + 1)
        return tf.concat([[0.0], sums[1:]], 0)  # region 0 is the air

    size = per_region(areas)
    mean = tf.math.divide_no_nan(per_region(in_blocks(brightness)), size)
    largest, typical = tf.reduce_max(size), mean[tf.argmax(size)]
    counts = (size >= 0.03 * largest) & ~((size < 0.5 * largest) & (mean > 2.5 * typical)) & (size > 0.0)
    kept = tf.reshape(tf.gather(tf.cast(counts, tf.float32), segments), [rows, columns])
    kept = _neighborhood(kept) * (1.0 - tissue) + kept  # the blocks around a region hold its outline
    return tf.repeat(tf.repeat(kept, side, 0), side, 1)[:height, :width]


def _neighborhood(blocks):
    """Compute the maximum of each block and its eight neighbors."""
    return tf.nn.max_pool2d(blocks[None, ..., None], 3, 1, "SAME")[0, ..., 0]


def _connected(labels):
    """Give the blocks of each connected region the largest of their labels; 0 is no region."""
    inside = tf.cast(labels > 0.0, tf.float32)

    def spread(labels, _):
        wider = _neighborhood(labels) * inside
        return wider, tf.reduce_any(wider != labels)

    return tf.while_loop(lambda _, changed: changed, spread, (labels, tf.constant(True)))[0]
