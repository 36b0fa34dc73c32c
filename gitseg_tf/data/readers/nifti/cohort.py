"""NIfTI, NRRD and MetaImage: nnU-Net and Medical Segmentation Decathlon folders, and one folder per scan."""

import hashlib
import json
from collections import Counter
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import cast

from gitseg_tf.core.text import plural
from gitseg_tf.data.readers.base import (
    Cohort,
    Reader,
    Scan,
    Source,
    build_scans,
    source_digest,
)
from gitseg_tf.data.readers.naming import found_notes
from gitseg_tf.data.readers.nifti.files import image_files, stem_of
from gitseg_tf.data.readers.nifti.folders import read_folders, scan_folders
from gitseg_tf.data.readers.nifti.nnunet import read_nnunet
from gitseg_tf.data.readers.nifti.scan import Found, build_scan
from gitseg_tf.data.readers.nifti.source import NiftiSource
from gitseg_tf.errors import DataError
from gitseg_tf.labels import LabelSet

_LISTED = 5  # warnings


def is_here(root: Path) -> bool:
    """Check whether the folder has imagesTr/ or imagesTs/, NIfTI files, or subfolders with an image."""
    return _nnunet_images(root, True) is not None or any(scan_folders(root))


def read(root: Path, table: bool = True, labels: LabelSet | None = None) -> Cohort:
    """Find the scans of a folder, reading only headers.

    Args:
        root: one of
            imagesTr/ID.nii.gz or ID_0000.nii.gz, ID_0001.nii.gz, ... (a file per channel), labelsTr/ID.nii.gz and
                dataset.json, which names the labels and channels (nnU-Net, Decathlon);
            ID.nii.gz, without labels;
            SCAN/image.nii.gz or PATIENT/SCAN/image.nii.gz, with one mask per label beside it or in segmentations/.
        table: False ignores labels, and reads imagesTs/ if it exists.
        labels: the labels to read; None reads all that dataset.json or the mask files name.

    Returns:
        The cohort. Scans with an unreadable header, a mask on another grid or a missing channel are broken.

    Raises:
        DataError: an image without a label map, a label map without an image, or label values without names.
    """
    images = _nnunet_images(root, table)
    found = read_nnunet(root, images, table, labels) if images is not None else read_folders(root, table, labels)
    empty = root / ("imagesTr" if table else "imagesTs")
    if images not in (None, empty) and empty.is_dir():
        found = found._replace(notes=(*found.notes, f"{empty}: contains no images, so those in {images} are read"))
    return _cohort(root, found)


def read_file(path: Path) -> Cohort:
    """Read a single image, whose id is the file's name; see `read`."""
    name = stem_of(path)
    return _cohort(path, Found([(name, partial(build_scan, name, name, (path,)))]))


def _cohort(root: Path, found: Found) -> Cohort:
    scans, broken = build_scans(found.builds)
    counts = {scan.id: _channels(scan.source) for scan in scans}
    count = _expected_channels(counts.values(), found.channels)
    names = found.channels or (("image",) if count == 1 else tuple(f"channel{c}" for c in range(count)))
    if scans and len(names) != count:
        raise DataError(
            f"{root / 'dataset.json'}: names {len(names)} channels ({', '.join(names)}), but the scans have {count}; "
            "fix channel_names or add the files"
        )
    odd = [(scan.id, _channel_fault(scan, counts[scan.id], count)) for scan in scans if counts[scan.id] != count]
    scans = tuple(scan for scan in scans if counts[scan.id] == count)
    digest = hashlib.sha256(json.dumps([scan.id for scan in scans]).encode() + source_digest(list(scans)).encode())
    notes, left = found_notes(found.found, found.kind, len(found.builds))
    return Cohort(
        root,
        scans,
        digest.hexdigest(),
        "NIfTI",
        found.labels,
        tuple(names),
        found=found.found,
        label_notes=notes,
        left_over=left,
        ignored=found.ignored,
        broken=(*broken, *odd),
        notes=(*found.notes, *_assumptions(root, scans)),
        warnings=_first_lines([line for scan in scans for line in cast(NiftiSource, scan.source).warnings]),
    )


def _assumptions(root: Path, scans: Collection[Scan]) -> list[str]:
    """List what headers leave open, once each, with the number of scans."""
    counts = Counter(line for scan in scans for line in cast(NiftiSource, scan.source).assumed)
    return [f"{root}: in {plural(count, 'scan')}, {line}" for line, count in counts.items()]


def _first_lines(lines: list[str]) -> tuple[str, ...]:
    """Shorten a list of warnings of the same kind."""
    more = len(lines) - _LISTED
    return (*lines[:_LISTED], *([f"and {plural(more, 'file')} more like these"] if more > 0 else ()))


def _expected_channels(counts: Collection[int], names: tuple[str, ...] | None) -> int:
    """Return the number of channels every scan must have: that of dataset.json if a scan has it, or the most common."""
    if names is not None and len(names) in counts:
        return len(names)
    return max(Counter(counts).items(), key=lambda item: item[::-1], default=(1, 0))[0]


def _channel_fault(scan: Scan, count: int, expected: int) -> str:
    assert isinstance(scan.source, NiftiSource)
    path = scan.source.images[-1]
    if count < expected and len(scan.source.images) == count:
        path = path.with_name(f"{scan.id}_{count:04d}{path.name.removeprefix(stem_of(path))}")
        return f"{path}: is missing, but other scans have {plural(expected, 'channel')}; add this file"
    has = f"{scan.id} has {plural(count, 'channel')}"
    return f"{path}: {has}, but other scans have {expected}; give all scans the same channels"


def _channels(source: Source) -> int:
    assert isinstance(source, NiftiSource)
    return source.channels


def _nnunet_images(root: Path, table: bool) -> Path | None:
    names = ("imagesTr", "imagesTs") if table else ("imagesTs", "imagesTr")
    folders = [root / name for name in names if (root / name).is_dir()]
    filled = [folder for folder in folders if image_files(folder)]
    return next(iter([*filled, *([root] if image_files(root) else []), *folders]), None)


READER = Reader(is_here, read, read_file)
