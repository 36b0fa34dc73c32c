"""nnU-Net and Medical Segmentation Decathlon folders: imagesTr/, labelsTr/ and dataset.json."""

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from gitseg_tf.core.trees import parse_json, shown
from gitseg_tf.data.readers.base import (
    Scan,
)
from gitseg_tf.data.readers.naming import resolve_labels
from gitseg_tf.data.readers.nifti.files import SUFFIXES, image_files, stem_of
from gitseg_tf.data.readers.nifti.label_tables import named_values
from gitseg_tf.data.readers.nifti.scan import Found, build_scan
from gitseg_tf.data.volume import MAX_CHANNELS
from gitseg_tf.errors import DataError
from gitseg_tf.labels import LabelSet

IGNORE = "ignore"  # nnU-Net's name for voxels that are left out of loss and scores


def read_nnunet(root: Path, images: Path, table: bool, labels: LabelSet | None) -> Found:
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
        unlabeled: list[tuple[str, Callable[[], Scan]]] = [
            (name, partial(build_scan, name, name, paths)) for name, paths in files.items()
        ]
        return Found(unlabeled, channels=channels)
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
        (name, partial(build_scan, name, name, paths, label_files[name], numbers, ignored, known, labels=labels))
        for name, paths in files.items()
    ]
    return Found(builds, labels, found, "label", notes=notes, channels=channels)


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
