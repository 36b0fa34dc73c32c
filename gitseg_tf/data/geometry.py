"""Between a scan's pixels and the model's: normalisation, letterbox and its inverse, slice windows. In TensorFlow."""

import tensorflow as tf

from gitseg_tf.data.records import PERCENTILES

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


def fitted_shape(shape, size: tuple[int, int]):
    """Height and width of an image scaled to fit into `size` with its proportions.

    Args:
        shape: int tensor [2], the image's height and width.
        size: the model's height and width.

    Returns:
        int32 tensor [2], each at most that of `size`, one of them equal.
    """
    scale = tf.reduce_min(tf.constant(size, tf.float64) / tf.cast(shape, tf.float64))
    fitted = tf.cast(tf.round(tf.cast(shape, tf.float64) * scale), tf.int32)
    return tf.clip_by_value(fitted, 1, tf.constant(size, tf.int32))


def letterbox(planes, size: tuple[int, int]):
    """Scale planes to fit into `size` with their proportions, and pad with zeros around them.

    Args:
        planes: float32 [N, H, W, C].
        size: (height, width) of the model.

    Returns:
        float32 [N, height, width, C], smoothed before it is made smaller.
    """
    fitted = fitted_shape(tf.shape(planes)[1:3], size)
    planes = tf.image.resize(planes, fitted, antialias=True)
    top, left = (size[0] - fitted[0]) // 2, (size[1] - fitted[1]) // 2
    padding = [[0, 0], [top, size[0] - fitted[0] - top], [left, size[1] - fitted[1] - left], [0, 0]]
    return tf.ensure_shape(tf.pad(planes, padding), [None, *size, planes.shape[-1]])


def unletterbox(planes, shape):
    """Undo `letterbox`: cut off the padding and scale back.

    Args:
        planes: float32 [N, height, width, C] of the model.
        shape: (H, W) of the scan.

    Returns:
        float32 [N, H, W, C].
    """
    size = planes.shape[1:3]
    fitted = fitted_shape(tf.convert_to_tensor(shape, tf.int32), tuple(size))
    top, left = (size[0] - fitted[0]) // 2, (size[1] - fitted[1]) // 2
    return tf.image.resize(planes[:, top : top + fitted[0], left : left + fitted[1]], shape)


def window_indices(numbers, slices: int, stride: int):
    """Which slices make the window around each slice.

    A slice outside of the scan, or behind a gap in the slices' numbers, is replaced by the last one before it.

    Args:
        numbers: int64 [D], the slices' numbers, rising.
        slices: how many make a window, odd.
        stride: distance between them.

    Returns:
        int32 [D, slices], indices into the scan; the middle column is 0 .. D-1.
    """
    depth = tf.size(numbers)
    index = tf.range(depth)
    run = tf.concat([[0], tf.cumsum(tf.cast(numbers[1:] - numbers[:-1] != 1, tf.int32))], 0)[:depth]
    first = tf.gather(tf.math.segment_min(index, run), run)
    last = tf.gather(tf.math.segment_max(index, run), run)
    offsets = stride * (tf.range(slices) - slices // 2)
    return tf.clip_by_value(index[:, None] + offsets, first[:, None], last[:, None])


def stack_windows(volume, indices):
    """Gather windows, channels last.

    Args:
        volume: [D, H, W].
        indices: int32 [N, K] from `window_indices`.

    Returns:
        [N, H, W, K], same dtype.
    """
    return tf.transpose(tf.gather(volume, indices), [0, 2, 3, 1])
