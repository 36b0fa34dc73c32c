"""The view of a scan along another axis: the slices from which the windows of data.plane are cut.

The view of a plane is the transposed scan. Its rows run from head to feet, and its pixels are as anisotropic as the
scan. The slices of the scan, which are rows of the view, may have gaps. Each missing one is filled with the nearest
slice, so that the rows are equidistant; it is ignored in training and never predicted.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import tensorflow as tf

from gitseg_tf.data.tfrecords.dataset import INDEX, Dataset
from gitseg_tf.data.tfrecords.index import ScanEntry
from gitseg_tf.data.volume import Volume
from gitseg_tf.errors import DataError

# The axes of the scan in the order of the view's: slices, rows, columns.
AXES: dict[str, tuple[int, int, int]] = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}
# A wider gap is shortened to this many slices: what lies beyond it is no context.
MOST_MISSING = 32


def fill_gaps(numbers):
    """Find the slices that fill the gaps in the slice numbers.

    Args:
        numbers: int64 [D], the slice numbers in ascending order.

    Returns:
        index, int32 [N], the slice at each of the N equidistant rows of the view; and rows, int32 [D], the row of each
        slice. A gap has at most MOST_MISSING rows.
    """
    steps = tf.cast(tf.minimum(numbers[1:] - numbers[:-1], MOST_MISSING + 1), tf.int32)
    rows = tf.concat([[0], tf.cumsum(steps)], 0)
    at = tf.range(rows[-1] + 1)
    after = tf.searchsorted(rows, at)
    before = tf.maximum(after - 1, 0)
    is_nearer = at - tf.gather(rows, before) < tf.gather(rows, after) - at
    return tf.where(is_nearer & (tf.gather(rows, after) > at), before, after), rows


def to_plane(voxels, index, plane: str):
    """Fill the gaps of a scan and transpose it.

    Args:
        voxels: [D, H, W, C].
        index: from `fill_gaps`.
        plane: a key of AXES.

    Returns:
        The view, [slices, rows, columns, C].
    """
    complete = tf.equal(tf.size(index), tf.shape(voxels)[0])
    filled = tf.cond(complete, lambda: voxels, lambda: tf.gather(voxels, index))
    return tf.transpose(tf.ensure_shape(filled, [None, *voxels.shape[1:]]), [*AXES[plane], 3])


def from_plane(view, rows, plane: str):
    """Undo `to_plane` for some slices of a view.

    Args:
        view: [N, rows, columns, L].
        rows: from `fill_gaps`.
        plane: a key of AXES.

    Returns:
        [D, H, W, L], in which the axis of the view's slices has length N; without the filled slices.
    """
    complete = tf.equal(tf.size(rows), tf.shape(view)[1])
    without = tf.cond(complete, lambda: view, lambda: tf.gather(view, rows, axis=1))
    without = tf.ensure_shape(without, [*view.shape[:1], None, *view.shape[2:]])
    return tf.transpose(without, [*np.argsort(AXES[plane]).tolist(), 3])


def scan_in_plane(scan: dict, plane: str) -> dict:
    """Return the view of a scan of `parse_scan`, in the same form; an axial one is returned as it is."""
    if plane == "axial":
        return scan
    index, rows = fill_gaps(scan["numbers"])
    missing = tf.gather(rows, index) != tf.range(tf.size(index))
    ignore = tf.gather(scan["ignore"], index) | missing[:, None, None]
    return scan | {
        "image": to_plane(scan["image"], index, plane),
        **{name: to_plane(scan[name], index, plane) for name in ("bits", "uncertain", "teacher") if name in scan},
        "ignore": tf.transpose(ignore, AXES[plane]),
        "spacing": tf.gather(scan["spacing"], AXES[plane]),
        "numbers": tf.range(1, tf.shape(scan["image"], tf.int64)[AXES[plane][0]] + 1),
    }


def volume_in_plane(volume: Volume, index: Sequence[int], plane: str) -> Volume:
    """Return the view of a scan; `index` is from `fill_gaps`. Without gaps, the voxels are not copied."""
    voxels = volume.with_channels
    if len(index) != len(voxels):
        voxels = voxels[np.asarray(index)]
    z, y, x = (volume.spacing[axis] for axis in AXES[plane])
    statistics = volume.percentiles, volume.moments
    return Volume(voxels.transpose(*AXES[plane], 3), (z, y, x), stored_statistics=statistics)


def entries_in_plane(dataset: Dataset, scans: list[ScanEntry], plane: str) -> list[ScanEntry]:
    """Describe scans as dataset.json would describe their views.

    Args:
        dataset: the dataset.
        scans: entries of it.
        plane: a key of AXES.

    Returns:
        The entries; shape, spacing and all counts of slices are those of the view, without filled rows.

    Raises:
        DataError: the dataset does not count the slices along other axes.
    """
    return scans if plane == "axial" else [_entry_in_plane(scan, plane, dataset) for scan in scans]


def _entry_in_plane(scan: ScanEntry, plane: str, dataset: Dataset) -> ScanEntry:
    if scan.plane_sets is None or plane not in scan.plane_sets:
        raise DataError(
            f"{dataset.root / INDEX}: does not list which labels the {plane} slices of {scan.id} show; remove the "
            "dataset and convert again, or set data.plane to axial"
        )
    sets = scan.plane_sets[plane]
    slices = {
        name: sum(count for key, count in sets.items() if str(dataset.labels.index(name)) in key.split())
        for name in scan.label_slices
    }
    depth, height, width = (scan.shape[axis] for axis in AXES[plane])
    z, y, x = (scan.spacing[axis] for axis in AXES[plane])
    empty = depth - sum(sets.values()) if scan.label_slices else 0
    return replace(
        scan, shape=(depth, height, width), spacing=(z, y, x),
        label_slices=slices, empty_slices=empty, label_sets=sets,
    )  # fmt: skip
