"""From a scan's voxels to its organ masks in one TensorFlow graph, as `gitseg_tf.inference.predictor` finds them."""

from collections.abc import Callable
from itertools import product

import numpy as np
import tensorflow as tf

from gitseg_tf.config import Config
from gitseg_tf.data.geometry import (
    from_model,
    normalize,
    place,
    stack_windows,
    to_model,
    window_indices,
    window_offsets,
)
from gitseg_tf.data.records import PERCENTILES
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.data.tiles import tile_slices, tile_starts
from gitseg_tf.inference.postprocess import organ_settings
from gitseg_tf.inference.volumes import OVERLAP, gaussian_weights
from gitseg_tf.serving.cleaning import clean_mask, organ_mask

_INTENSITIES = 1 << 16


def make_segment(probabilities: Callable, config: Config) -> Callable:
    """Everything that `make_predictor` does with a scan, as TensorFlow operations.

    The network sees evaluation.batch_size windows at once. Besides, memory is that of the scan: about 30 bytes a voxel,
    and where an organ is smoothed 12 more.

    Args:
        probabilities: as of `make_predictor`.
        config: window, size, threshold, batch size and post-processing.

    Returns:
        Function of (image uint16 [D, H, W], spacing float32 [3], z, y, x in mm, numbers int64 [D]) to uint8 masks
        [D, H, W, 3], for tf.function.
    """
    data, settings = config.data, organ_settings(config)
    thresholds = tf.constant([organ.threshold for organ in settings], tf.float32)
    smoothed = any(organ.smooth_mm for organ in settings)
    find = _windows_found if data.patch is None else _patches_found

    def finish(found):
        return found if smoothed else found >= thresholds

    def segment(image, spacing, numbers):
        percentiles = intensity_percentiles(image)
        placement = place(image, percentiles, spacing, data)
        prepared = to_model(normalize(image, percentiles), placement, data.size)
        shape = tf.shape(image)[1:]
        found_of = find(probabilities, prepared, numbers, spacing, config)
        found = _in_batches(
            tf.shape(image)[0],
            config.evaluation.batch_size,
            lambda begin, end: finish(from_model(found_of(begin, end), placement, shape)),
            tf.float32 if smoothed else tf.bool,
        )
        if smoothed:
            masks = [organ_mask(found[..., k], organ, numbers, spacing) for k, organ in enumerate(settings)]
        else:
            masks = [clean_mask(found[..., k], organ, spacing) for k, organ in enumerate(settings)]
        return tf.cast(tf.stack(masks, -1), tf.uint8)

    return segment


def intensity_percentiles(image):
    """`gitseg_tf.data.records.intensity_percentiles` in TensorFlow: uint16 of any shape to float32 [11]."""
    voxels = tf.cast(tf.reshape(image, [-1]), tf.int32)
    counts = tf.math.bincount(voxels, minlength=_INTENSITIES, maxlength=_INTENSITIES)
    below = tf.cumsum(tf.cast(counts, tf.int64))
    ranks = tf.math.ceil(tf.constant(np.array(PERCENTILES) / 100) * tf.cast(below[-1], tf.float64))
    ranks = tf.maximum(tf.cast(ranks, tf.int64), 1)
    return tf.cast(tf.searchsorted(below, ranks), tf.float32)


def _windows_found(probabilities, prepared, numbers, spacing, config: Config) -> Callable:
    """Function of (begin, end) to the probabilities of these slices at the model's size, float32 [N, h, w, 3]."""
    windows = window_indices(numbers, window_offsets(spacing, config.data))
    return lambda begin, end: probabilities(stack_windows(prepared, windows[begin:end]))


def _patches_found(probabilities, prepared, numbers, spacing, config: Config) -> Callable:
    """The same for a 3-D network, whose patches are blended over the whole scan first, as in inference.volumes."""
    slices = tile_slices(numbers, window_offsets(spacing, config.data), OVERLAP)
    blended = _blend(probabilities, prepared, slices, config.data.patch, config.evaluation.batch_size)
    return lambda begin, end: blended[begin:end]


def _blend(probabilities, volume, slices, patch: tuple[int, int, int], batch_size: int):
    """`gitseg_tf.inference.volumes.blend` in TensorFlow; the last call of the network is not filled up."""
    rows, columns = (
        tile_starts(extent, size, OVERLAP) for extent, size in zip(volume.shape[1:], patch[1:], strict=True)
    )
    tops_lefts = [*product(rows, columns)]
    starts, tiles = tf.constant(tops_lefts, tf.int32), len(tops_lefts)
    inside = tf.stack(tf.meshgrid(tf.range(patch[1]), tf.range(patch[2]), indexing="ij"), -1)
    weights = tf.constant(gaussian_weights(patch)[..., None])
    count = tf.shape(slices)[0] * tiles

    def add(begin, sums):
        number = tf.range(begin, tf.minimum(begin + batch_size, count))
        z = tf.gather(slices, number // tiles)
        yx = tf.gather(starts, number % tiles)[:, None, None, :] + inside
        z, yx = tf.broadcast_to(z[..., None, None, None], [tf.size(number), *patch, 1]), yx[:, None]
        places = tf.concat([z, tf.repeat(yx, patch[0], 1)], -1)
        found = probabilities(tf.gather_nd(volume, places)[..., None])
        weighted = tf.concat([found * weights, tf.broadcast_to(weights, [tf.size(number), *patch, 1])], -1)
        return begin + batch_size, tf.tensor_scatter_nd_add(sums, places, weighted)

    sums = tf.zeros(tf.concat([tf.shape(volume), [len(ORGANS) + 1]], 0))
    _, sums = tf.while_loop(lambda begin, _: begin < count, add, [0, sums], parallel_iterations=1)
    return sums[..., :-1] / sums[..., -1:]


def _in_batches(count, batch_size: int, found_of: Callable, dtype):
    """Join what a function of (begin, end) gives of up to batch_size slices at a time: [N, H, W, 3] to [D, H, W, 3]."""
    batches = (count + batch_size - 1) // batch_size
    parts = tf.TensorArray(dtype, batches, infer_shape=False, element_shape=[None, None, None, len(ORGANS)])

    def one(number, parts):
        begin = number * batch_size
        return number + 1, parts.write(number, found_of(begin, tf.minimum(begin + batch_size, count)))

    _, parts = tf.while_loop(lambda number, _: number < batches, one, [0, parts], parallel_iterations=1)
    return parts.concat()
