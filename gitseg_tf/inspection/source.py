"""Iterate over the scans of a cohort or a dataset for inspection."""

import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2

from gitseg_tf.core.progress import progress
from gitseg_tf.data.readers.base import Cohort, Scan
from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.data.tfrecords.dataset import Dataset, is_dataset, load_dataset, read_scans
from gitseg_tf.data.tfrecords.verify import naming_damaged_shards
from gitseg_tf.data.volume import LoadedScan
from gitseg_tf.errors import ConfigError, GitsegError

T = TypeVar("T")


@dataclass(frozen=True)
class Unreadable:
    """A scan whose image or contours cannot be read: its id, and the reader's message."""

    scan: str
    reason: str


def open_source(root: str | Path, **reading) -> Cohort | Dataset:
    """Open a cohort or a dataset for inspection, without reading voxels.

    Args:
        root: a cohort, or the folder of a dataset.
        **reading: how to read a cohort, see `read_cohort`: labels, missing and structure_set.

    Returns:
        The cohort, which lists table rows without an image and unreadable scans, or the dataset.

    Raises:
        DataError: nothing readable at the path.
        ConfigError: labels or missing were given for a dataset.
    """
    if not is_dataset(root):
        return read_cohort(root, list_orphans=True, list_broken=True, **reading)
    if reading:
        raise ConfigError(
            f"{root}: the labels of a dataset are fixed; {' and '.join(reading)} can be given for a cohort only"
        )
    return load_dataset(root)


def each_scan(
    source: Cohort | Dataset, do: Callable[[LoadedScan], T], title: str, only: Collection[str] | None = None
) -> Iterator[T | Unreadable]:
    """Apply a function to every scan.

    At most one scan per core is in memory; the function should return a small result.

    Args:
        source: from `open_source`.
        do: the function; it runs in threads.
        title: title of the progress bar.
        only: ids of the scans to process; None is all.

    Returns:
        Iterator over the function's results or `Unreadable`, in the order of the source.

    Raises:
        DataError: a shard of the dataset is damaged.
    """
    if isinstance(source, Dataset):
        yield from _each_of_dataset(source, do, title, only)
        return
    scans = [scan for scan in source.scans if only is None or scan.id in only]
    cv2.setNumThreads(1)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        results = pool.map(lambda scan: _read_and(do, scan), scans)
        try:
            yield from progress(results, title, total=len(scans), unit="scan")
        finally:
            pool.shutdown(cancel_futures=True)


def _read_and(do: Callable[[LoadedScan], T], scan: Scan) -> T | Unreadable:
    try:
        volume, annotation = scan.read_volume(), scan.read_annotation()
    except GitsegError as error:
        return Unreadable(scan.id, str(error))
    return do(LoadedScan(scan.id, scan.case, volume, annotation))


def _each_of_dataset(dataset: Dataset, do: Callable[[LoadedScan], T], title: str, only) -> Iterator[T]:
    fold_of = {scan.id: shard.fold for shard in dataset.shards for scan in shard.scans}
    chosen = {scan for scan in fold_of if only is None or scan in only}
    with naming_damaged_shards(dataset):
        records = read_scans(dataset, {fold_of[scan] for scan in chosen}, exclude=tuple(fold_of.keys() - chosen))
        for scan in progress(records, title, total=len(chosen), unit="scan"):
            yield do(scan)
