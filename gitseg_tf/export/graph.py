"""Computation of a scan's masks from its voxels in one TensorFlow graph, as in `gitseg_tf.inference.predictor`.

Normalization, placement, resampling, windows and the network are the same operations as in prediction. The weighted
mean of overlapping tiles and patches is implemented again in `_blend`, because a graph cannot add in place; positions
and weights are those of `gitseg_tf.inference.sliding_window.blend`.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from gitseg_tf.config import Config
from gitseg_tf.data.pipeline.geometry import (
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
from gitseg_tf.data.pipeline.planes import AXES, fill_gaps, from_plane, to_plane
from gitseg_tf.data.pipeline.tiles import tile_slices, tile_step
from gitseg_tf.data.volume import PERCENTILES
from gitseg_tf.export.postprocess import clean_mask, label_mask
from gitseg_tf.inference.ensemble import flip_columns
from gitseg_tf.inference.postprocess import label_settings
from gitseg_tf.inference.sliding_window.blend import gaussian_weights

_INTENSITIES = 1 << 16


def make_segment(network: Callable, config: Config) -> Callable:
    """Build a function that does everything a `Predictor` does with a scan, in TensorFlow operations.

    The network is called with evaluation.batch_size windows at a time and appears in the graph only once, because the
    loader of a graph inlines every call with its own copy of the weights. The memory besides the network is
    proportional to the scan: about 30 bytes per voxel for three labels, 4 more per label if a label is smoothed or
    several scales are averaged, and the input and output of each step for one batch.

    Args:
        network: function from windows or patches to probabilities, as for `Member`; with the presence of labels if one
            has min_presence, see `with_presence`.
        config: provides labels, channels, window, size, thresholds, batch size, overlap, test-time augmentation and
            post-processing.

    Returns:
        A function, to be wrapped in tf.function, from the image (float32 [D, H, W, C]), the spacing (float32 [3],
        z, y, x in mm) and the slice numbers (int64 [D]) to masks (uint8 [D, H, W, L]).
    """
    data, evaluation, settings = config.data, config.evaluation, label_settings(config)
    thresholds = tf.constant([steps.threshold for steps in settings], tf.float32)
    least_presence = np.array([steps.min_presence for steps in settings], np.float32)
    smoothed, gated = any(steps.smooth_mm for steps in settings), bool(least_presence.any())
    labels = len(settings)
    planes = labels * (1 + gated)
    scales = (1.0, *evaluation.tta.scales)
    # Otherwise no scan is larger than the network's input, whatever its pixel size.
    tiled = data.pixel_mm is not None or max(scales) > 1
    if evaluation.tta.flip:
        network = _with_flipped(network, planes)
    probabilities_of = _of_windows if data.patch is None else _of_patches

    def finish(probabilities):
        if smoothed:
            return probabilities
        masks = probabilities[..., :labels] >= thresholds
        if not gated:
            return masks
        return masks & (tf.reduce_max(probabilities[..., labels:], [1, 2]) >= least_presence)[:, None, None]

    def segment(image, spacing, numbers):
        statistics = {"percentiles": intensity_percentiles(image), "moments": intensity_moments(image)}
        if data.plane == "axial":
            found = probabilities_in(image, spacing, numbers, statistics)
        else:
            index, rows = fill_gaps(numbers)
            along = to_plane(image, index, data.plane)
            along_numbers = tf.range(tf.shape(along, tf.int64)[0])
            along_found = probabilities_in(along, tf.gather(spacing, AXES[data.plane]), along_numbers, statistics)
            found = from_plane(along_found, rows, data.plane)
        if smoothed:
            presence = tf.reduce_max(found[..., labels:], [1, 2]) if gated else None
            masks = [
                label_mask(found[..., k], steps, numbers, spacing, None if presence is None else presence[:, k])
                for k, steps in enumerate(settings)
            ]
        else:
            masks = [clean_mask(found[..., k], steps, numbers, spacing) for k, steps in enumerate(settings)]
        return tf.cast(tf.stack(masks, -1), tf.uint8)

    def probabilities_in(image, spacing, numbers, statistics):
        """Compute what `finish` returns for the slices of data.plane."""
        placement = place(image, statistics["percentiles"], spacing, data)
        normal = normalize(image, statistics, data)
        depth, shape = tf.shape(image)[0], tf.shape(image)[1:3]

        def view(scale):
            scaled = at_scale(placement, scale)
            field = to_model(normal, scaled, field_of(scaled, data.input_size) if tiled else data.input_size)
            of_slices = probabilities_of(network, field, numbers, spacing, config, planes)
            return lambda begin, end: from_model(of_slices(begin, end), scaled, shape)

        if len(scales) == 1:
            of_slices, dtype = view(1.0), tf.float32 if smoothed else tf.bool
            return _in_batches(
                depth,
                evaluation.batch_size,
                lambda begin, end: finish(of_slices(begin, end)),
                dtype,
                planes if smoothed else labels,
            )
        mean_shape = tf.concat([tf.shape(image)[:3], [planes]], 0)
        return finish(_mean_over(scales, view, mean_shape, evaluation.batch_size))

    return segment


def encode_masks(masks):
    """Encode a scan's masks as PNG images, which take about a hundredth of the bytes of the raw masks.

    Args:
        masks: uint8 [D, H, W, L], 0 or 1.

    Returns:
        string [D]: one grayscale PNG [L * H, W] per slice, with the masks of the labels stacked vertically and 255
        inside a mask.
    """
    shape = tf.shape(masks)
    stacked = tf.reshape(tf.transpose(255 * masks, [0, 3, 1, 2]), [shape[0], shape[3] * shape[1], shape[2], 1])
    return tf.io.encode_png(stacked, compression=1)


def intensity_percentiles(image):
    """Compute `gitseg_tf.data.volume.intensity_percentiles` of each channel: float32 [D, H, W, C] to float32 [C, 11].

    Integers within a range of 2^16 are counted, which takes a fraction of the time of sorting; other values are sorted.
    """
    return tf.stack([_channel_percentiles(tf.reshape(image[..., c], [-1])) for c in range(image.shape[-1])])


def _channel_percentiles(voxels):
    low, high = tf.reduce_min(voxels), tf.reduce_max(voxels)
    count = tf.cast(tf.size(voxels), tf.float64)
    ranks = tf.maximum(tf.cast(tf.math.ceil(tf.constant(np.array(PERCENTILES) / 100) * count), tf.int64), 1)

    def counted():
        values = tf.cast(voxels - low, tf.int32)
        counts = tf.math.bincount(values, minlength=_INTENSITIES, maxlength=_INTENSITIES)
        return tf.cast(tf.searchsorted(tf.cumsum(tf.cast(counts, tf.int64)), ranks), tf.float32) + low

    def by_sorting():
        return tf.gather(tf.sort(voxels), ranks - 1)

    # Larger integers are not exact in float32.
    exact = (high - low < _INTENSITIES) & (tf.maximum(tf.abs(low), tf.abs(high)) < 1 << 23)
    integers = tf.cond(exact, lambda: tf.reduce_all(voxels == tf.floor(voxels)), lambda: tf.constant(False))
    return tf.cond(integers, counted, by_sorting)


def intensity_moments(image):
    """Compute the mean and the standard deviation of each channel: float32 [D, H, W, C] to float32 [C, 2]."""
    voxels = tf.cast(tf.reshape(image, [-1, image.shape[-1]]), tf.float64)
    mean = tf.reduce_mean(voxels, 0)
    deviation = tf.sqrt(tf.reduce_mean((voxels - mean) ** 2, 0))
    return tf.cast(tf.stack([mean, deviation], 1), tf.float32)


def _with_flipped(network: Callable, labels: int) -> Callable:
    """Wrap a network so that it averages its output over the input and the horizontally flipped input."""

    def mean(windows):
        def step(number, windows, total):
            # The second pass flips both back: the first result is flipped along with the input.
            return number + 1, flip_columns(windows), flip_columns(total + network(windows))

        total = tf.zeros(tf.concat([tf.shape(windows)[:-1], [labels]], 0))
        total = tf.ensure_shape(total, [*windows.shape[:-1], labels])
        return tf.while_loop(lambda number, *_: number < 2, step, [0, windows, total], parallel_iterations=1)[2] / 2

    return mean


def _mean_over(scales: tuple[float, ...], view: Callable, shape, batch_size: int):
    """Average probabilities over scales; `view(scale)` is a function of (begin, end). Returns float32 [D, H, W, L]."""
    weight, depth = np.float32(1 / len(scales)), shape[0]

    def add_view(number, mean):
        of_slices = view(tf.gather(tf.constant(scales, tf.float32), number))

        def add(begin, mean):
            end = tf.minimum(begin + batch_size, depth)
            return end, tf.tensor_scatter_nd_add(mean, tf.range(begin, end)[:, None], weight * of_slices(begin, end))

        _, mean = tf.while_loop(lambda begin, _: begin < depth, add, [0, mean], parallel_iterations=1)
        return number + 1, mean

    return tf.while_loop(lambda number, _: number < len(scales), add_view, [0, tf.zeros(shape)], parallel_iterations=1)[
        1
    ]


def _of_windows(network, field, numbers, spacing, config: Config, planes: int) -> Callable:
    """Return a function of (begin, end) to these slices' probabilities at the field's size, float32 [N, h, w, L]."""
    windows, size = window_indices(numbers, window_offsets(spacing, config.data)), config.data.input_size

    def of_slices(begin, end):
        stacked = stack_windows(field, windows[begin:end])
        if stacked.shape[1:3] == size:
            return network(stacked)
        return _blend_tiles(network, stacked, size, config.evaluation.overlap, planes)

    return of_slices


def _blend_tiles(network, windows, tile: tuple[int, int], overlap: float, planes: int):
    """Implement `sliding_window.blend.blend_tiles` in TensorFlow operations: each step runs one tile of all windows."""
    corners = _tile_corners(tf.shape(windows)[1:3], tile, overlap)
    offsets = _grid(tf.shape(windows)[0], *tile)

    def positions(number):
        return offsets + tf.pad(corners[number], [[1, 0]])

    shape = [None, *tile, windows.shape[-1]]
    return _blend(network, windows, positions, shape, steps=tf.shape(corners)[0], planes=planes)


def _tile_corners(plane, tile: tuple[int, int], overlap: float):
    """Return the top left corners of `tile_positions`, int32 [T, 2], for a plane of a given size, int32 [2]."""
    tops, lefts = (_starts(plane[axis], tile[axis], overlap) for axis in (0, 1))
    return tf.reshape(tf.stack(tf.meshgrid(tops, lefts, indexing="ij"), -1), [-1, 2])


def _starts(extent, size: int, overlap: float):
    """Compute `gitseg_tf.data.pipeline.tiles.tile_starts`, int32 [T], for an extent known only in the graph."""
    last = extent - size
    return tf.concat([tf.range(0, last, tile_step(size, overlap)), [last]], 0)


def _of_patches(network, field, numbers, spacing, config: Config, planes: int) -> Callable:
    """Do the same as `_of_windows` for a 3-D network, whose patches are first blended over the whole scan."""
    slices = tile_slices(numbers, window_offsets(spacing, config.data), config.evaluation.overlap)
    blended = _blend_patches(network, field, slices, config, planes)
    return lambda begin, end: blended[begin:end]


def _blend_patches(network, field, slices, config: Config, planes: int):
    """Implement `sliding_window.blend.blend_patches` in TensorFlow operations, without padding the last batch."""
    patch, batch_size = config.data.patch_shape, config.evaluation.batch_size
    corners = _tile_corners(tf.shape(field)[1:3], patch[1:], config.evaluation.overlap)
    tiles = tf.shape(corners)[0]
    count = tf.shape(slices)[0] * tiles
    offsets = _grid(1, *patch[1:])

    def positions(number):
        of_batch = tf.range(number * batch_size, tf.minimum((number + 1) * batch_size, count))
        z = tf.gather(slices, of_batch // tiles)[:, :, None, None, None]
        yx = tf.gather(corners, of_batch % tiles)[:, None, None, None, :] + offsets[..., 1:]
        shape = [tf.size(of_batch), *patch]
        return tf.concat([tf.broadcast_to(z, [*shape, 1]), tf.broadcast_to(yx, [*shape, 2])], -1)

    steps = (count + batch_size - 1) // batch_size
    shape = [None, *patch, field.shape[-1]]
    return _blend(network, field, positions, shape, steps=steps, planes=planes)


def _blend(network, field, positions: Callable, shape: list, *, steps, planes: int):
    """Average a network's output over overlapping blocks of a field, as `sliding_window.blend.WeightedMean` does.

    Args:
        network: function from blocks to their probabilities.
        field: float32 [N, H, W, K]: windows, or the slices of a scan.
        positions: function from a step to the voxels of its blocks, int32 [B, ..., 3], as indices along N, H and W. A
            voxel may be in several blocks.
        shape: the shape of the network's input, with None for B.
        steps: the number of calls of the network.
        planes: the number of planes that the network returns, P: one per label, or two with their presence.

    Returns:
        float32 [N, H, W, P].
    """
    weights = tf.constant(gaussian_weights(tuple(shape[1:-1]))[..., None])

    def add(step, sums):
        voxels = positions(step)
        probabilities = network(tf.ensure_shape(tf.gather_nd(field, voxels), shape))
        ones = tf.ones_like(probabilities[..., :1])
        return step + 1, tf.tensor_scatter_nd_add(sums, voxels, tf.concat([probabilities, ones], -1) * weights)

    sums = tf.zeros(tf.concat([tf.shape(field)[:3], [planes + 1]], 0))
    _, sums = tf.while_loop(lambda step, _: step < steps, add, [0, sums], parallel_iterations=1)
    return sums[..., :-1] / sums[..., -1:]


def _grid(*extents):
    """Return the indices of all voxels of a block with three extents, int32 [*extents, 3]."""
    return tf.stack(tf.meshgrid(*[tf.range(extent) for extent in extents], indexing="ij"), -1)


def _in_batches(count, batch_size: int, of_slices: Callable, dtype, labels: int):
    """Call a function of (begin, end) on up to batch_size slices at a time and join the results to [D, H, W, L]."""
    batches = (count + batch_size - 1) // batch_size
    parts = tf.TensorArray(dtype, batches, infer_shape=False, element_shape=[None, None, None, labels])

    def one(number, parts):
        begin = number * batch_size
        return number + 1, parts.write(number, of_slices(begin, tf.minimum(begin + batch_size, count)))

    _, parts = tf.while_loop(lambda number, _: number < batches, one, [0, parts], parallel_iterations=1)
    return parts.concat()
