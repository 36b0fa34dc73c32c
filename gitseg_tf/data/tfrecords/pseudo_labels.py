"""Write a copy of a dataset in which scans without an annotation of a label have pseudo-labels.

Scans that have an annotation stay in their fold and keep it. Scans without one move from fold -1 to fold -2, which no
run holds out. Shards in which nothing changes are copied.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from gitseg_tf import __version__
from gitseg_tf.core.locks import locked
from gitseg_tf.core.paths import AnyPath, as_path, write_atomically
from gitseg_tf.core.progress import progress
from gitseg_tf.data.readers.base import Cohort, Scan, source_digest
from gitseg_tf.data.tfrecords.convert import SHARD_BYTES, _already_finished, _check_folder, _start, _sweep
from gitseg_tf.data.tfrecords.dataset import INDEX, Dataset, is_dataset, load_dataset, read_scans, save_index
from gitseg_tf.data.tfrecords.example import serialize_scan
from gitseg_tf.data.tfrecords.index import (
    PSEUDO,
    UNLABELED,
    PseudoEntry,
    PseudoSource,
    ScanEntry,
    Shard,
    count_label_sets,
    count_plane_sets,
)
from gitseg_tf.data.tfrecords.shards import (
    ShardJob,
    finished_shard,
    measure_intensities,
    naming_failed_writes,
    write_shard,
)
from gitseg_tf.data.volume import LoadedScan, PseudoLabels
from gitseg_tf.errors import DataError
from gitseg_tf.labels import LabelSet

Labeler = Callable[[LoadedScan], PseudoLabels | None]


@dataclass(frozen=True)
class _Part:
    """A shard to write: from the scans of a cohort (in the job), or from a shard of the base."""

    job: ShardJob
    shard: Shard | None

    @property
    def count(self) -> int:
        return len(self.job.scans if self.shard is None else self.shard.scans)


def write_pseudo_labeled(
    base: Dataset,
    out: str | AnyPath,
    label: Labeler,
    *,
    source: PseudoSource,
    labels: Sequence[str],
    more: Cohort | None = None,
    resume: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Dataset:
    """Write a dataset with the scans of another one, with pseudo-labels added.

    As in a conversion, shards are written under a temporary name, and dataset.json is written last.

    Args:
        base: a dataset with annotations and without pseudo-labels.
        out: a new folder.
        label: function from a scan to its pseudo-labels in the order of base.labels, or None for none.
        source: the origin of the pseudo-labels.
        labels: names of the labels that `label` predicts; shards whose scans have annotations of all are copied.
        more: scans to add; their annotations are not read.
        resume: keep the finished shards of an interrupted call with the same arguments.
        shard_bytes: maximum number of voxel bytes of a shard with several scans of `more`.

    Returns:
        The finished dataset.

    Raises:
        DataError: no scan lacks a label, `base` has pseudo-labels or a teacher, a scan of `more` has the id of another
            scan or cannot be read, or `out` is in use or contains something else.
    """
    out = as_path(out)
    _check_scans(base, labels, more)
    parts = _parts(base, more, shard_bytes)
    fingerprint = _fingerprint(base, source, more)
    plan = {"pseudo_labels": fingerprint, "shards": [[part.job.file, part.job.fold, part.count] for part in parts]}
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, wait=resume):
        if is_dataset(out):
            dataset = load_dataset(out)
            if not resume or dataset.source["fingerprint"] != fingerprint:
                raise _already_finished(out)
            return dataset
        _check_folder(out)
        _start(out, plan, resume)
        total = sum(part.count for part in parts)
        with progress(range(total), "pseudo-label", total=total, unit="scan") as bar:
            shards = []
            for part in parts:
                shard = finished_shard(out, part.job) if resume else None
                if shard is not None:
                    bar.update(part.count)
                elif part.shard is not None and _is_complete(part.shard, labels):
                    shard = _copied(base, part.shard, out)
                    bar.update(part.count)
                else:
                    shard = write_shard(out, part.job, _encoded(base, part, label), bar.update)
                shards.append(shard)
        facts = base.source | {"fingerprint": fingerprint, "converted_by": __version__}
        if more is not None:
            facts["added"] = more.root.resolve().name
        with naming_failed_writes(out / INDEX):
            save_index(replace(base, root=out, source=facts, shards=tuple(shards), pseudo_labels=source))
        _sweep(out)
    return load_dataset(out)


def _check_scans(base: Dataset, labels: Sequence[str], more: Cohort | None) -> None:
    if base.pseudo_labels is not None:
        raise DataError(f"{base.root}: already has pseudo-labels; start from the dataset without them")
    if base.teacher is not None:
        raise DataError(f"{base.root}: has the probabilities of a teacher; start from the dataset without them")
    known = {scan.id for shard in base.shards for scan in shard.scans}
    if more is None:
        if all(_is_complete(shard, labels) for shard in base.shards):
            raise DataError(
                f"{base.root}: all of its scans have annotations of {', '.join(labels)}; nothing to predict"
            )
    elif twice := sorted(known & {scan.id for scan in more.scans}):
        raise DataError(f"{more.root}: its scan {twice[0]} is already in {base.root}; remove or rename it")


def _is_complete(shard: Shard, labels: Sequence[str]) -> bool:
    return all(set(labels) <= set(scan.label_slices) for scan in shard.scans)


def _parts(base: Dataset, more: Cohort | None, shard_bytes: int) -> list[_Part]:
    """Plan the shards: those of fold -2 first, then those of the folds."""
    unlabeled = base.shards_of([UNLABELED])
    groups: list[list[Scan]] = []
    size = 0
    for scan in more.scans if more is not None else ():
        voxels = scan.source.voxel_bytes * int(np.prod(scan.shape)) * len(base.channels)
        if not groups or size + voxels > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(scan)
        size += voxels
    count = len(unlabeled) + len(groups)
    names = [f"pseudo-{i:05d}-of-{count:05d}.tfrecord" for i in range(count)]
    scans = [((), shard) for shard in unlabeled] + [(tuple(group), None) for group in groups]
    pseudo = [_Part(ShardJob(name, PSEUDO, s), shard) for name, (s, shard) in zip(names, scans, strict=True)]
    kept = [shard for shard in base.shards if shard.fold != UNLABELED]
    return pseudo + [_Part(ShardJob(shard.file, shard.fold, ()), shard) for shard in kept]


def _encoded(base: Dataset, part: _Part, label: Labeler) -> Iterator[tuple[bytes, ScanEntry]]:
    if part.shard is None:
        for scan in part.job.scans:
            loaded = LoadedScan(scan.id, scan.case, scan.read_volume(), None)
            yield _encode(loaded, _unlabeled_entry(scan, loaded), label(loaded), base.labels)
        return
    entries = {scan.id: scan for scan in part.shard.scans}
    for loaded in read_scans(replace(base, shards=(part.shard,)), [part.shard.fold]):
        yield _encode(loaded, entries[loaded.id], label(loaded), base.labels)


def _unlabeled_entry(scan: Scan, loaded: LoadedScan) -> ScanEntry:
    volume = loaded.volume
    percentiles = tuple(tuple(float(f"{value:.7g}") for value in channel) for channel in volume.percentiles)
    measured = measure_intensities(volume, None)
    return ScanEntry(
        scan.id, scan.case, scan.shape, scan.spacing, {}, 0, measured, percentiles, {}, {"coronal": {}, "sagittal": {}}
    )


def _encode(
    scan: LoadedScan, entry: ScanEntry, pseudo: PseudoLabels | None, labels: LabelSet
) -> tuple[bytes, ScanEntry]:
    record = serialize_scan(
        scan.id, scan.case, volume=scan.volume, annotation=scan.annotation, labels=labels, pseudo=pseudo
    )
    if pseudo is not None:
        entry = replace(entry, pseudo=pseudo_entry(scan, pseudo, labels))
    return record, entry


def pseudo_entry(scan: LoadedScan, pseudo: PseudoLabels, labels: LabelSet) -> PseudoEntry:
    """Count the slices of a scan as training sees them.

    Args:
        scan: the scan, with its annotation if it has one.
        pseudo: its pseudo-labels.
        labels: the labels of the dataset.

    Returns:
        The entry in dataset.json.
    """
    masks, known = pseudo.masks, pseudo.labels
    if scan.annotation is not None:
        masks, known = masks | scan.annotation.masks, known | scan.annotation.annotated
    shown = np.any(masks, axis=(2, 3))
    return PseudoEntry(
        tuple(name for name, predicted in zip(labels.names, pseudo.labels, strict=True) if predicted),
        {name: int(shown[k].sum()) for k, name in enumerate(labels.names) if known[k]},
        int((~shown.any(0)).sum()),
        count_label_sets(shown),
        count_plane_sets(masks),
    )


def _copied(base: Dataset, shard: Shard, out: AnyPath) -> Shard:
    content = (base.root / shard.file).read_bytes()
    if f"{zlib.crc32(content):08x}" != shard.crc32:
        raise DataError(f"{base.root / shard.file}: the checksum differs from the one in {INDEX}; convert again")
    with naming_failed_writes(out / shard.file):
        write_atomically(out / shard.file, content)
    return shard


def _fingerprint(base: Dataset, source: PseudoSource, more: Cohort | None) -> str:
    scans = "" if more is None else source_digest(more.scans)
    tree = [base.source["fingerprint"], [shard.crc32 for shard in base.shards], asdict(source), scans]
    return hashlib.sha256(json.dumps(tree).encode()).hexdigest()
