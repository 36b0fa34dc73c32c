"""The scans to look at, from a source cohort or a finished dataset, one at a time."""

import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2

from gitseg_tf.data.dataset import UNLABELLED, Dataset, is_dataset, load_dataset, read_scans
from gitseg_tf.data.inspect.facts import ScanVoxels
from gitseg_tf.data.records import unpack_masks
from gitseg_tf.data.scans import Cohort, Scan, read_cohort, read_image, read_masks
from gitseg_tf.data.verify import naming_damaged_shards
from gitseg_tf.errors import InputError
from gitseg_tf.progress import progress

T = TypeVar("T")


@dataclass(frozen=True)
class Unreadable:
    """A scan whose image or contours cannot be read: its id, and the reader's sentence."""

    scan: str
    reason: str


def open_source(root: str | Path) -> Cohort | Dataset:
    """Open what is to be inspected; no voxel is read.

    Args:
        root: a source cohort, or the folder of a finished dataset.

    Returns:
        The cohort, rows without image and scans that cannot be read listed in it, or the dataset.

    Raises:
        InputError: nothing there that can be read.
    """
    return load_dataset(root) if is_dataset(root) else read_cohort(root, list_orphans=True, list_broken=True)


def each_scan(
    source: Cohort | Dataset, do: Callable[[ScanVoxels], T], title: str, only: Collection[str] | None = None
) -> Iterator[T | Unreadable]:
    """Do something with every scan.

    As many scans are in memory as there are processors at the most; what is done should return little.

    Args:
        source: from `open_source`.
        do: takes a scan with its voxels. It runs in threads.
        title: of the progress bar.
        only: ids of the scans to take; None is all.

    Returns:
        Iterator of what `do` returned, in the order of the source, or of `Unreadable`.

    Raises:
        InputError: a shard of the dataset is damaged.
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


def _read_and(do: Callable[[ScanVoxels], T], scan: Scan) -> T | Unreadable:
    try:
        image = read_image(scan)
        masks = read_masks(scan) if scan.labelled else None
    except InputError as error:
        return Unreadable(scan.id, str(error))
    return do(ScanVoxels(scan.id, scan.case, None, tuple(scan.numbers), scan.spacing, image, masks))


def _each_of_dataset(dataset: Dataset, do: Callable[[ScanVoxels], T], title: str, only) -> Iterator[T]:
    fold_of = {scan.id: shard.fold for shard in dataset.shards for scan in shard.scans}
    chosen = {scan for scan in fold_of if only is None or scan in only}
    with naming_damaged_shards(dataset):
        records = read_scans(dataset, {fold_of[scan] for scan in chosen}, exclude=tuple(fold_of.keys() - chosen))
        for fields in progress(records, title, total=len(chosen), unit="scan"):
            fold = fold_of[fields["id"]]
            masks = None if fold == UNLABELLED else unpack_masks(fields["bits"])
            # TFRecords hold the spacing as float32: 1.63 should not be read as 1.6299999.
            spacing = tuple(float(f"{value:.6g}") for value in fields["spacing"])
            numbers = tuple(map(int, fields["numbers"]))
            yield do(ScanVoxels(fields["id"], fields["case"], fold, numbers, spacing, fields["image"], masks))
