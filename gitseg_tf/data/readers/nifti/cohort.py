"""NIfTI: nnU-Net and Medical Segmentation Decathlon folders, and one folder per scan with a mask per label."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from gitseg_tf.core.text import plural
from gitseg_tf.core.trees import parse_json, shown
from gitseg_tf.data.readers.base import (
    NO_LABELS,
    Cohort,
    FoundLabel,
    Reader,
    Scan,
    Source,
    build_scans,
    numbered_slice_ids,
    source_digest,
)
from gitseg_tf.data.readers.naming import found_notes, resolve_labels
from gitseg_tf.data.readers.nifti.files import SUFFIXES, image_files, open_image, stem_of
from gitseg_tf.data.readers.nifti.label_tables import named_values
from gitseg_tf.data.readers.nifti.source import NiftiSource, check_agreement
from gitseg_tf.data.volume import MAX_CHANNELS
from gitseg_tf.errors import DataError
from gitseg_tf.labels import LabelSet

IMAGE_NAMES = ("image", "image_0000", "mri", "mr", "ct")
_LISTED = 5  # warnings
IGNORE = "ignore"  # nnU-Net's name for voxels that are left out of loss and scores


class _Found(NamedTuple):
    """The contents of a folder, before headers are read."""

    builds: list[tuple[str, Callable[[], Scan]]]
    labels: LabelSet = NO_LABELS
    found: tuple[FoundLabel, ...] = ()
    kind: str = "label"
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    channels: tuple[str, ...] | None = None


def is_here(root: Path) -> bool:
    """Check whether the folder has imagesTr/ or imagesTs/, NIfTI files, or subfolders with an image."""
    return _nnunet_images(root, True) is not None or any(_scan_folders(root))


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
    found = _read_nnunet(root, images, table, labels) if images is not None else _scans(root, table, labels)
    empty = root / ("imagesTr" if table else "imagesTs")
    if images not in (None, empty) and empty.is_dir():
        found = found._replace(notes=(*found.notes, f"{empty}: contains no images, so those in {images} are read"))
    return _cohort(root, found)


def read_file(path: Path) -> Cohort:
    """Read a single image, whose id is the file's name; see `read`."""
    name = stem_of(path)
    return _cohort(path, _Found([(name, partial(_scan, name, name, (path,)))]))


def _cohort(root: Path, found: _Found) -> Cohort:
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


def _read_nnunet(root: Path, images: Path, table: bool, labels: LabelSet | None) -> _Found:
    folder = root / "labelsTr"
    labeled = table and images.name == "imagesTr" and folder.is_dir()
    label_files = {stem_of(path): path for path in image_files(folder)} if labeled else {}
    files = _channel_files(images, label_files)
    if not files:
        raise DataError(f"{images}: contains no image file ({', '.join(SUFFIXES)}); add the images")
    if labeled and files.keys() != label_files.keys():
        odd = min(files.keys() ^ label_files.keys())
        present, missing = (images, folder) if odd in files else (folder, images)
        raise DataError(f"{present}: {odd} has no file in {missing.name}/; add it, or remove this one")
    path = root / "dataset.json"
    tree = read_json(path) if path.is_file() else {}
    where = path if path.is_file() else root
    channels = _channel_names(tree)
    if not labeled:
        return _Found([(name, partial(_scan, name, name, paths)) for name, paths in files.items()], channels=channels)
    notes: tuple[str, ...] = ()
    if path.is_file():
        named = named_numbers(path, tree)
    elif labels is not None:
        named = [(label.name, (number,)) for number, label in enumerate(labels, 1)]
        notes = (
            f"{root}: no dataset.json, so the values 1 to {len(labels)} are read as the labels in the given order",
        )
    else:
        named, source_of_names = named_values(list(label_files.values()))
        notes = (f"{root}: no dataset.json, so the label names come from {source_of_names}",)
    if len(dict(named)) < len(named):
        raise DataError(f"{where}: two values have the same name; give each value its own name in a dataset.json")
    ignored = tuple(n for name, numbers in named for n in numbers if name.lower() == IGNORE)
    known = tuple(sorted({0}.union(*(numbers for _, numbers in named))))
    named = [(name, numbers) for name, numbers in named if numbers != (0,) and name.lower() != IGNORE]
    labels, found = resolve_labels({name: len(files) for name, _ in named}, labels, str(where))
    if ignored:
        listed = ", ".join(map(str, ignored))
        notes += (f"{where}: voxels with the value {listed} (ignore) are excluded from the loss and the scores",)
    numbers: dict[str, tuple[int, ...]] = {}
    for (name, values), item in zip(named, found, strict=True):
        if item.label in numbers:
            raise DataError(f"{where}: {item.label} has two names, one of them {name!r}; remove one")
        if item.label is not None:
            numbers[item.label] = values
    builds: list[tuple[str, Callable[[], Scan]]] = [
        (name, partial(_scan, name, name, paths, label_files[name], numbers, ignored, known, labels=labels))
        for name, paths in files.items()
    ]
    return _Found(builds, labels, found, "label", notes=notes, channels=channels)


def _channel_files(images: Path, label_files: dict[str, Path]) -> dict[str, tuple[Path, ...]]:
    """Group files by scan id. ID_0001 is a channel of ID if a label map is named ID, or a file ID_0000."""
    files: dict[str, dict[str, Path]] = {}
    paths = image_files(images)
    stems = {stem_of(path) for path in paths}
    for path in paths:
        stem = stem_of(path)
        match = re.fullmatch(r"(.+)_(\d{4})", stem)
        is_channel = (
            match is not None and stem not in label_files and (match[1] in label_files or f"{match[1]}_0000" in stems)
        )
        scan_id, channel = (match[1], match[2]) if match and is_channel else (stem, "0000")
        if channel in files.setdefault(scan_id, {}):
            other = files[scan_id][channel].name
            raise DataError(f"{path}: channel {channel} of {scan_id} exists twice (also {other}); remove one")
        files[scan_id][channel] = path
    for scan_id, channels in files.items():
        expected = [f"{c:04d}" for c in range(len(channels))]
        if missing := sorted(set(expected) - set(channels)):
            last = channels[max(channels)].name
            path = images / last.replace(f"_{max(channels)}", f"_{missing[0]}")
            raise DataError(f"{path}: is missing, but {last} exists; add this file")
        if len(channels) > MAX_CHANNELS:
            raise DataError(
                f"{images}: {scan_id} has {len(channels)} channels, but at most {MAX_CHANNELS} are supported"
            )
    return {scan_id: tuple(channels[c] for c in sorted(channels)) for scan_id, channels in sorted(files.items())}


def read_json(path: Path) -> dict:
    """Read a JSON object.

    Raises:
        DataError: invalid JSON, another type, or a key that is defined twice.
    """
    try:
        tree = parse_json(path.read_bytes(), partial(_unique_keys, path))
    except ValueError as error:
        raise DataError(f"{path}: invalid JSON ({error}); fix the file") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path}: must be a JSON object, got {type(tree).__name__}; see docs/how-to/data.md")
    return tree


def _unique_keys(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of a JSON object; json alone would keep the last of duplicate keys."""
    twice = [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]
    if twice:
        raise DataError(f"{path}: {twice[0]!r} is defined twice; remove one")
    return dict(pairs)


def _channel_names(tree: dict) -> tuple[str, ...] | None:
    """Read nnU-Net's "channel_names" or the Decathlon's "modality"."""
    names = tree.get("channel_names", tree.get("modality"))
    if not isinstance(names, dict) or not names:
        return None
    ordered = sorted(names.items(), key=lambda item: int(item[0]) if str(item[0]).isdecimal() else 0)
    return tuple(str(name).encode("utf-8", "replace").decode() for _, name in ordered)


def named_numbers(path: Path, tree: dict) -> list[tuple[str, tuple[int, ...]]]:
    """Read names and their values. nnU-Net v2 maps names to values or regions, the Decathlon values to names.

    Raises:
        DataError: no labels, or a label that is defined twice.
    """
    try:
        named = [
            (value, (int(key),)) if isinstance(value, str) else (key, _integers(value))
            for key, value in tree["labels"].items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f'{path}: has no "labels" that map names to integers; see docs/how-to/data.md') from None
    twice = [name for name, n in Counter(str(name) for name, _ in named).items() if n > 1]
    if twice:
        raise DataError(f"{path}: label {twice[0]!r} is defined twice; remove one, or list all its values in one entry")
    return [(str(name), numbers) for name, numbers in named]


def _integers(value: Any) -> tuple[int, ...]:
    """Read the value or the values of a label; JSON may write 1 as 1.0."""
    values = value if isinstance(value, list) else [value]
    if not values or any(type(v) not in (int, float) or v != v // 1 or abs(v) >= 2**31 for v in values):
        raise ValueError(f"{shown(value)} is not an integer")
    return tuple(map(int, values))


def _scan_folders(root: Path) -> Iterator[Path]:
    """Find the images in SCAN/ and PATIENT/SCAN/."""
    for pattern in ("*", "*/*"):
        for folder in sorted(root.glob(pattern)):
            if folder.is_dir():
                images = [path for path in image_files(folder) if stem_of(path).lower() in IMAGE_NAMES]
                if len(images) > 1:
                    raise DataError(f"{folder}: {images[0].name} and {images[1].name} are both images; remove one")
                yield from images


def _scans(root: Path, table: bool, labels: LabelSet | None) -> _Found:
    """Read one folder per scan."""
    images = list(_scan_folders(root))
    masks = {image: _masks_beside(image) if table else [] for image in images}
    names = Counter(stem_of(path) for paths in masks.values() for path in paths)
    if not names:
        return _Found([_folder_scan(root, image, {}, NO_LABELS) for image in images])
    labels, found = resolve_labels({name: names[name] for name in sorted(names)}, labels, str(root))
    label_of = {item.name: item.label for item in found}
    builds = []
    for image in images:
        mask_of: dict[str, Path] = {}
        for path in masks[image]:
            label = label_of[stem_of(path)]
            if label in mask_of:
                raise DataError(f"{path}: {label} has another mask ({mask_of[label].name}); remove one")
            if label is not None:
                mask_of[label] = path
        builds.append(_folder_scan(root, image, mask_of, labels))
    return _Found(builds, labels, found, "file")


def _folder_scan(root: Path, image: Path, masks: dict[str, Path], labels: LabelSet):
    names = image.parent.relative_to(root).parts
    scan_id = "_".join(names)
    return scan_id, partial(_scan, scan_id, names[0], (image,), masks=masks, labels=labels)


def _masks_beside(image: Path) -> list[Path]:
    folders = (image.parent, image.parent / "segmentations")
    return [path for folder in folders if folder.is_dir() for path in image_files(folder) if path != image]


def _scan(
    scan_id: str,
    patient: str,
    images: tuple[Path, ...],
    label_map: Path | None = None,
    numbers: dict[str, tuple[int, ...]] | None = None,
    ignored: tuple[int, ...] = (),
    known: tuple[int, ...] = (),
    *,
    masks: dict[str, Path] | None = None,
    labels: LabelSet = NO_LABELS,
) -> Scan:
    masks = masks or {}
    opened = [open_image(path, channels=len(images) == 1) for path in images]
    others = [open_image(path) for path in [*([label_map] if label_map else []), *masks.values()]]
    grid = opened[0].grid
    for file in [*opened[1:], *others]:
        check_agreement(file.path, file.grid, images[0], grid)
    files = [*opened, *others]
    source = NiftiSource(
        images, grid, label_map, numbers or {}, ignored, known, masks,
        voxel_bytes=max(file.voxel_bytes for file in opened),
        channels=opened[0].channels or len(images),
        assumed=tuple(dict.fromkeys(line for file in files for line in file.assumed)),
        warnings=tuple(line for file in files for line in file.warnings),
    )  # fmt: skip
    slices = list(range(1, grid.records_shape[0] + 1))
    ids = numbered_slice_ids(scan_id, slices)
    present = set(numbers or {}) if label_map else set(masks)
    annotated = tuple(label.name for label in labels if label.name in present)
    case = patient.split("_day")[0]
    return Scan(scan_id, case, grid.records_shape, grid.spacing, slices, ids, labels, annotated, source)


READER = Reader(is_here, read, read_file)
