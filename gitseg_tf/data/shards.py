"""Writing one shard, on this machine or on a worker far away, and knowing it again when a conversion is resumed."""

import json
import os
import uuid
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from gitseg_tf.data.dataset import ScanEntry, Shard, file_crc32, shard_from_json
from gitseg_tf.data.records import serialize_scan
from gitseg_tf.data.scans import ORGANS, Scan, read_image, read_masks, source_digest
from gitseg_tf.data.tfrecord import RecordWriter
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, write_atomically


@dataclass(frozen=True)
class ShardJob:
    """A shard to write: its file name, fold and scans in the records' order."""

    file: str
    fold: int
    scans: tuple[Scan, ...]


def encode_scan(scan: Scan) -> tuple[bytes, ScanEntry]:
    """Read a scan's slices and contours and serialize them.

    Args:
        scan: from `read_cohort`.

    Returns:
        The bytes of the Example, and what dataset.json says of the scan.

    Raises:
        InputError: as `read_image` and `read_masks`.
    """
    image = read_image(scan)
    masks = read_masks(scan) if scan.labelled else None
    shown = masks.any((2, 3)) if masks is not None else None
    entry = ScanEntry(
        scan.id,
        scan.case,
        scan.shape,
        scan.spacing,
        {} if shown is None else {organ: int(n) for organ, n in zip(ORGANS, shown.sum(1), strict=True)},
        0 if shown is None else int((~shown.any(0)).sum()),
    )
    return serialize_scan(scan, image, masks), entry


def write_shard(
    out: AnyPath, job: ShardJob, encoded: Iterable[tuple[bytes, ScanEntry]], step: Callable[[], object]
) -> Shard:
    """Write a shard, and beside it the note by which `finished_shard` knows it.

    Several may write the same shard at the same time; each renames the same bytes into its place.

    Args:
        out: the dataset's folder.
        job: what to write.
        encoded: what `encode_scan` gives of the job's scans, in their order.
        step: called after each scan.

    Returns:
        The shard.

    Raises:
        InputError: the disk is full, or the file cannot be written for another reason.
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
                if hasattr(file, "fileno"):  # other file systems have it safe once it is closed
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
    """The shard, when it is there, whole, and of the slices and contours that the job has now."""
    path, note = out / job.file, _note(out, job)
    noted = read_note(note) if note.is_file() and path.is_file() else {}
    if noted.get("source") != source_digest(job.scans):
        return None
    shard = shard_from_json(noted["shard"])
    return shard if file_crc32(path) == shard.crc32 else None


def noted_shard(out: AnyPath, job: ShardJob) -> Shard:
    """The shard that a worker has just written, from its note."""
    return shard_from_json(json.loads(_note(out, job).read_bytes())["shard"])


def read_note(path: AnyPath) -> dict:
    """A note that an interrupted conversion left; what cannot be read is as good as none."""
    try:
        tree = json.loads(path.read_bytes())
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) else {}


@contextmanager
def naming_failed_writes(path: AnyPath):
    """Turn the system's error into one that names the file and says how to go on.

    Raises:
        InputError: the disk is full, the folder is read-only, ...
    """
    try:
        yield
    except _write_errors(path) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(
            f"{path}: cannot be written ({reason}); finished shards are kept: make room or get "
            "permission, then go on with --resume"
        ) from None


def _write_errors(path: AnyPath) -> tuple[type[Exception], ...]:
    if isinstance(path, Path):
        return (OSError,)
    import tensorflow as tf

    return OSError, tf.errors.OpError


def _note(out: AnyPath, job: ShardJob) -> AnyPath:
    return out / f"{job.file}.json"
