"""Patches that cover whole scans: each voxel counts once in validation; patches overlap in prediction."""

import tensorflow as tf

from gitseg_tf.config.data import DataConfig
from gitseg_tf.data.pipeline.geometry import ends_of_runs, window_offsets


def tile_starts(extent: int, size: int, overlap: float) -> list[int]:
    """Compute the starts of tiles that cover an axis.

    Args:
        extent: length of the axis, at least `size`.
        size: length of a tile.
        overlap: fraction of a tile that the next one covers again, 0 <= overlap < 1; the last tile is moved back to
            fit.

    Returns:
        The starts in ascending order, from 0 to extent - size.
    """
    last = extent - size
    return [*range(0, last, tile_step(size, overlap)), last]


def tile_step(size: int, overlap: float) -> int:
    """Compute the distance between consecutive `tile_starts`; the last distance may be smaller."""
    return max(1, round(size * (1 - overlap)))


def tile_slices(numbers, offsets, overlap: float):
    """List the slices of the patches that cover a scan; no patch spans a gap in the slice numbers.

    Args:
        numbers: int64 [D], the slice numbers in ascending order.
        offsets: int32 [K] from `window_offsets`.
        overlap: as for `tile_starts`, as a fraction of the slices that a patch spans.

    Returns:
        int32 [T, K], indices into the scan; each slice is in at least one patch. A run of slices shorter than the patch
        is padded with its last slice.
    """
    first, last = ends_of_runs(numbers)
    # Slices that a patch skips belong to the patches that begin one, two, ... slices later.
    step = tf.maximum(1, tf.reduce_max(offsets[1:] - offsets[:-1], keepdims=True))[0]
    span = offsets[-1] - offsets[0] + step
    hop = tf.maximum(step, tf.cast(tf.round(tf.cast(span, tf.float32) * (1 - overlap)), tf.int32))
    low = first - offsets[0]
    high = tf.maximum(last - offsets[-1], low + tf.minimum(step - 1, last - first))
    position = tf.range(tf.size(numbers)) - first
    middle = low + position
    chosen = (middle <= high) & ((position % hop < step) | (middle > high - step))
    rows = middle[:, None] + offsets
    return tf.boolean_mask(tf.clip_by_value(rows, first[:, None], last[:, None]), chosen)


def validation_tiles(scan: dict, data: DataConfig, named: bool = False) -> tf.data.Dataset:
    """Cut a prepared scan into patches in which each voxel is counted exactly once.

    Args:
        scan: image uint16 [D, C, H, W], bits uint8 [D, G, H, W], annotated bool [L], and tiles int32 [T, K] from
            `tile_slices` without overlap.
        data: patch and input_size.
        named: add the scan's id.

    Returns:
        Dataset of planes uint16 [K, C, h, w], bits uint8 [K, G, h, w] and annotated, as for training patches, and
        counted, bool [K, h, w].
    """
    _, height, width = data.patch_shape
    tops, lefts = (tile_starts(data.input_size[axis], data.patch_shape[axis + 1], 0.0) for axis in (0, 1))
    slices_counted = _first_occurrences(scan["tiles"], tf.shape(scan["image"])[0])
    rows_counted, columns_counted = (
        _first_occurrences(tf.constant(starts)[:, None] + tf.range(size), extent)
        for starts, size, extent in ((tops, height, data.input_size[0]), (lefts, width, data.input_size[1]))
    )

    def tile(number):
        slices, row, column = number // (len(tops) * len(lefts)), number // len(lefts) % len(tops), number % len(lefts)
        y, x = tf.constant(tops)[row], tf.constant(lefts)[column]
        cut = {
            name: scan[key][:, :, y : y + height, x : x + width]
            for name, key in (("planes", "image"), ("bits", "bits"))
        }
        counted = slices_counted[slices][:, None, None] & rows_counted[row][:, None] & columns_counted[column][None]
        patch = cut_patch(cut, scan["tiles"][slices], data)
        patch |= {"counted": tf.ensure_shape(counted, data.patch), "annotated": scan["annotated"]}
        return patch | ({"id": scan["id"]} if named else {})

    count = tf.shape(scan["tiles"])[0] * len(tops) * len(lefts)
    return tf.data.Dataset.range(tf.cast(count, tf.int64)).map(lambda number: tile(tf.cast(number, tf.int32)))


def cut_patch(volumes: dict, slices, data: DataConfig) -> dict:
    """Select the slices of a patch from volumes that are already cropped in-plane: [D, N, h, w] to [K, N, h, w]."""
    depth, height, width = data.patch_shape
    return {
        name: tf.ensure_shape(tf.gather(volume, slices), [depth, volume.shape[1], height, width])
        for name, volume in volumes.items()
    }


def count_tiles(depth: int, spacing: tuple[float, float, float], data: DataConfig) -> int:
    """Count the `validation_tiles` of a scan.

    Args:
        depth: number of slices of the scan.
        spacing: (z, y, x) in mm.
        data: patch, input_size and window stride.

    Returns:
        The number of tiles.
    """
    rows = scan_tiles(depth, spacing, data).shape[0]
    for extent, size in zip(data.input_size, data.patch_shape[1:], strict=True):
        rows *= len(tile_starts(extent, size, 0.0))
    return rows


def scan_tiles(depth, spacing, data: DataConfig):
    """Compute `tile_slices` without overlap, ignoring gaps in the slice numbers, so that dataset.json suffices."""
    offsets = window_offsets(tf.convert_to_tensor(spacing, tf.float32), data)
    return tile_slices(tf.range(depth), offsets, 0.0)


def _first_occurrences(indices, extent):
    """Mark the first occurrence of each value 0 to extent - 1 among indices [T, K]: bool [T, K]."""
    flat = tf.reshape(indices, [-1])
    order = tf.range(tf.size(flat))
    first = tf.math.unsorted_segment_min(order, flat, extent)
    return tf.reshape(tf.gather(first, flat) == order, tf.shape(indices))
