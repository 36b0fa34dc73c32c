"""From a scan's voxels to its organ masks in one TensorFlow graph, as `gitseg_tf.inference.predictor` finds them."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from gitseg_tf.config import Config
from gitseg_tf.data.geometry import (
    at_scale,
    field_of,
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
from gitseg_tf.data.tiles import tile_slices, tile_step
from gitseg_tf.inference.postprocess import organ_settings
from gitseg_tf.inference.volumes import gaussian_weights
from gitseg_tf.serving.cleaning import clean_mask, organ_mask

_INTENSITIES = 1 << 16


def make_segment(probabilities: Callable, config: Config) -> Callable:
    """Everything that `make_predictor` does with a scan, as TensorFlow operations.

    The network sees evaluation.batch_size windows at once, and stands in the graph once: what loads the graph writes
    out its calls, each with the weights. Besides, memory is that of the scan: about 30 bytes a voxel, where an organ is
    smoothed or several scales are averaged 12 more, and each step's input and output for one batch.

    Args:
        probabilities: as of `make_predictor`.
        config: window, size, threshold, batch size, overlap, test-time augmentation and post-processing.

    Returns:
        Function of (image uint16 [D, H, W], spacing float32 [3], z, y, x in mm, numbers int64 [D]) to uint8 masks
        [D, H, W, 3], for tf.function.
    """
    data, evaluation, settings = config.data, config.evaluation, organ_settings(config)
    thresholds = tf.constant([organ.threshold for organ in settings], tf.float32)
    smoothed = any(organ.smooth_mm for organ in settings)
    scales = (1.0, *evaluation.tta.scales)
    # Else no scan is larger than the network's input, whatever its pixels are.
    tiled = data.pixel_mm is not None or max(scales) > 1
    network = _with_mirrored(probabilities) if evaluation.tta.flip else probabilities
    find = _windows_found if data.patch is None else _patches_found

    def finish(found):
        return found if smoothed else found >= thresholds

    def segment(image, spacing, numbers):
        percentiles = intensity_percentiles(image)
        placement = place(image, percentiles, spacing, data)
        normal = normalize(image, percentiles)
        depth, shape = tf.shape(image)[0], tf.shape(image)[1:]

        def view(scale):
            scaled = at_scale(placement, scale)
            prepared = to_model(normal, scaled, field_of(scaled, data.size) if tiled else data.size)
            found_of = find(network, prepared, numbers, spacing, config)
            return lambda begin, end: from_model(found_of(begin, end), scaled, shape)

        if len(scales) == 1:
            found_of, dtype = view(1.0), tf.float32 if smoothed else tf.bool
            found = _in_batches(depth, evaluation.batch_size, lambda begin, end: finish(found_of(begin, end)), dtype)
        else:
            found = finish(_mean_over(scales, view, tf.shape(image), evaluation.batch_size))
        if smoothed:
            masks = [organ_mask(found[..., k], organ, numbers, spacing) for k, organ in enumerate(settings)]
        else:
            masks = [clean_mask(found[..., k], organ, spacing) for k, organ in enumerate(settings)]
        return tf.cast(tf.stack(masks, -1), tf.uint8)

    return segment


def encode_masks(masks):
    """A scan's masks as pictures: a hundredth of their values' size.

    Args:
        masks: uint8 [D, H, W, 3] of 0 and 1.

    Returns:
        string [D], RGB PNGs: a channel an organ, in the order of ORGANS, 255 where it is.
    """
    return tf.io.encode_png(255 * masks, compression=1)


def intensity_percentiles(image):
    """`gitseg_tf.data.records.intensity_percentiles` in TensorFlow: uint16 of any shape to float32 [11]."""
    voxels = tf.cast(tf.reshape(image, [-1]), tf.int32)
    counts = tf.math.bincount(voxels, minlength=_INTENSITIES, maxlength=_INTENSITIES)
    below = tf.cumsum(tf.cast(counts, tf.int64))
    ranks = tf.math.ceil(tf.constant(np.array(PERCENTILES) / 100) * tf.cast(below[-1], tf.float64))
    ranks = tf.maximum(tf.cast(ranks, tf.int64), 1)
    return tf.cast(tf.searchsorted(below, ranks), tf.float32)


def _with_mirrored(probabilities: Callable) -> Callable:
    """The mean of what a network says of its input, and of its input with left and right changed."""

    def mean(windows):
        def step(number, windows, total):
            # The second turn brings both back: what was found first is mirrored as the input is.
            return number + 1, _mirror(windows), _mirror(total + probabilities(windows))

        total = tf.zeros(tf.concat([tf.shape(windows)[:-1], [len(ORGANS)]], 0))
        total = tf.ensure_shape(total, [*windows.shape[:-1], len(ORGANS)])
        return tf.while_loop(lambda number, *_: number < 2, step, [0, windows, total], parallel_iterations=1)[2] / 2

    return mean


def _mirror(windows):
    return tf.reverse(windows, [-2])


def _mean_over(scales: tuple[float, ...], view: Callable, shape, batch_size: int):
    """The mean over scales of what `view` of a scale, a function of (begin, end), gives: float32 [D, H, W, 3]."""
    share, depth = np.float32(1 / len(scales)), shape[0]

    def add_view(number, mean):
        found_of = view(tf.gather(tf.constant(scales, tf.float32), number))

        def add(begin, mean):
            end = tf.minimum(begin + batch_size, depth)
            return end, tf.tensor_scatter_nd_add(mean, tf.range(begin, end)[:, None], share * found_of(begin, end))

        _, mean = tf.while_loop(lambda begin, _: begin < depth, add, [0, mean], parallel_iterations=1)
        return number + 1, mean

    mean = tf.zeros(tf.concat([shape, [len(ORGANS)]], 0))
    return tf.while_loop(lambda number, _: number < len(scales), add_view, [0, mean], parallel_iterations=1)[1]


def _windows_found(probabilities, prepared, numbers, spacing, config: Config) -> Callable:
    """Function of (begin, end) to the probabilities of these slices at the field's size, float32 [N, h, w, 3]."""
    windows, size = window_indices(numbers, window_offsets(spacing, config.data)), config.data.size

    def found_of(begin, end):
        stacked = stack_windows(prepared, windows[begin:end])
        if stacked.shape[1:3] == size:
            return probabilities(stacked)
        return _blend_tiles(probabilities, stacked, size, config.evaluation.overlap)

    return found_of


def _blend_tiles(probabilities, windows, tile: tuple[int, int], overlap: float):
    """`gitseg_tf.inference.planes.blend_tiles` in TensorFlow."""
    plane = tf.shape(windows)[1:3]
    tops_lefts = _tops_lefts(plane, tile, overlap)
    tiles, weights = tf.shape(tops_lefts)[0], tf.constant(gaussian_weights(tile)[..., None])

    def add(number, blended, total):
        top, left = tf.unstack(tops_lefts[number])
        below, right = tf.unstack(plane - tops_lefts[number] - tile)
        of_tile = windows[:, top : top + tile[0], left : left + tile[1]]
        found = probabilities(tf.ensure_shape(of_tile, [None, *tile, windows.shape[-1]]))

        def added():
            around = [[top, below], [left, right], [0, 0]]
            return blended + tf.pad(found * weights, [[0, 0], *around]), total + tf.pad(weights, around)

        return number + 1, *tf.cond(tiles == 1, lambda: (found, total), added)

    total = tf.zeros(tf.concat([plane, [1]], 0))
    blended = tf.zeros(tf.concat([tf.shape(windows)[:3], [len(ORGANS)]], 0))
    free = [tf.TensorShape([]), tf.TensorShape([None, None, None, len(ORGANS)]), tf.TensorShape([None, None, 1])]
    _, blended, total = tf.while_loop(
        lambda number, *_: number < tiles, add, [0, blended, total], shape_invariants=free, parallel_iterations=1
    )
    return tf.cond(tiles == 1, lambda: blended, lambda: blended / total)


def _tops_lefts(plane, tile: tuple[int, int], overlap: float):
    """Where the tiles of `gitseg_tf.inference.volumes.tile_places` begin: int32 [T, 2] of a plane, int32 [2]."""
    tops, lefts = (_starts(plane[axis], tile[axis], overlap) for axis in (0, 1))
    return tf.reshape(tf.stack(tf.meshgrid(tops, lefts, indexing="ij"), -1), [-1, 2])


def _starts(extent, size: int, overlap: float):
    """`gitseg_tf.data.tiles.tile_starts` of an extent that is known in the graph: int32 [T]."""
    last = extent - size
    return tf.concat([tf.range(0, last, tile_step(size, overlap)), [last]], 0)


def _patches_found(probabilities, prepared, numbers, spacing, config: Config) -> Callable:
    """The same for a 3-D network, whose patches are blended over the whole scan first, as in inference.volumes."""
    slices = tile_slices(numbers, window_offsets(spacing, config.data), config.evaluation.overlap)
    evaluation = config.evaluation
    blended = _blend(probabilities, prepared, slices, config.data.patch, evaluation.batch_size, evaluation.overlap)
    return lambda begin, end: blended[begin:end]


def _blend(probabilities, volume, slices, patch: tuple[int, int, int], batch_size: int, overlap: float):
    """`gitseg_tf.inference.volumes.blend` in TensorFlow; the last call of the network is not filled up."""
    starts = _tops_lefts(tf.shape(volume)[1:], patch[1:], overlap)
    tiles = tf.shape(starts)[0]
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
