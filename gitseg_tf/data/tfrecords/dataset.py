"""Datasets on disk: shards by fold, listed in dataset.json. See tfrecords/README.md."""

import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import ValidationError

from gitseg_tf.core.paths import AnyPath, as_path, file_size, write_atomically
from gitseg_tf.core.text import one_line, plural
from gitseg_tf.core.trees import parse_json, shown
from gitseg_tf.data.tfrecords.codec import check_lengths
from gitseg_tf.data.tfrecords.example import decode_scan
from gitseg_tf.data.tfrecords.index import (
    PSEUDO,
    Index,
    Intensities,
    PseudoSource,
    ScanEntry,
    Shard,
    Teacher,
)
from gitseg_tf.data.volume import LoadedScan
from gitseg_tf.errors import DataError, first_line
from gitseg_tf.labels import LabelSet

FORMAT = "gitseg-tf scans"
VERSION = 2
INDEX = "dataset.json"


@dataclass(frozen=True)
class Dataset:
    """A finished dataset.

    Attributes:
        root: its folder.
        source: name and fingerprint of the cohort, and how it was converted.
        folds: number of folds; 0 if no scan is annotated.
        seed: seed of the folds.
        shards: its TFRecord files.
        labels: the labels of its masks, in order.
        channels: names of the channels.
        pseudo_labels: the origin of its pseudo-labels, or None if it has none.
        teacher: the model whose probabilities it contains, or None.

    Example:
        >>> import gitseg_tf
        >>> dataset = gitseg_tf.open_dataset("cohort", folds=1)
        >>> [scan.shape for scan in dataset.scans_of([0])]
        [(24, 266, 266)]
    """

    root: AnyPath
    source: dict[str, str]
    folds: int
    seed: int
    shards: tuple[Shard, ...]
    labels: LabelSet
    channels: tuple[str, ...] = ("image",)
    pseudo_labels: PseudoSource | None = None
    teacher: Teacher | None = None

    @property
    def intensities(self) -> tuple[Intensities, ...]:
        """Intensities of each channel over all scans with a mask, or over all scans if there is none.

        The mean and standard deviation are exact; percentiles are averages over scans, weighted by voxels.
        """
        scans = [scan for shard in self.shards for scan in shard.scans]
        masked = [scan for scan in scans if any(scan.label_slices.values())]
        return tuple(map(_pool, zip(*(scan.intensities for scan in masked or scans), strict=True)))

    @property
    def fold_of_case(self) -> dict[str, int]:
        """Patient to fold, for the patients with an annotated scan."""
        return {scan.case: shard.fold for shard in self.shards for scan in shard.scans if shard.fold >= 0}

    def shards_of(self, folds) -> list[Shard]:
        """List the shards of some folds."""
        return [shard for shard in self.shards if shard.fold in folds]

    def paths_of(self, folds) -> list[str]:
        """List the absolute paths of `shards_of`: workers of a data service have another working directory."""
        return [str(self.root.resolve() / shard.file) for shard in self.shards_of(folds)]

    def scans_of(self, folds, exclude: tuple[str, ...] = ()) -> list[ScanEntry]:
        """List the scans of some folds in record order, except the excluded ids."""
        return [scan for shard in self.shards_of(folds) for scan in shard.scans if scan.id not in exclude]

    def training_folds(self, held_out: int | None) -> list[int]:
        """List all folds except the one held out; None lists all. Scans with pseudo-labels only are in fold -2.

        Raises:
            DataError: no such fold, or it is the only one.
        """
        self.check_fold(held_out or 0)
        if self.folds == 1 and held_out is not None:
            raise DataError(f"{self.root}: has only one fold, which leaves nothing to train on; hold out no fold")
        pseudo = [PSEUDO] if self.shards_of([PSEUDO]) else []
        return [*pseudo, *(fold for fold in range(self.folds) if fold != held_out)]

    def held_back(self, held_out: int | None) -> tuple[str, ...]:
        """List the scans with pseudo-labels only whose patients are in the fold held out: these must not be seen."""
        if held_out is None:
            return ()
        cases = {scan.case for scan in self.scans_of([held_out])}
        return tuple(scan.id for scan in self.scans_of([PSEUDO]) if scan.case in cases)

    def training_scans(self, held_out: int | None, exclude: tuple[str, ...] = ()) -> list[ScanEntry]:
        """List the scans on which a run trains, with the counts of annotated and predicted labels.

        Raises:
            DataError: see `training_folds`.
        """
        scans = self.scans_of(self.training_folds(held_out), (*exclude, *self.held_back(held_out)))
        return scans if self.pseudo_labels is None else [scan.for_training for scan in scans]

    @property
    def pseudo_line(self) -> str | None:
        """How many scans have pseudo-labels and who made them, in one line; None without any."""
        if (source := self.pseudo_labels) is None:
            return None
        scans = sum(scan.pseudo is not None for shard in self.shards for scan in shard.scans)
        model = f"{source.model} (weights {source.weights[:8]}, confidence {source.confidence:g})"
        return f"{plural(scans, 'scan')} with labels predicted by {model}, for training only, never scored"

    def check_fold(self, fold: int | None) -> None:
        """Check that a fold exists.

        Raises:
            DataError: no such fold.
        """
        if not self.folds:
            raise DataError(
                f"{self.root}: has no folds, because no scan is annotated; convert a cohort with annotations"
            )
        if fold is None or not 0 <= fold < self.folds:
            raise DataError(f"{self.root}: has folds 0 to {self.folds - 1}, not {fold}; choose one of these")


def read_scans(dataset: Dataset, folds, exclude: tuple[str, ...] = ()) -> Iterator[LoadedScan]:
    """Iterate over scans, one in memory at a time.

    Args:
        dataset: from `load_dataset`.
        folds: the folds to read.
        exclude: ids of scans to leave out.

    Returns:
        The scans, in record order.

    Raises:
        DataError: a record that cannot be decoded.
    """
    import tensorflow as tf

    for shard in dataset.shards_of(folds):
        path = dataset.root / shard.file
        records = tf.data.TFRecordDataset(str(path)).prefetch(1).as_numpy_iterator()
        while True:
            try:
                record = next(records, None)
                scan = None if record is None else decode_scan(record)
            except (ValueError, DataError, tf.errors.DataLossError) as error:
                _check_shard(path, shard, verify=True)
                raise DataError(f"{path}: a record is damaged ({first_line(error)}); convert again") from None
            if scan is None:
                break
            if scan.id not in exclude:
                yield replace(scan, fold=shard.fold)


def is_dataset(root: str | AnyPath) -> bool:
    """Check whether a folder contains the dataset.json of a finished dataset.

    A file of that name from nnU-Net or the Decathlon does not count. An unreadable file counts, so that `load_dataset`
    reports what is wrong with it.
    """
    path = as_path(root) / INDEX
    if not path.is_file():
        return False
    try:
        tree = parse_json(path.read_bytes())
    except ValueError:
        return True
    return not isinstance(tree, dict) or "format" in tree


def load_dataset(root: str | AnyPath, verify: bool = False) -> Dataset:
    """Open a finished dataset.

    Args:
        root: the folder that `gitseg convert` wrote.
        verify: also read every shard and compare its checksum, not only its size.

    Returns:
        The dataset.

    Raises:
        DataError: no finished dataset, another format or version, or a missing or damaged shard.
    """
    root = as_path(root)
    try:
        tree = parse_json((root / INDEX).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{root}: contains no finished dataset ({INDEX} is missing); create one with gitseg convert"
        ) from None
    except ValueError as error:
        raise DataError(f"{root / INDEX}: is damaged ({error}); convert again") from None
    name, version = (tree.get("format"), tree.get("version")) if isinstance(tree, dict) else (None, None)
    if name == FORMAT and version == 1:
        raise DataError(
            f"{root}: has format version 1, but this package reads version {VERSION}; "
            f"remove it and convert the scans again: gitseg convert SCANS {root}"
        )
    if (name, version) != (FORMAT, VERSION):
        raise DataError(
            f"{root / INDEX}: has format {shown(name)} version {shown(version)}, "
            f"but this package reads {FORMAT!r} version {VERSION}; convert the cohort again"
        )
    try:
        index = Index.model_validate(tree)
    except ValidationError as error:
        problem = error.errors()[0]
        field = one_line(".".join(map(str, problem["loc"])))
        reason = f"{field}: {problem['msg']}" if field else problem["msg"].removeprefix("Value error, ")
        raise DataError(f"{root / INDEX}: is damaged ({reason}); convert again") from None
    shards, labels = index.shards, cast(LabelSet, index.labels)  # see `Index._are_labels`
    folds = index.folds
    dataset = Dataset(
        root,
        index.source,
        folds.count,
        folds.seed,
        shards,
        labels,
        index.channels,
        pseudo_labels=index.pseudo_labels,
        teacher=index.teacher,
    )
    for shard in shards:
        _check_shard(root / shard.file, shard, verify)
    return dataset


def save_index(dataset: Dataset) -> None:
    """Write dataset.json, which completes a conversion.

    Args:
        dataset: its shards must exist.
    """
    scans = [scan for shard in dataset.shards for scan in shard.scans]
    tree: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "labels": dataset.labels.to_tree(),
        "channels": list(dataset.channels),
        "source": dataset.source,
        "counts": {
            "cases": len({scan.case for scan in scans}),
            "scans": len(scans),
            "slices": sum(scan.shape[0] for scan in scans),
            "label_slices": {
                name: sum(scan.label_slices.get(name, 0) for scan in scans) for name in dataset.labels.names
            },
            "annotated_scans": {
                name: sum(name in scan.label_slices for scan in scans) for name in dataset.labels.names
            },
        },
        "geometries": sorted({(*scan.shape[1:], *scan.spacing) for scan in scans}),
        "folds": {
            "count": dataset.folds,
            "seed": dataset.seed,
            "cases": {scan.case: shard.fold for shard in dataset.shards for scan in shard.scans},
        },
        "shards": [_shard_tree(shard) for shard in dataset.shards],
    }
    if dataset.pseudo_labels is not None:
        tree["pseudo_labels"] = asdict(dataset.pseudo_labels)
        tree["counts"]["pseudo_labeled_scans"] = {
            name: sum(scan.pseudo is not None and name in scan.pseudo.labels for scan in scans)
            for name in dataset.labels.names
        }
    if dataset.teacher is not None:
        tree["teacher"] = asdict(dataset.teacher)
    write_atomically(dataset.root / INDEX, json.dumps(tree, indent=1).encode())


def _shard_tree(shard: Shard) -> dict[str, Any]:
    """Return the shard as JSON; versions without pseudo-labels and teachers can read it if it has none."""
    tree = asdict(shard)
    for scan in tree["scans"]:
        for key in ("pseudo", "teacher"):
            if scan[key] is None:
                del scan[key]
    return tree


def file_crc32(path: AnyPath) -> str:
    """Compute the CRC-32 of a file as eight hexadecimal digits."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def _pool(scans: tuple[Intensities, ...]) -> Intensities:
    voxels = np.array([scan.voxels for scan in scans], float)
    means, stds = np.array([(scan.mean, scan.std) for scan in scans]).T
    mean = np.average(means, weights=voxels)
    std = np.sqrt(np.average(stds**2 + (means - mean) ** 2, weights=voxels))
    p005, p995 = np.average([(scan.p005, scan.p995) for scan in scans], axis=0, weights=voxels)
    return Intensities(int(voxels.sum()), float(mean), float(std), float(p005), float(p995))


def _check_shard(path: AnyPath, shard: Shard, verify: bool) -> None:
    if not path.is_file():
        raise DataError(f"{path}: the shard is missing; convert again")
    if file_size(path) != shard.bytes:
        raise DataError(f"{path}: has {file_size(path)} bytes, but {INDEX} says {shard.bytes}; convert again")
    if verify and file_crc32(path) != shard.crc32:
        raise DataError(f"{path}: the checksum differs from the one in {INDEX}; convert again")
    if isinstance(path, Path):  # in a bucket, each length would take a request
        try:
            with path.open("rb") as file:
                check_lengths(file)
        except ValueError as error:
            raise DataError(f"{path}: {error}; convert again") from None
