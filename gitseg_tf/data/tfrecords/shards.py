"""Write shards, locally or on remote workers, and recognize finished ones when a conversion is resumed."""

import json
import logging
import os
import uuid
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path

import numpy as np

from gitseg_tf.core.paths import AnyPath, write_atomically
from gitseg_tf.core.trees import parse_json
from gitseg_tf.data.readers.base import Scan, source_digest
from gitseg_tf.data.tfrecords.codec import RecordWriter
from gitseg_tf.data.tfrecords.dataset import file_crc32
from gitseg_tf.data.tfrecords.example import serialize_scan
from gitseg_tf.data.tfrecords.index import (
    Intensities,
    ScanEntry,
    Shard,
    count_label_sets,
    count_plane_sets,
    shard_from_json,
)
from gitseg_tf.data.volume import PERCENTILES, Annotation, Volume, intensity_statistics
from gitseg_tf.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardJob:
    """A shard to write: file name, fold, and scans in record order."""

    file: str
    fold: int
    scans: tuple[Scan, ...]


def encode_scan(scan: Scan) -> tuple[bytes, ScanEntry]:
    """Read and serialize a scan.

    Args:
        scan: from `read_cohort`.

    Returns:
        The serialized Example, and the scan's entry in dataset.json.

    Raises:
        DataError: see `Scan.read_volume` and `Scan.read_annotation`.
    """
    volume, annotation = scan.read_volume(), scan.read_annotation()
    for note in annotation.notes if annotation is not None else ():
        logger.warning("%s: %s", scan.id, note)
    shown = np.any(annotation.masks, axis=(2, 3)) if annotation is not None else None
    slices = {} if shown is None else dict(zip(scan.labels.names, shown.sum(1).tolist(), strict=True))
    entry = ScanEntry(
        scan.id,
        scan.case,
        scan.shape,
        scan.spacing,
        {name: count for name, count in slices.items() if name in scan.annotated},
        0 if shown is None else int((~shown.any(0)).sum()),
        measure_intensities(volume, annotation),
        tuple(tuple(float(f"{value:.7g}") for value in channel) for channel in volume.percentiles),
        {} if shown is None else count_label_sets(np.asarray(shown)),
        {"coronal": {}, "sagittal": {}} if annotation is None else count_plane_sets(annotation.masks),
    )
    return serialize_scan(scan.id, scan.case, volume=volume, annotation=annotation, labels=scan.labels), entry


def measure_intensities(volume: Volume, annotation: Annotation | None) -> tuple[Intensities, ...]:
    """Measure the `Intensities` of each channel of a scan."""
    channels = np.moveaxis(volume.with_channels, -1, 0)
    if annotation is not None and annotation.masks.any():
        masks, shown = annotation.masks, np.any(annotation.masks, axis=(2, 3))
        # Plane by plane, because a plane fits into the CPU cache, and many planes are empty or show few labels.
        planes: list[tuple[int, np.ndarray]] = [
            (int(z), reduce(np.bitwise_or, [masks[k, z] for k in np.flatnonzero(shown[:, z])]))
            for z in np.flatnonzero(shown.any(0))
        ]
        inside = [np.concatenate([channel[z][mask] for z, mask in planes]) for channel in channels]
    else:
        inside = [channel.ravel() for channel in channels]
    measured = []
    for values in inside:
        percentiles, (mean, std) = intensity_statistics(values)
        p005, p995 = (percentiles[PERCENTILES.index(percent)] for percent in (0.5, 99.5))
        measured.append(Intensities(len(values), *(float(f"{fact:.7g}") for fact in (mean, std, p005, p995))))
    return tuple(measured)


def write_shard(
    out: AnyPath, job: ShardJob, encoded: Iterable[tuple[bytes, ScanEntry]], step: Callable[[], object]
) -> Shard:
    """Write a shard, and a note by which `finished_shard` recognizes it.

    Several processes may write the same shard at the same time, because each renames identical bytes into place.

    Args:
        out: the dataset's folder.
        job: the shard to write.
        encoded: the results of `encode_scan` for the job's scans, in order.
        step: called after each scan.

    Returns:
        The shard.

    Raises:
        DataError: the file cannot be written, for example because the disk is full.
    """
    path = out / job.file
    temporary = out / f".{job.file}.{uuid.uuid4().hex}.tmp"
    entries = []
    try:
        with naming_failed_writes(path):
            file = temporary.open("wb")
        try:
            records = RecordWriter(file)
            for record, entry in encoded:
                with naming_failed_writes(path):
                    records.write(record)
                entries.append(entry)
                step()
            with naming_failed_writes(path):
                file.flush()
                if hasattr(file, "fileno"):  # files in buckets are durable once closed
                    os.fsync(file.fileno())
        finally:
            with naming_failed_writes(path):
                file.close()
        shard = Shard(job.file, job.fold, records.size, records.crc32, tuple(entries))
        with naming_failed_writes(path):
            temporary.replace(path)
            note = {"source": source_digest(job.scans), "shard": asdict(shard)}
            write_atomically(_note(out, job), json.dumps(note).encode())
    finally:
        temporary.unlink(missing_ok=True)
    return shard


def finished_shard(out: AnyPath, job: ShardJob) -> Shard | None:
    """Return the shard if it is complete and its source files have not changed, otherwise None."""
    path, note = out / job.file, _note(out, job)
    noted = read_note(note) if note.is_file() and path.is_file() else {}
    if noted.get("source") != source_digest(job.scans):
        return None
    try:
        shard = shard_from_json(noted["shard"])
    except (KeyError, ValueError):  # a damaged note
        return None
    return shard if file_crc32(path) == shard.crc32 else None


def noted_shard(out: AnyPath, job: ShardJob) -> Shard:
    """Read the note of a shard that a worker wrote."""
    return shard_from_json(json.loads(_note(out, job).read_bytes())["shard"])


def read_note(path: AnyPath) -> dict:
    """Read a note of an interrupted conversion; an unreadable one counts as empty."""
    try:
        tree = parse_json(path.read_bytes())
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) else {}


@contextmanager
def naming_failed_writes(path: AnyPath):
    """Convert file system errors to a DataError that names the file and the fix.

    Raises:
        DataError: the disk is full, the folder is read-only, ...
    """
    try:
        yield
    except _write_errors(path) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(
            f"{path}: cannot be written ({reason}); free space or fix permissions and resume; finished shards are kept"
        ) from None


def _write_errors(path: AnyPath) -> tuple[type[Exception], ...]:
    if isinstance(path, Path):
        return (OSError,)
    import tensorflow as tf

    return OSError, tf.errors.OpError


def _note(out: AnyPath, job: ShardJob) -> AnyPath:
    return out / f"{job.file}.json"
