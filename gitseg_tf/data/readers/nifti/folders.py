"""One folder per scan, with one mask per label or a label map that names its values."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from gitseg_tf.data.readers.base import (
    NO_LABELS,
)
from gitseg_tf.data.readers.naming import resolve_labels
from gitseg_tf.data.readers.nifti.files import ImageFile, image_files, open_image, stem_of
from gitseg_tf.data.readers.nifti.scan import Found, build_scan
from gitseg_tf.errors import DataError
from gitseg_tf.labels import LabelSet

IMAGE_NAMES = ("image", "image_0000", "mri", "mr", "ct")


def scan_folders(root: Path) -> Iterator[Path]:
    """Find the images in SCAN/ and PATIENT/SCAN/."""
    for pattern in ("*", "*/*"):
        for folder in sorted(root.glob(pattern)):
            if folder.is_dir():
                images = [path for path in image_files(folder) if stem_of(path).lower() in IMAGE_NAMES]
                if len(images) > 1:
                    raise DataError(f"{folder}: {images[0].name} and {images[1].name} are both images; remove one")
                yield from images


def read_folders(root: Path, table: bool, labels: LabelSet | None) -> Found:
    """Read one folder per scan."""
    images = list(scan_folders(root))
    masks = {image: _masks_beside(image) if table else [] for image in images}
    maps = {image: open_image(paths[0]) for image, paths in masks.items() if len(paths) == 1}
    maps = {image: file for image, file in maps.items() if file.names}
    if maps:
        return _mapped_scans(root, masks, maps, labels)
    names = Counter(stem_of(path) for paths in masks.values() for path in paths)
    if not names:
        return Found([_folder_scan(root, image, {}, NO_LABELS) for image in images])
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
    return Found(builds, labels, found, "file")


def _mapped_scans(
    root: Path, masks: dict[Path, list[Path]], maps: dict[Path, ImageFile], labels: LabelSet | None
) -> Found:
    """Read one folder per scan with a label map whose header names its values, like the segmentations of 3-D Slicer."""
    for image, paths in masks.items():
        if paths and image not in maps:
            named = next(iter(maps.values())).path
            raise DataError(f"{paths[0]}: its header names no labels, but that of {named} does; name them all or none")
    names = Counter(name for file in maps.values() for name in file.names.values())
    labels, found = resolve_labels({name: names[name] for name in sorted(names)}, labels, str(root))
    label_of = {item.name: item.label for item in found}
    builds = []
    for image in masks:
        numbers: dict[str, tuple[int, ...]] = {}
        values = maps[image].names if image in maps else {}
        for value, name in values.items():
            label = label_of[name]
            if label in numbers:
                raise DataError(f"{maps[image].path}: {label} has two values, one of them {value}; merge them")
            if label is not None:
                numbers[label] = (value,)
        path = maps[image].path if image in maps else None
        builds.append(_folder_scan(root, image, {}, labels, path, numbers, known=(0, *values)))
    return Found(builds, labels, found, "segment")


def _folder_scan(
    root: Path, image: Path, masks: dict[str, Path], labels: LabelSet,
    label_map: Path | None = None, numbers: dict[str, tuple[int, ...]] | None = None, known: tuple[int, ...] = (),
):  # fmt: skip
    names = image.parent.relative_to(root).parts
    scan_id = "_".join(names)
    return scan_id, partial(
        build_scan, scan_id, names[0], (image,), label_map, numbers, known=known, masks=masks, labels=labels
    )


def _masks_beside(image: Path) -> list[Path]:
    folders = (image.parent, image.parent / "segmentations")
    return [path for folder in folders if folder.is_dir() for path in image_files(folder) if path != image]
