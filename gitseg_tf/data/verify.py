"""Reading a dataset again, down to the last byte, and comparing it with its dataset.json."""

from contextlib import contextmanager

import numpy as np

from gitseg_tf.data.dataset import INDEX, Dataset, ScanEntry, Shard, file_crc32, load_dataset
from gitseg_tf.data.records import intensity_percentiles, parse_scan, unpack_masks
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath
from gitseg_tf.progress import progress


def verify_dataset(root: str | AnyPath) -> Dataset:
    """Check sizes and CRC-32 of all shards, and of every record what it says against its voxels and dataset.json.

    Args:
        root: the folder that `gitseg convert` wrote.

    Returns:
        The dataset, which is whole.

    Raises:
        InputError: as `load_dataset`; or a record that is damaged, missing, too many, or contradicts dataset.json.
    """
    dataset = load_dataset(root)
    with progress(range(sum(len(shard.scans) for shard in dataset.shards)), "verify", unit="scan") as bar:
        for shard in dataset.shards:
            path = dataset.root / shard.file
            if file_crc32(path) != shard.crc32:
                raise InputError(f"{path}: the checksum differs from {INDEX}'s; convert again")
            for entry, fields in zip(shard.scans, _records(path, shard), strict=True):
                differing = _difference(entry, fields)
                if differing:
                    raise InputError(f"{path}, {entry.id}: {differing}; convert again")
                bar.update()
    return dataset


@contextmanager
def naming_damaged_shards(dataset: Dataset):
    """Turn TensorFlow's error about a damaged record into one that names the shard.

    Args:
        dataset: what is read inside the `with`.

    Raises:
        InputError: as `verify_dataset`.
    """
    import tensorflow as tf

    try:
        yield
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, tf.errors.NotFoundError):
        verify_dataset(dataset.root)
        raise


def _records(path: AnyPath, shard: Shard):
    """The shard's records, parsed, as many as dataset.json lists."""
    import tensorflow as tf

    read = 0
    try:
        for record in tf.data.TFRecordDataset(str(path)):
            if read == len(shard.scans):
                raise InputError(f"{path}: has more records than the {read} scans that {INDEX} lists; convert again")
            yield {name: value.numpy() for name, value in parse_scan(record).items()}
            read += 1
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
        reason = error.message.splitlines()[0]
        raise InputError(f"{path}: record {read + 1} is damaged ({reason}); convert again") from None
    if read < len(shard.scans):
        raise InputError(f"{path}: has {read} records, {INDEX} lists {len(shard.scans)} scans; convert again")


def _difference(entry: ScanEntry, fields: dict[str, np.ndarray]) -> str:
    """What the record says otherwise than dataset.json or than its own voxels; "" when nothing."""
    shown = unpack_masks(fields["bits"]).any((2, 3))
    labelled = bool(entry.organ_slices)
    own = {
        "id": fields["id"].decode(errors="replace"),
        "case": fields["case"].decode(errors="replace"),
        "shape": fields["image"].shape,
        "spacing": fields["spacing"].tolist(),
        "organ slices": dict(zip(ORGANS, shown.sum(1).tolist(), strict=True)) if labelled else {},
        "empty slices": int((~shown.any(0)).sum()) if labelled else 0,
    }
    spacing = np.float32(entry.spacing).tolist()
    listed = (entry.id, entry.case, entry.shape, spacing, entry.organ_slices, entry.empty_slices)
    for (what, found), expected in zip(own.items(), listed, strict=True):
        if found != expected:
            return f"the record's {what} is {found}, {INDEX} says {expected}"
    numbers = fields["numbers"]
    if len(numbers) != entry.shape[0] or (np.diff(numbers) <= 0).any():
        return f"{len(numbers)} slice numbers for {entry.shape[0]} slices, or not rising"
    if (fields["bits"] >> len(ORGANS)).any() or (shown.any() and not labelled):
        return "mask/bits has bits that mean no organ"
    if not np.array_equal(fields["percentiles"], intensity_percentiles(fields["image"])):
        return "image/percentiles are not those of the voxels"
    return ""
