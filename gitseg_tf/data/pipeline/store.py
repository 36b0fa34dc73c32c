"""Prepared scans in memory, as one tensor of slices, and their windows in a global random order."""

from collections.abc import Callable

import tensorflow as tf

from gitseg_tf.config.data import DataConfig
from gitseg_tf.data.pipeline.windows import Layout, cut_window
from gitseg_tf.data.tfrecords.index import ScanEntry

_OF_SLICES = ("image", "bits", "shown", "windows")
_OF_SCANS = ("id", "annotated")


def stored_scans(scans: tf.data.Dataset, entries: list[ScanEntry]) -> tf.data.Dataset:
    """Concatenate the slices of all scans; cache the result to keep it in memory.

    Args:
        scans: from `prepared_scans`.
        entries: the same scans in dataset.json, in any order.

    Returns:
        Dataset of one dict of tensors from `prepared_scans`: those with a row per slice, concatenated over the N scans;
        id and annotated with a row per scan; and first int64 [N + 1], the first row of each scan, and their number.
    """
    slices = sum(entry.shape[0] for entry in entries)

    def numbered(number, scan):
        return {name: scan[name] for name in _OF_SLICES} | {
            "number": tf.repeat(number, tf.shape(scan["image"])[0]),
            **{name: tf.repeat(scan[name][None], tf.shape(scan["image"])[0], 0) for name in _OF_SCANS},
        }

    # A batch of slices has a known size, so that it can be allocated once, and costs no copy per scan or epoch.
    rows = scans.enumerate().flat_map(lambda n, scan: tf.data.Dataset.from_tensor_slices(numbered(n, scan)))

    def with_first(store):
        first = tf.searchsorted(store["number"], tf.range(store["number"][-1] + 2), out_type=tf.int64)
        of_scans = {name: tf.gather(store[name], first[:-1]) for name in _OF_SCANS}
        return {name: store[name] for name in _OF_SLICES} | of_scans | {"first": first}

    return rows.batch(slices).map(with_first)


def shuffled_windows(
    store: dict, order_of: Callable, most: int, layout: Layout, data: DataConfig, *, seed, named: bool = False
) -> tf.data.Dataset:
    """Cut the windows of an epoch from all scans, in random order over the whole epoch.

    Args:
        store: from `stored_scans`.
        order_of: function from a scan, without its voxels, to its middle slices, int32.
        most: maximum number of windows.
        layout, data, seed, named: as for `windows_at`.

    Returns:
        Dataset of the results of `cut_window`.
    """
    number = tf.size(store["first"], tf.int64) - 1

    def scan_at(n, names):
        rows = slice(store["first"][n], store["first"][n + 1])
        return {name: store[name][rows] for name in names if name in _OF_SLICES} | {
            name: store[name][n] for name in _OF_SCANS
        }

    def middles(n):
        slices = order_of(scan_at(n, ["shown"]))
        return tf.stack([tf.fill([tf.size(slices)], tf.cast(n, tf.int32)), slices], 1)

    # Only the numbers of scan and slice are shuffled, so that the buffer can hold a whole epoch.
    order = tf.data.Dataset.range(number).flat_map(lambda n: tf.data.Dataset.from_tensor_slices(middles(n)))
    order = order.shuffle(most, seed=seed, reshuffle_each_iteration=False)

    def cut(at):
        scan = scan_at(tf.cast(at[0], tf.int64), ["image", "bits", "windows"])
        return cut_window(scan, at[1], layout, data, seed=seed, named=named)

    return order.map(cut, num_parallel_calls=2, deterministic=True)
