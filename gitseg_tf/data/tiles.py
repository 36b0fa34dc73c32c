"""Patches that cover whole scans: for validation once each voxel, for prediction with overlap."""

import tensorflow as tf

from gitseg_tf.data.geometry import ends_of_runs, window_offsets
from gitseg_tf.sections.data import DataConfig


def tile_starts(extent: int, size: int, overlap: float) -> list[int]:
    """Where tiles begin that cover an axis.

    Args:
        extent: of the axis, at least `size`.
        size: of a tile.
        overlap: share of a tile that the next one covers again, 0 to below 1; the last one is moved back to fit.

    Returns:
        The starts, rising, from 0 to extent - size.
    """
    last = extent - size
    return [*range(0, last, tile_step(size, overlap)), last]


def tile_step(size: int, overlap: float) -> int:
    """How far the next of `tile_starts` is, but for the last one."""
    return max(1, round(size * (1 - overlap)))


def tile_slices(numbers, offsets, overlap: float):
    """Which slices make the patches that cover a scan; none reaches over a gap in the slices' numbers.

    Args:
        numbers: int64 [D], the slices' numbers, rising.
        offsets: int32 [K] from `window_offsets`.
        overlap: as of `tile_starts`, of the slices that patches span.

    Returns:
        int32 [T, K], indices into the scan, each slice in one patch at least. A run of slices shorter than the patch is
        filled with its last one.
    """
    first, last = ends_of_runs(numbers)
    # Slices that a patch steps over are in the patches that begin one, two, ... slices later.
    step = tf.maximum(1, tf.reduce_max(offsets[1:] - offsets[:-1], keepdims=True))[0]
    span = offsets[-1] - offsets[0] + step
    hop = tf.maximum(step, tf.cast(tf.round(tf.cast(span, tf.float32) * (1 - overlap)), tf.int32))
    low = first - offsets[0]
    high = tf.maximum(last - offsets[-1], low + tf.minimum(step - 1, last - first))
    place = tf.range(tf.size(numbers)) - first
    middle = low + place
    chosen = (middle <= high) & ((place % hop < step) | (middle > high - step))
    rows = middle[:, None] + offsets
    return tf.boolean_mask(tf.clip_by_value(rows, first[:, None], last[:, None]), chosen)


def validation_tiles(scan: dict, data: DataConfig, named: bool = False) -> tf.data.Dataset:
    """The patches of a prepared scan in which each of its voxels is counted exactly once.

    Args:
        scan: image uint16 [D, H, W], bits uint8 [D, H, W], and tiles int32 [T, K] from `tile_slices` without overlap.
        data: patch and size.
        named: add the scan's id.

    Returns:
        Dataset of planes uint16 and bits uint8 [K, h, w] as of the training's patches, and counted, bool [K, h, w].
    """
    _, height, width = data.patch
    tops, lefts = (tile_starts(data.size[axis], data.patch[axis + 1], 0.0) for axis in (0, 1))
    slices_counted = _counted_first(scan["tiles"], tf.shape(scan["image"])[0])
    rows_counted, columns_counted = (
        _counted_first(tf.constant(starts)[:, None] + tf.range(size), extent)
        for starts, size, extent in ((tops, height, data.size[0]), (lefts, width, data.size[1]))
    )

    def tile(number):
        slices, row, column = number // (len(tops) * len(lefts)), number // len(lefts) % len(tops), number % len(lefts)
        y, x = tf.constant(tops)[row], tf.constant(lefts)[column]
        made = {
            name: tf.gather(scan[key][:, y : y + height, x : x + width], scan["tiles"][slices])
            for name, key in (("planes", "image"), ("bits", "bits"))
        }
        made["counted"] = (
            slices_counted[slices][:, None, None] & rows_counted[row][:, None] & columns_counted[column][None]
        )
        made = {name: tf.ensure_shape(part, data.patch) for name, part in made.items()}
        return made | ({"id": scan["id"]} if named else {})

    count = tf.shape(scan["tiles"])[0] * len(tops) * len(lefts)
    return tf.data.Dataset.range(tf.cast(count, tf.int64)).map(lambda number: tile(tf.cast(number, tf.int32)))


def count_tiles(depth: int, spacing: tuple[float, float, float], data: DataConfig) -> int:
    """How many `validation_tiles` a scan has.

    Args:
        depth: slices of the scan.
        spacing: (z, y, x) in mm.
        data: patch, size and stride.

    Returns:
        Their number.
    """
    rows = scan_tiles(depth, spacing, data).shape[0]
    for extent, size in zip(data.size, data.patch[1:], strict=True):
        rows *= len(tile_starts(extent, size, 0.0))
    return rows


def scan_tiles(depth, spacing, data: DataConfig):
    """`tile_slices` without overlap, over gaps in the slices' numbers: what the index knows suffices to count them."""
    offsets = window_offsets(tf.convert_to_tensor(spacing, tf.float32), data)
    return tile_slices(tf.range(depth), offsets, 0.0)


def _counted_first(places, extent):
    """bool like places [T, K]: true for the first of the entries that have the same value, of 0 to extent - 1."""
    flat = tf.reshape(places, [-1])
    order = tf.range(tf.size(flat))
    first = tf.math.unsorted_segment_min(order, flat, extent)
    return tf.reshape(tf.gather(first, flat) == order, tf.shape(places))
