"""Conversion of a cohort to TFRecords."""

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

from gitseg_tf import __version__
from gitseg_tf.core.locks import LOCK, locked
from gitseg_tf.core.paths import AnyPath, as_path, write_atomically
from gitseg_tf.core.progress import progress
from gitseg_tf.data.readers.base import Cohort, Scan
from gitseg_tf.data.readers.label_table import label_table
from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.data.tfrecords.dataset import INDEX, VERSION, Dataset, is_dataset, load_dataset, save_index
from gitseg_tf.data.tfrecords.fold_table import Folds, count_of, folds_from_table
from gitseg_tf.data.tfrecords.folds import assign_folds
from gitseg_tf.data.tfrecords.index import UNLABELED, ScanEntry, Shard
from gitseg_tf.data.tfrecords.shards import (
    ShardJob,
    encode_scan,
    finished_shard,
    naming_failed_writes,
    read_note,
    write_shard,
)
from gitseg_tf.errors import ConfigError, DataError
from gitseg_tf.labels import LabelSet

logger = logging.getLogger(__name__)

SHARD_BYTES = 256 << 20
RUNNERS = ("local", "beam")
_PLAN = ".plan.json"
_NOTES = 8


def convert(
    source: str | AnyPath,
    out: str | AnyPath,
    *,
    folds: Folds = 5,
    seed: int = 0,
    workers: int | None = None,
    resume: bool = False,
    exclude: Sequence[str] = (),
    shard_bytes: int = SHARD_BYTES,
    runner: str = "local",
    beam_options: str = "",
    labels: LabelSet | None = None,
    missing: str = "unannotated",
    structure_set: str | None = None,
) -> Dataset:
    """Convert a cohort to TFRecords.

    Shards are written under a temporary name and renamed when complete; dataset.json is written last, so a folder
    without it is unfinished. The bytes depend on neither the number of workers nor the runner.

    Args:
        source: the cohort's folder, see `read_cohort`.
        out: a new folder.
        folds: number of folds by patient, or a CSV file with the fold of each patient, see `read_fold_table`; scans
            without annotation are not in any fold.
        seed: seed of the folds; not used with a file.
        workers: number of scans to read at the same time on this machine; None is one per core.
        resume: keep the finished shards of an interrupted conversion, unless their source files changed; wait for
            another process that writes to `out`; return a finished dataset of the same scans unchanged.
        exclude: ids of scans to leave out, including scans that cannot be read.
        shard_bytes: maximum number of voxel bytes of a shard with several scans, planned from the headers.
        runner: "local", or "beam" to distribute the shards with Apache Beam.
        beam_options: pipeline options, as on Beam's command line: "--runner=DataflowRunner --project=...".
        labels, missing, structure_set: see `read_cohort`.

    Returns:
        The finished dataset.

    Raises:
        DataError: invalid input, see `read_cohort` and `Scan.read_volume`; `out` is in use, full, or belongs to
            another conversion.
        ConfigError: an invalid argument.

    Example:
        >>> import gitseg_tf
        >>> dataset = gitseg_tf.convert("cohort", "records", folds=1)
        >>> [scan.id for shard in dataset.shards for scan in shard.scans]
        ['case1_day0']
    """
    source, out = as_path(source), as_path(out)
    if runner == "beam":
        source, out = source.resolve(), out.resolve()
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be >= 1, got {workers}")
    if shard_bytes < 1:
        raise ConfigError(f"shard_bytes must be >= 1, got {shard_bytes}")
    count_of(folds)  # reports an invalid table before the cohort is read
    if not resume and is_dataset(out):
        raise _already_finished(out)
    cohort = read_cohort(source, labels=labels, missing=missing, structure_set=structure_set, list_broken=bool(exclude))
    _log_notes(cohort)
    scans = _selected_scans(cohort, exclude)
    plan = _plan(cohort, scans, folds, seed, shard_bytes)
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, wait=resume):
        if is_dataset(out):
            return _logged(cohort, _load_finished(out, plan, cohort.fingerprint, resume))
        _check_folder(out)
        _start(out, plan, resume)
        by_id = {scan.id: scan for scan in scans}
        jobs = [ShardJob(name, fold, tuple(by_id[i] for i in ids)) for name, fold, ids in plan["shards"]]
        if runner == "beam":
            from gitseg_tf.data.tfrecords.beam import write_shards_with_beam

            shards = write_shards_with_beam(out, jobs, resume, beam_options)
        else:
            shards = _write_shards(out, jobs, resume, workers or os.cpu_count() or 1, f"convert {source.name}")
        with naming_failed_writes(out / INDEX):
            save_index(
                Dataset(
                    out,
                    _source_facts(cohort, exclude, folds),
                    plan["folds"],
                    seed,
                    tuple(shards),
                    cohort.labels,
                    cohort.channels,
                )
            )
        _sweep(out)
    return _logged(cohort, load_dataset(out))


def _log_notes(cohort: Cohort) -> None:
    more = len(cohort.label_notes) - _NOTES  # the table at the end counts all of them
    for note in (*cohort.label_notes[:_NOTES], *([f"and {more} more"] if more > 0 else ()), *cohort.notes):
        logger.info("%s", note)
    for line in cohort.warnings:
        logger.warning("%s", line)


def _logged(cohort: Cohort, dataset: Dataset) -> Dataset:
    """Log what was read as what, and return the dataset."""
    entries = sorted((scan for shard in dataset.shards for scan in shard.scans), key=lambda scan: scan.id)
    for line in label_table(cohort, {scan.id: scan.label_slices for scan in entries}):
        logger.info("%s", line)
    return dataset


def _source_facts(cohort: Cohort, exclude: Sequence[str], folds: Folds) -> dict[str, str]:
    facts = {"name": cohort.root.resolve().name, "fingerprint": cohort.fingerprint, "converted_by": __version__}
    facts |= {} if isinstance(folds, int) else {"folds": as_path(folds).name}
    return facts | ({"excluded": " ".join(sorted(exclude))} if exclude else {})


def _selected_scans(cohort: Cohort, exclude: Sequence[str]) -> list[Scan]:
    for name, reason in cohort.broken:
        if name not in exclude:
            raise DataError(reason)
    unknown = sorted(set(exclude) - {scan.id for scan in cohort.scans} - {name for name, _ in cohort.broken})
    if unknown:
        raise DataError(f"{cohort.root}: has no scan {unknown[0]} to exclude; its first scan is {cohort.scans[0].id}")
    scans = [scan for scan in cohort.scans if scan.id not in exclude]
    if not scans:
        raise DataError(f"{cohort.root}: all scans are excluded; keep at least one")
    return scans


def fold_of_patients(cohort: Cohort, scans: list[Scan], folds: Folds, seed: int = 0) -> dict[str, int]:
    """Assign the patients of the annotated scans to folds.

    Args:
        cohort: the cohort.
        scans: the scans of the cohort to convert.
        folds, seed: as for `convert`.

    Returns:
        Patient to fold; empty if no scan is annotated.

    Raises:
        DataError: too few patients, or a table that does not fit the cohort.
    """
    if not any(scan.labeled for scan in scans):
        return {}
    if not isinstance(folds, int):
        kept = {scan.id for scan in scans}
        # Excluded scans do not count as annotated, but their patients may be listed.
        return folds_from_table(
            folds, [scan if scan.id in kept else replace(scan, annotated=()) for scan in cohort.scans]
        )
    slices = [(scan.case, stratum) for scan in scans if scan.labeled for stratum in scan.slice_strata()]
    return assign_folds([case for case, _ in slices], [stratum for _, stratum in slices], folds, seed)


def _plan(cohort: Cohort, scans: list[Scan], folds: Folds, seed: int, shard_bytes: int) -> dict:
    """Plan which scans go to which shard, as JSON; a resumed conversion must have the same plan."""
    fold_of_case = fold_of_patients(cohort, scans, folds, seed)
    fold_of = {scan.id: fold_of_case[scan.case] if scan.labeled else UNLABELED for scan in scans}
    shards = []
    for fold in sorted(set(fold_of.values())):
        parts: list[list[str]] = [[]]
        size = 0
        for scan in scans:
            if fold_of[scan.id] == fold:
                depth, height, width = scan.shape
                voxels = scan.source.voxel_bytes * depth * height * width * len(cohort.channels)
                if parts[-1] and size + voxels > shard_bytes:
                    parts.append([])
                    size = 0
                parts[-1].append(scan.id)
                size += voxels
        label = f"fold{fold}" if fold != UNLABELED else "unlabeled"
        shards += [[f"{label}-{i:05d}-of-{len(parts):05d}.tfrecord", fold, ids] for i, ids in enumerate(parts)]
    return {
        "version": VERSION,
        "folds": max(fold_of.values()) + 1,
        "seed": seed,
        "shards": shards,
        "labels": cohort.labels.to_tree(),
        "channels": list(cohort.channels),
        "annotated": _digest([[scan.id, sorted(scan.annotated)] for scan in scans]),
    }


def _digest(annotated: list[list]) -> str:
    """Hash (scan id, annotated labels), which distinguishes conversions with different values of `missing`."""
    return hashlib.sha256(json.dumps(sorted(annotated)).encode()).hexdigest()


def _check_folder(out: AnyPath) -> None:
    """Reject a folder with files that are not from a conversion."""
    if (out / _PLAN).is_file():
        return
    # A conversion that was killed early may have left only a plan under its temporary name.
    if any(path.name != LOCK and not path.name.startswith(_PLAN, 1) for path in out.iterdir()):
        raise DataError(f"{out}: is not empty and was not created by gitseg convert; choose another folder")


def _load_finished(out: AnyPath, plan: dict, fingerprint: str, resume: bool) -> Dataset:
    """Load a finished dataset if a conversion of the same files is resumed."""
    if not resume:
        raise _already_finished(out)
    dataset = load_dataset(out)
    shards = [[shard.file, shard.fold, [scan.id for scan in shard.scans]] for shard in dataset.shards]
    finished = {
        "version": VERSION,
        "folds": dataset.folds,
        "seed": dataset.seed,
        "shards": shards,
        "labels": dataset.labels.to_tree(),
        "channels": list(dataset.channels),
        "annotated": _digest([[s.id, sorted(s.label_slices)] for shard in dataset.shards for s in shard.scans]),
    }
    if finished != plan or dataset.source["fingerprint"] != fingerprint:
        raise _already_finished(out)
    _sweep(out)
    return dataset


def _already_finished(out: AnyPath) -> DataError:
    return DataError(f"{out}: already contains a finished dataset; remove it or choose another folder")


def _start(out: AnyPath, plan: dict, resume: bool) -> None:
    leftover = out / _PLAN
    if resume and leftover.is_file():
        if read_note(leftover) != plan:
            raise DataError(
                f"{out}: the interrupted conversion had different scans, folds or labels; start over without resuming"
            )
        return
    old_files: list[AnyPath] = list(out.glob("*.tfrecord*"))
    for old in old_files:
        old.unlink()
    with naming_failed_writes(leftover):
        write_atomically(leftover, json.dumps(plan).encode())


def _sweep(out: AnyPath) -> None:
    leftovers = [path for pattern in ("*.tfrecord.json", ".*.tmp", ".*.job", ".*.error") for path in out.glob(pattern)]
    for leftover in [*leftovers, out / _PLAN]:
        leftover.unlink(missing_ok=True)


def _write_shards(out: AnyPath, jobs: list[ShardJob], resume: bool, workers: int, title: str) -> list[Shard]:
    """Encode scans in threads and write them in this one; PNG decoding and zlib release the GIL."""
    total, finished = sum(len(job.scans) for job in jobs), {}
    with progress(range(total), title, total=total, unit="scan") as bar, ThreadPoolExecutor(workers) as pool:
        for job in jobs if resume else ():
            if shard := finished_shard(out, job):
                finished[job.file] = shard
                bar.update(len(job.scans))
        todo = [job for job in jobs if job.file not in finished]
        encoded = _encode_ahead(pool, (scan for job in todo for scan in job.scans), workers + 1)
        try:
            for job in todo:
                finished[job.file] = write_shard(out, job, islice(encoded, len(job.scans)), bar.update)
        finally:
            pool.shutdown(cancel_futures=True)
    return [finished[job.file] for job in jobs]


def _encode_ahead(pool: ThreadPoolExecutor, scans: Iterable[Scan], ahead: int) -> Iterator[tuple[bytes, ScanEntry]]:
    """Encode scans in order, at most `ahead` of them at a time."""
    scans = iter(scans)
    pending: deque[Future[tuple[bytes, ScanEntry]]] = deque()
    while True:
        pending.extend(pool.submit(encode_scan, scan) for scan in islice(scans, ahead - len(pending)))
        if not pending:
            return
        yield pending.popleft().result()
