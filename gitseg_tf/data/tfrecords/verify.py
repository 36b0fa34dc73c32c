"""Verify every byte of a dataset against its dataset.json."""

from contextlib import contextmanager

import numpy as np

from gitseg_tf.core.paths import AnyPath
from gitseg_tf.core.progress import progress
from gitseg_tf.core.text import plural
from gitseg_tf.data.tfrecords.dataset import INDEX, Dataset, file_crc32, load_dataset
from gitseg_tf.data.tfrecords.example import decode_scan
from gitseg_tf.data.tfrecords.index import ScanEntry, Shard, count_label_sets, count_plane_sets
from gitseg_tf.data.tfrecords.pseudo_labels import pseudo_entry
from gitseg_tf.data.tfrecords.shards import measure_intensities
from gitseg_tf.data.volume import LoadedScan, Volume
from gitseg_tf.errors import DataError


def verify_dataset(root: str | AnyPath) -> Dataset:
    """Check the size and CRC-32 of all shards, and every record against its voxels and dataset.json.

    Args:
        root: the folder that `gitseg convert` wrote.

    Returns:
        The dataset.

    Raises:
        DataError: see `load_dataset`; or a record is damaged, missing, superfluous, or contradicts dataset.json.
    """
    dataset = load_dataset(root)
    with progress(range(sum(len(shard.scans) for shard in dataset.shards)), "verify", unit="scan") as bar:
        for shard in dataset.shards:
            path = dataset.root / shard.file
            if file_crc32(path) != shard.crc32:
                raise DataError(f"{path}: the checksum differs from the one in {INDEX}; convert again")
            for entry, scan in zip(shard.scans, _records(path, shard), strict=True):
                differing = _difference(entry, scan, dataset)
                if differing:
                    raise DataError(f"{path}, {entry.id}: {differing}; convert again")
                bar.update()
    return dataset


@contextmanager
def naming_damaged_shards(dataset: Dataset):
    """Convert TensorFlow's errors about damaged records to a DataError that names the shard.

    Args:
        dataset: the dataset that is read inside the `with` block.

    Raises:
        DataError: see `verify_dataset`.
    """
    import tensorflow as tf

    try:
        yield
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, tf.errors.NotFoundError):
        verify_dataset(dataset.root)
        raise


def _records(path: AnyPath, shard: Shard):
    """Parse the records of a shard and check their number."""
    import tensorflow as tf

    read = 0
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            if read == len(shard.scans):
                raise DataError(f"{path}: has more records than the {read} scans that {INDEX} lists; convert again")
            yield _decode(record, f"{path}: record {read + 1}")
            read += 1
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
        reason = error.message.splitlines()[0]
        raise DataError(f"{path}: record {read + 1} is damaged ({reason}); convert again") from None
    if read < len(shard.scans):
        raise DataError(
            f"{path}: has {plural(read, 'record')}, but {INDEX} lists {plural(len(shard.scans), 'scan')}; convert again"
        )


def _decode(record: bytes, name: str) -> LoadedScan:
    try:
        return decode_scan(record)
    except (ValueError, DataError) as error:
        raise DataError(f"{name} is damaged ({error}); convert again") from None


def _difference(entry: ScanEntry, scan: LoadedScan, dataset: Dataset) -> str:
    """Describe how a record contradicts dataset.json or its own voxels; "" if it does not."""
    volume, annotation, names = scan.volume, scan.annotation, dataset.labels.names
    label_slices, empty, label_sets = {}, 0, {}
    plane_sets: dict[str, dict[str, int]] = {"coronal": {}, "sagittal": {}}
    if annotation is not None:
        if len(annotation.annotated) != len(names):
            return f"the record has {len(annotation.annotated)} labels, but {INDEX} lists {len(names)}"
        shown = np.any(annotation.masks, axis=(2, 3))
        masked = np.flatnonzero(shown.any(1) & ~annotation.annotated)
        if masked.size:
            return f"the record has a mask of {names[masked[0]]}, which is not annotated"
        slices = zip(names, shown.sum(1).tolist(), annotation.annotated, strict=True)
        label_slices = {name: count for name, count, annotated in slices if annotated}
        empty, label_sets = int((~shown.any(0)).sum()), count_label_sets(shown)
        plane_sets = count_plane_sets(annotation.masks)
    pseudo = None if scan.pseudo is None else pseudo_entry(scan, scan.pseudo, dataset.labels)
    if pseudo != entry.pseudo:
        return f"the record has the pseudo-labels {pseudo}, but {INDEX} has {entry.pseudo}"
    actual = {
        "id": scan.id,
        "case": scan.case,
        "shape": volume.shape,
        "spacing": volume.spacing,
        "label slices": label_slices,
        "empty slices": empty,
        "label sets": None if entry.label_sets is None else label_sets,
        "label sets of planes": None if entry.plane_sets is None else plane_sets,
    }
    spacing = tuple(float(f"{value:.6g}") for value in entry.spacing)
    listed = (
        entry.id, entry.case, entry.shape, spacing, entry.label_slices, entry.empty_slices, entry.label_sets,
        entry.plane_sets,
    )  # fmt: skip
    for (what, value), expected in zip(actual.items(), listed, strict=True):
        if value != expected:
            return f"the record has {what} {value}, but {INDEX} has {expected}"
    if volume.channels != len(dataset.channels):
        return f"the record has {plural(volume.channels, 'channel')}, but {INDEX} lists {len(dataset.channels)}"
    fresh = Volume(volume.voxels, volume.spacing, volume.numbers)
    if not np.array_equal(volume.percentiles, fresh.percentiles):
        return "image/percentiles do not match the voxels"
    if not np.allclose(volume.moments, fresh.moments, rtol=1e-5):
        return "image/moments do not match the voxels"
    if entry.intensities != measure_intensities(volume, annotation):
        return f"the intensities in {INDEX} do not match the voxels"
    return ""
