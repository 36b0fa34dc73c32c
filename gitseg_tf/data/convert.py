"""From a cohort to TFRecords."""

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from gitseg_tf import __version__
from gitseg_tf.data.dataset import (
    INDEX,
    UNLABELLED,
    VERSION,
    Dataset,
    ScanEntry,
    Shard,
    is_dataset,
    load_dataset,
    save_index,
)
from gitseg_tf.data.folds import assign_folds
from gitseg_tf.data.scans import Cohort, Scan, read_cohort, slice_strata
from gitseg_tf.data.shards import ShardJob, encode_scan, finished_shard, naming_failed_writes, read_note, write_shard
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, as_path, write_atomically
from gitseg_tf.locks import LOCK, locked
from gitseg_tf.progress import progress

SHARD_BYTES = 256 << 20
RUNNERS = ("local", "beam")
_PLAN = ".plan.json"


def convert(
    source: str | AnyPath,
    out: str | AnyPath,
    folds: int = 5,
    seed: int = 0,
    workers: int | None = None,
    resume: bool = False,
    exclude: Sequence[str] = (),
    shard_bytes: int = SHARD_BYTES,
    runner: str = "local",
    beam_options: str = "",
) -> Dataset:
    """Convert a cohort to TFRecords.

    Shards are written under a temporary name and renamed when they are complete, dataset.json is written last: a folder
    without it is no dataset. The bytes depend on neither the workers nor the runner.

    Args:
        source: the cohort, see `read_cohort`.
        out: a new folder.
        folds: folds by patient, for a cohort with contours.
        seed: of the folds.
        workers: scans read at the same time on this machine; None is one a core.
        resume: keep the finished shards of an interrupted conversion of the same scans, but those of files that were
            mended since; wait for another process that is at it; take a finished dataset of the same scans as it is.
        exclude: ids of scans to leave out.
        shard_bytes: a shard is closed before its voxels exceed this; a single scan may.
        runner: "local", or "beam" to let Apache Beam share the shards out.
        beam_options: Beam's own, as on its command line: "--runner=DataflowRunner --project=...".

    Returns:
        The finished dataset.

    Raises:
        InputError: bad input, see `read_cohort` and `read_image`; `out` is in use or full; nothing fits to resume.
    """
    source, out = as_path(source), as_path(out)
    if runner == "beam":
        source, out = source.resolve(), out.resolve()
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers}: at least 1 has to do the work")
    if shard_bytes < 1:
        raise InputError(f"--shard-mib {shard_bytes >> 20}: a shard holds at least 1 MiB")
    if not resume and is_dataset(out):
        raise _finished(out)
    cohort = read_cohort(source)
    scans = _kept(cohort, exclude)
    plan = _plan(cohort, scans, folds, seed, shard_bytes)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, wait=resume, say=print):
        if is_dataset(out):
            return _as_it_is(out, plan, cohort.fingerprint, resume)
        _check_folder(out)
        _start(out, plan, resume)
        by_id = {scan.id: scan for scan in scans}
        jobs = [ShardJob(name, fold, tuple(by_id[i] for i in ids)) for name, fold, ids in plan["shards"]]
        if runner == "beam":
            from gitseg_tf.data.beam import write_shards_with_beam

            shards = write_shards_with_beam(out, jobs, resume, beam_options)
        else:
            shards = _write_shards(out, jobs, resume, workers or os.cpu_count() or 1, f"convert {source.name}")
        with naming_failed_writes(out / INDEX):
            save_index(Dataset(out, _facts(cohort, exclude), plan["folds"], seed, tuple(shards)))
        _sweep(out)
    return load_dataset(out)


def _facts(cohort: Cohort, exclude: Sequence[str]) -> dict[str, str]:
    facts = {"name": cohort.root.resolve().name, "fingerprint": cohort.fingerprint, "converted_by": __version__}
    return facts | ({"excluded": " ".join(sorted(exclude))} if exclude else {})


def _kept(cohort: Cohort, exclude: Sequence[str]) -> list[Scan]:
    unknown = sorted(set(exclude) - {scan.id for scan in cohort.scans})
    if unknown:
        raise InputError(f"--exclude {unknown[0]}: no such scan in {cohort.root}; the first is {cohort.scans[0].id}")
    scans = [scan for scan in cohort.scans if scan.id not in exclude]
    if not scans:
        raise InputError(f"--exclude: leaves no scan of {cohort.root}")
    return scans


def _plan(cohort: Cohort, scans: list[Scan], folds: int, seed: int, shard_bytes: int) -> dict:
    """Which scans go to which shard, as JSON: what a resumed conversion must agree with."""
    if cohort.labelled:
        slices = [(scan.case, stratum) for scan in scans for stratum in slice_strata(scan)]
        fold_of = assign_folds(*map(list, zip(*slices, strict=True)), folds, seed)
    else:
        folds, fold_of = 0, {scan.case: UNLABELLED for scan in scans}
    shards = []
    for fold in sorted(set(fold_of.values())):
        parts: list[list[str]] = [[]]
        size = 0
        for scan in scans:
            if fold_of[scan.case] == fold:
                depth, height, width = scan.shape
                if parts[-1] and size + 2 * depth * height * width > shard_bytes:
                    parts.append([])
                    size = 0
                parts[-1].append(scan.id)
                size += 2 * depth * height * width
        label = f"fold{fold}" if fold != UNLABELLED else "unlabelled"
        shards += [[f"{label}-{i:05d}-of-{len(parts):05d}.tfrecord", fold, ids] for i, ids in enumerate(parts)]
    return {"version": VERSION, "folds": folds, "seed": seed, "shards": shards}


def _check_folder(out: AnyPath) -> None:
    """Refuse a folder with anything in it that is not a conversion's."""
    if (out / _PLAN).is_file():
        return
    # The plan under its temporary name is of a conversion that was killed before it had written anything else.
    if any(path.name != LOCK and not path.name.startswith(_PLAN, 1) for path in out.iterdir()):
        raise InputError(f"{out}: is not empty and no conversion of ours; choose another folder")


def _as_it_is(out: AnyPath, plan: dict, fingerprint: str, resume: bool) -> Dataset:
    """The dataset that is finished already, for whoever resumes the same conversion of the same files."""
    if not resume:
        raise _finished(out)
    dataset = load_dataset(out)
    shards = [[shard.file, shard.fold, [scan.id for scan in shard.scans]] for shard in dataset.shards]
    finished = {"version": VERSION, "folds": dataset.folds, "seed": dataset.seed, "shards": shards}
    if finished != plan or dataset.source["fingerprint"] != fingerprint:
        raise _finished(out)
    _sweep(out)
    return dataset


def _finished(out: AnyPath) -> InputError:
    return InputError(f"{out}: holds a finished dataset already; remove it or choose another folder")


def _start(out: AnyPath, plan: dict, resume: bool) -> None:
    leftover = out / _PLAN
    if resume and leftover.is_file():
        if read_note(leftover) != plan:
            raise InputError(f"{out}: the interrupted conversion was of other scans or folds; run without --resume")
        return
    for old in list(out.glob("*.tfrecord*")):
        old.unlink()
    with naming_failed_writes(leftover):
        write_atomically(leftover, json.dumps(plan).encode())


def _sweep(out: AnyPath) -> None:
    leftovers = [path for pattern in ("*.tfrecord.json", ".*.tmp", ".*.job", ".*.error") for path in out.glob(pattern)]
    for leftover in [*leftovers, out / _PLAN]:
        leftover.unlink(missing_ok=True)


def _write_shards(out: AnyPath, jobs: list[ShardJob], resume: bool, workers: int, title: str) -> list[Shard]:
    """Threads encode scans, this one writes them down; decoding PNG and zlib release the interpreter's lock."""
    total, finished = sum(len(job.scans) for job in jobs), {}
    with progress(range(total), title, total=total, unit="scan") as bar, ThreadPoolExecutor(workers) as pool:
        for job in jobs if resume else ():
            if shard := finished_shard(out, job):
                finished[job.file] = shard
                bar.update(len(job.scans))
        todo = [job for job in jobs if job.file not in finished]
        encoded = _encoded(pool, (scan for job in todo for scan in job.scans), workers + 1)
        try:
            for job in todo:
                finished[job.file] = write_shard(out, job, islice(encoded, len(job.scans)), bar.update)
        finally:
            pool.shutdown(cancel_futures=True)
    return [finished[job.file] for job in jobs]


def _encoded(pool: ThreadPoolExecutor, scans: Iterable[Scan], ahead: int) -> Iterator[tuple[bytes, ScanEntry]]:
    """The scans encoded, in their order, no more than `ahead` of them in memory or at work."""
    scans, pending = iter(scans), deque()
    while True:
        pending.extend(pool.submit(encode_scan, scan) for scan in islice(scans, ahead - len(pending)))
        if not pending:
            return
        yield pending.popleft().result()
