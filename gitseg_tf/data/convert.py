"""From a cohort to TFRecords."""

import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import cv2

from gitseg_tf import __version__
from gitseg_tf.data.folds import assign_folds
from gitseg_tf.data.records import (
    INDEX,
    UNLABELLED,
    VERSION,
    Dataset,
    ScanEntry,
    Shard,
    file_crc32,
    load_dataset,
    save_index,
    serialize_scan,
    shard_from_json,
)
from gitseg_tf.data.scans import (
    ORGANS,
    Cohort,
    Scan,
    read_cohort,
    read_image,
    read_masks,
    slice_strata,
    source_digest,
)
from gitseg_tf.errors import InputError
from gitseg_tf.files import write_atomically
from gitseg_tf.progress import progress

SHARD_BYTES = 256 << 20
_PLAN = ".plan.json"


def convert(
    source: str | Path,
    out: str | Path,
    folds: int = 5,
    seed: int = 0,
    workers: int | None = None,
    resume: bool = False,
) -> Dataset:
    """Convert a cohort in the competition's layout to TFRecords.

    Shards are written under a temporary name and renamed when they are complete, dataset.json is written last: a folder
    without it is no dataset.

    Args:
        source: the cohort, see `read_cohort`.
        out: a new folder.
        folds: folds by patient, for a cohort with contours.
        seed: of the folds.
        workers: scans read at the same time; None is one a core.
        resume: keep the finished shards of an interrupted conversion of the same scans, but those of files that were
            mended since.

    Returns:
        The finished dataset.

    Raises:
        InputError: bad input, see `read_cohort` and `read_image`; `out` is in use; nothing to resume that fits.
    """
    out = Path(out)
    if (out / INDEX).is_file():
        raise InputError(f"{out}: holds a finished dataset already; remove it or choose another folder")
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers}: at least 1 has to do the work")
    cohort = read_cohort(source)
    plan = _plan(cohort, folds, seed)
    _prepare_folder(out, plan, resume)
    workers = workers or os.cpu_count() or 1
    cv2.setNumThreads(1)
    total = len(cohort.scans)
    with progress(range(total), f"convert {Path(source).name}", total=total, unit="scan") as bar:
        lock = threading.Lock()

        def step(scans: int = 1) -> None:
            with lock:
                bar.update(scans)

        by_id = {scan.id: scan for scan in cohort.scans}
        jobs = [(out, name, fold, [by_id[i] for i in ids], step) for name, fold, ids in plan["shards"]]
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(_write_shard, *job) for job in jobs]
            try:
                shards = [future.result() for future in futures]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    source_facts = {"name": cohort.root.resolve().name, "fingerprint": cohort.fingerprint, "converted_by": __version__}
    dataset = Dataset(out, source_facts, plan["folds"], seed, tuple(shards))
    save_index(dataset)
    for leftover in (out / _PLAN, *out.glob("*.tfrecord.json"), *out.glob(".*.tmp")):
        leftover.unlink()
    return load_dataset(out)


def _plan(cohort: Cohort, folds: int, seed: int) -> dict:
    """Which scans go to which shard, as JSON: what a resumed conversion must agree with."""
    if cohort.labelled:
        slices = [(scan.case, stratum) for scan in cohort.scans for stratum in slice_strata(scan)]
        fold_of = assign_folds(*map(list, zip(*slices, strict=True)), folds, seed)
    else:
        folds, fold_of = 0, {scan.case: UNLABELLED for scan in cohort.scans}
    shards = []
    for fold in sorted(set(fold_of.values())):
        parts: list[list[str]] = [[]]
        size = 0
        for scan in cohort.scans:
            if fold_of[scan.case] == fold:
                depth, height, width = scan.shape
                if parts[-1] and size + 2 * depth * height * width > SHARD_BYTES:
                    parts.append([])
                    size = 0
                parts[-1].append(scan.id)
                size += 2 * depth * height * width
        label = f"fold{fold}" if fold != UNLABELLED else "unlabelled"
        shards += [[f"{label}-{i:05d}-of-{len(parts):05d}.tfrecord", fold, ids] for i, ids in enumerate(parts)]
    return {"version": VERSION, "folds": folds, "seed": seed, "shards": shards}


def _prepare_folder(out: Path, plan: dict, resume: bool) -> None:
    leftover = out / _PLAN
    if resume and leftover.is_file():
        if _read_json(leftover) != plan:
            raise InputError(f"{out}: the interrupted conversion was of other scans or folds; run without --resume")
        return
    if out.exists() and not leftover.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is not empty and no conversion of ours; choose another folder")
    for old in out.glob("*.tfrecord*") if out.exists() else ():
        old.unlink()
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(leftover, json.dumps(plan).encode())


def _read_json(path: Path) -> dict:
    """A note that an interrupted conversion left; what cannot be read is as good as none."""
    try:
        tree = json.loads(path.read_bytes())
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) else {}


def _write_shard(out: Path, name: str, fold: int, scans: list[Scan], step: Callable[..., None]) -> Shard:
    """Write one shard, or take it from an interrupted conversion when it is whole."""
    import tensorflow as tf

    path, note, source = out / name, out / f"{name}.json", source_digest(scans)
    noted = _read_json(note) if note.is_file() and path.is_file() else {}
    if noted.get("source") == source:
        shard = shard_from_json(noted["shard"])
        if file_crc32(path) == shard.crc32:
            step(len(scans))
            return shard
    temporary = out / f"{name}.tmp"
    entries = []
    with tf.io.TFRecordWriter(str(temporary)) as writer:
        for scan in scans:
            record, entry = _read_scan(scan)
            writer.write(record)
            entries.append(entry)
            step()
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    shard = Shard(name, fold, temporary.stat().st_size, file_crc32(temporary), tuple(entries))
    os.replace(temporary, path)
    write_atomically(note, json.dumps({"source": source, "shard": asdict(shard)}).encode())
    return shard


def _read_scan(scan: Scan) -> tuple[bytes, ScanEntry]:
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
