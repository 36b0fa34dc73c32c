"""Between a scan's pixels and the model's: normalisation, place in the input and back, slice windows. In TensorFlow."""

import tensorflow as tf

from gitseg_tf.data.records import PERCENTILES
from gitseg_tf.sections.data import DataConfig

LOW, HIGH = PERCENTILES.index(1), PERCENTILES.index(99)


def normalize(image, percentiles):
    """Map a scan's 1st to 99th percentile of intensity to [0, 1], clipped.

    Args:
        image: [D, H, W], any numeric type.
        percentiles: float32 [11] of the whole scan, at records.PERCENTILES.

    Returns:
        float32 [D, H, W].
    """
    low, high = percentiles[LOW], percentiles[HIGH]
    return tf.clip_by_value((tf.cast(image, tf.float32) - low) / tf.maximum(high - low, 1.0), 0.0, 1.0)


def body_box(image, percentiles, spacing):
    """The part of the slices in which the body is: a robust bounding box over the whole scan.

    A row or column belongs to the body when at least 3% of its voxels, over all slices, are brighter than 15% of the
    range that `normalize` keeps; single bright voxels in air do not count. 10 mm are added on each side.

    Args:
        image: [D, H, W], any numeric type.
        percentiles: float32 [11] of the whole scan.
        spacing: float32 [3], z, y, x in mm.

    Returns:
        int32 [4]: y, x, height, width; the whole slice where nothing is found.
    """
    tissue = tf.cast(normalize(image, percentiles) > 0.15, tf.float32)
    ends = []
    for axis, pixels, mm in ((2, tf.shape(image)[1], spacing[1]), (1, tf.shape(image)[2], spacing[2])):
        inside = tf.reduce_mean(tissue, [0, axis]) >= 0.03
        index = tf.where(inside, tf.range(pixels), pixels)
        margin = tf.cast(tf.math.ceil(10.0 / mm), tf.int32)
        first = tf.maximum(tf.reduce_min(index) - margin, 0)
        last = tf.minimum(tf.reduce_max(tf.where(inside, tf.range(pixels), -1)) + margin, pixels - 1)
        found = tf.reduce_any(inside)
        ends.append((tf.where(found, first, 0), tf.where(found, last - first + 1, pixels)))
    (y, height), (x, width) = ends
    return tf.stack([y, x, height, width])


def place(image, percentiles, spacing, data: DataConfig) -> dict:
    """How a scan's slices lie in the model's input.

    Args:
        image: [D, H, W], any numeric type.
        percentiles: float32 [11] of the whole scan.
        spacing: float32 [3], z, y, x in mm.
        data: size, crop and pixel_mm.

    Returns:
        dict of `box`, int32 [4]: y, x, height and width of the part of the slices that is used; and `fitted`, int32
        [2]: its height and width in pixels of the model. It is centred there: padded where it is smaller than
        data.size, cut where it is larger.
    """
    height, width = tf.shape(image)[1], tf.shape(image)[2]
    whole = tf.stack([0, 0, height, width])
    box = body_box(image, percentiles, spacing) if data.crop == "body" else whole
    if data.pixel_mm is None:
        return {"box": box, "fitted": fitted_shape(box[2:], data.size)}
    fitted = tf.round(tf.cast(box[2:], tf.float32) * spacing[1:] / data.pixel_mm)
    return {"box": box, "fitted": tf.maximum(tf.cast(fitted, tf.int32), 1)}


def fitted_shape(shape, size: tuple[int, int]):
    """Height and width of an image scaled to fit into `size` with its proportions.

    Args:
        shape: int tensor [2], the image's height and width.
        size: the model's height and width.

    Returns:
        int32 tensor [2], each at most that of `size`, one of them equal.
    """
    scale = tf.reduce_min(tf.cast(size, tf.float64) / tf.cast(shape, tf.float64))
    fitted = tf.cast(tf.round(tf.cast(shape, tf.float64) * scale), tf.int32)
    return tf.clip_by_value(fitted, 1, tf.cast(size, tf.int32))


def field_of(placement: dict, size: tuple[int, int]):
    """The size of a model's input, or what is larger of it so that nothing of a scan is cut.

    Args:
        placement: from `place`.
        size: (height, width) of the model.

    Returns:
        int32 [2], height and width, at least those of `size`; for `to_model`.
    """
    return tf.maximum(placement["fitted"], size)


def at_scale(placement: dict, scale: float) -> dict:
    """A placement in which the scan is larger or smaller by a factor, about the same middle."""
    fitted = tf.round(tf.cast(placement["fitted"], tf.float32) * scale)
    return placement | {"fitted": tf.maximum(tf.cast(fitted, tf.int32), 1)}


def to_model(volume, placement: dict, size):
    """Cut, scale and pad slices into the model's input, with zeros around them.

    Args:
        volume: float32 [D, H, W].
        placement: from `place`.
        size: (height, width) of the model, or of a field larger than that, an int32 tensor.

    Returns:
        float32 [D, height, width], smoothed before it is made smaller.
    """
    y, x, height, width = tf.unstack(placement["box"])
    fitted = placement["fitted"]
    # Slices as channels: the resampling weights are worked out once for all of them, which takes a quarter of the time.
    planes = tf.transpose(volume[:, y : y + height, x : x + width], [1, 2, 0])
    planes = tf.image.resize(planes, fitted, antialias=True)
    cut = tf.maximum((fitted - size) // 2, 0)
    planes = planes[cut[0] : cut[0] + size[0], cut[1] : cut[1] + size[1]]
    missing = tf.maximum(size - fitted, 0)
    planes = tf.pad(
        planes, [[missing[0] // 2, (missing[0] + 1) // 2], [missing[1] // 2, (missing[1] + 1) // 2], [0, 0]]
    )
    planes = tf.transpose(planes, [2, 0, 1])
    return tf.ensure_shape(planes, [None, *size]) if isinstance(size, tuple) else planes


def from_model(planes, placement: dict, shape):
    """Undo `to_model`.

    Args:
        planes: float32 [N, height, width, C] of the model, or of a field larger than that.
        placement: from `place`.
        shape: int32 [2], (H, W) of the scan.

    Returns:
        float32 [N, H, W, C]; zeros where the model did not look.
    """
    size = tf.shape(planes)[1:3]
    fitted, (y, x, height, width) = placement["fitted"], tf.unstack(placement["box"])
    missing, cut = tf.maximum(size - fitted, 0), tf.maximum(fitted - size, 0)
    top, left = missing[0] // 2, missing[1] // 2
    planes = planes[:, top : top + fitted[0], left : left + fitted[1]]
    planes = tf.pad(planes, [[0, 0], [cut[0] // 2, (cut[0] + 1) // 2], [cut[1] // 2, (cut[1] + 1) // 2], [0, 0]])
    planes = tf.image.resize(planes, [height, width])
    return tf.pad(planes, [[0, 0], [y, shape[0] - y - height], [x, shape[1] - x - width], [0, 0]])


def window_indices(numbers, offsets):
    """Which slices make the window around each slice.

    A slice outside of the scan, or behind a gap in the slices' numbers, is replaced by the last one before it.

    Args:
        numbers: int64 [D], the slices' numbers, rising.
        offsets: int32 [K] from `window_offsets`.

    Returns:
        int32 [D, K], indices into the scan.
    """
    index = tf.range(tf.size(numbers))
    first, last = ends_of_runs(numbers)
    return tf.clip_by_value(index[:, None] + offsets, first[:, None], last[:, None])


def patch_indices(numbers, offsets):
    """Which slices make the volume around each slice: moved as a whole to where all its slices are, if they fit.

    Args:
        numbers: int64 [D], the slices' numbers, rising.
        offsets: int32 [K] from `window_offsets`.

    Returns:
        int32 [D, K], indices into the scan; a run of slices shorter than the volume is filled with its last one.
    """
    index = tf.range(tf.size(numbers))
    first, last = ends_of_runs(numbers)
    low, high = first - offsets[0], last - offsets[-1]
    middle = tf.clip_by_value(index, low, tf.maximum(low, high))
    return tf.clip_by_value(middle[:, None] + offsets, first[:, None], last[:, None])


def window_offsets(spacing, data: DataConfig):
    """Distances of a window's slices from the middle one, in slices.

    Args:
        spacing: float32 [3], z, y, x in mm.
        data: slices, or the depth of patch; stride, or stride_mm.

    Returns:
        int32 [K]; steps of data.stride_mm are rounded to whole slices. Those of a window are at least one apart, those
        of a volume may be the same where slices are thicker than data.stride_mm.
    """
    count = data.slices if data.patch is None else data.patch[0]
    steps = tf.range(count) - count // 2
    if data.stride_mm is None:
        return data.stride * steps
    slices = tf.cast(tf.round(tf.cast(steps, tf.float32) * data.stride_mm / spacing[0]), tf.int32)
    return slices if data.patch is not None else tf.sign(steps) * tf.maximum(tf.abs(slices), tf.abs(steps))


def ends_of_runs(numbers):
    """The first and the last slice of the run without gap in which each slice is.

    Args:
        numbers: int64 [D], the slices' numbers, rising.

    Returns:
        Two int32 [D], indices into the scan.
    """
    depth = tf.size(numbers)
    index = tf.range(depth)
    run = tf.concat([[0], tf.cumsum(tf.cast(numbers[1:] - numbers[:-1] != 1, tf.int32))], 0)[:depth]
    return tf.gather(tf.math.segment_min(index, run), run), tf.gather(tf.math.segment_max(index, run), run)


def stack_windows(volume, indices):
    """Gather windows, channels last.

    Args:
        volume: [D, H, W].
        indices: int32 [N, K] from `window_indices`.

    Returns:
        [N, H, W, K], same dtype.
    """
    return tf.transpose(tf.gather(volume, indices), [0, 2, 3, 1])
