"""The competition's layout: one folder of PNG slices per scan, run-length masks in train.csv."""

import csv
import hashlib
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from gitseg_tf.core.paths import AnyPath, RemotePath, file_size
from gitseg_tf.core.progress import progress
from gitseg_tf.data.readers.base import NO_LABELS, SLICE_MM, Cohort, FoundLabel, Reader, Scan, Source, build_scans
from gitseg_tf.data.readers.naming import found_notes, resolve_labels
from gitseg_tf.data.readers.png import read_png
from gitseg_tf.data.readers.rle import RleError, rle_to_mask
from gitseg_tf.data.volume import Annotation
from gitseg_tf.errors import DataError
from gitseg_tf.labels import UWMGI, LabelSet

_SLICE_NAME = re.compile(r"slice_(\d+)_(\d+)_(\d+)_(\d+(?:\.\d+)?)_(\d+(?:\.\d+)?)\.png")
_SLICE_SUFFIX = re.compile(r"_slice_\d+$")
_PIXEL_MM = 1.5  # nearly all scans of the competition have this pixel size
_BAR_AFTER = 2  # seconds until a progress bar appears
_REQUESTS = 32  # each stat in a bucket is a request that takes tens of milliseconds


@dataclass(frozen=True)
class SliceFile:
    """One slice: its number in the scan, its id in the table and its PNG."""

    number: int
    id: str
    path: AnyPath


@dataclass(frozen=True)
class CompetitionSource(Source):
    """PNG files and table rows of one scan.

    Attributes:
        slices: in the order of their numbers, which need not be contiguous.
        rles: (slice id, class) to run-length string; empty strings are left out.
        classes: those with rows for this scan.
    """

    slices: tuple[SliceFile, ...]
    rles: dict[tuple[str, str], str] = field(repr=False)
    classes: tuple[str, ...] = ()

    def files(self) -> list[tuple[str, AnyPath]]:
        return [("image", item.path) for item in self.slices]

    def digest(self):
        for item in self.slices:
            yield f"{item.id} {item.path.name} {file_size(item.path)}\n".encode()
        yield json.dumps(sorted((*key, rle) for key, rle in self.rles.items())).encode()

    def read_image(self, scan: Scan) -> np.ndarray:
        volume = np.empty(scan.shape, np.uint16)
        for plane, item in zip(volume, self.slices, strict=True):
            plane[:] = read_png(item.path, scan.shape[1:])
        return volume

    def read_annotation(self, scan: Scan) -> Annotation:
        masks = np.zeros((len(scan.labels), *scan.shape), bool)
        indices = self._indices(scan)
        for z, item in enumerate(self.slices):
            for name, k in indices.items():
                rle = self.rles.get((item.id, name))
                if rle:
                    try:
                        masks[k, z] |= rle_to_mask(rle, scan.shape[1:])
                    except RleError as error:
                        raise DataError(f"train.csv, {item.id}, {name}: {error}; fix the row") from None
        return Annotation(masks, scan.is_annotated)

    def _indices(self, scan: Scan) -> dict[str, int]:
        """Map each class to the index of its label."""
        matches = {name: scan.labels.match(name) for name in self.classes}
        return {name: scan.labels.index(label.name) for name, label in matches.items() if label is not None}

    def whole_grid(self, scan: Scan):
        # The files do not record the patient's position, so the first pixel of slice 1 is at 0. The import is local
        # because importing nibabel takes 10% of the time of converting 20 scans.
        from gitseg_tf.data.readers.grid import records_grid

        first, last = scan.numbers[0], scan.numbers[-1]
        return records_grid((last - first + 1, *scan.shape[1:]), scan.spacing, first - 1)

    def slice_strata(self, scan: Scan) -> list[int]:
        bits = {name: 1 << k for name, k in self._indices(scan).items()}
        return [sum(bit for name, bit in bits.items() if self.rles.get((item.id, name))) for item in self.slices]


def is_here(root: AnyPath) -> bool:
    """Check whether the folder has a train.csv, or slices in .../scans/."""
    return (root / "train.csv").is_file() or next(_slices_under(_image_root(root)), None) is not None


def read(root: AnyPath, table: bool = True, labels: LabelSet | None = None) -> Cohort:
    """Find the scans of a folder without reading pixels.

    Args:
        root: contains train.csv (columns id, class, segmentation; rows in any order; a class without rows in a scan is
            unannotated, one with empty segmentations absent) and
            train/CASE/CASE_DAY/scans/slice_NUMBER_WIDTH_HEIGHT_PIXELWIDTH_PIXELHEIGHT.png (width before height, mm).
            Without a table the scans have no annotation, as in a test set.
        table: False ignores train.csv, and reads test/ rather than train/ if both exist.
        labels: the labels to read; None reads the competition's, or the table's classes if it has others.

    Returns:
        The cohort. Scans with an invalid file name, a duplicate slice or slices of different sizes are broken.

    Raises:
        DataError: no slices, no class that matches a label, or a duplicate row.
    """
    root, notes = _cohort_root(root)
    images, empty = _filled_image_root(root, ("train", "test") if table else ("test", "train"))
    if empty is not None:
        notes += (f"{empty}: contains no slices, so the scans in {images} are read",)
    listed = progress(_slices_under(images), f"list {root.name}", unit="file", delay=_BAR_AFTER)
    files = sorted(listed, key=str)
    if not files:
        raise DataError(f"{root}: no slices found; expected them at train/CASE/CASE_DAY/scans/slice_*.png")
    table_path = root / "train.csv"
    has_table = table and table_path.is_file()
    if table and not has_table:
        _check_no_table_elsewhere(root)
    rles, rows, classes, table_hash = _read_table(table_path) if has_table else ({}, {}, {}, "no table")
    by_scan: dict[AnyPath, list[AnyPath]] = {}
    for path in files:
        by_scan.setdefault(path.parent, []).append(path)
    found: tuple[FoundLabel, ...] = ()
    if has_table and classes:
        counts = Counter(name for names in classes.values() for name in names)
        ordered = {name: counts[name] for name in sorted(counts)}
        default = UWMGI if all(UWMGI.match(name) for name in ordered) else None
        labels, found = resolve_labels(ordered, labels or default, str(table_path))
    else:
        labels = NO_LABELS
    scans, broken = build_scans(
        (folder.parent.name, partial(_scan, folder, images, paths, rles=rles, classes=classes, labels=labels))
        for folder, paths in by_scan.items()
    )
    with_image = {slice_id for scan in scans for slice_id in scan.slice_ids}
    without = {name for name, _ in broken}
    orphans = tuple(
        slice_id for slice_id in rows if slice_id not in with_image and scan_of_slice(slice_id) not in without
    )
    fingerprint = _fingerprint(root, files, table_hash)
    label_notes, left = found_notes(found, "class", len(scans))
    return Cohort(
        root,
        scans,
        fingerprint,
        "competition",
        labels,
        found=found,
        label_notes=label_notes,
        notes=notes,
        left_over=left,
        orphans=orphans,
        broken=broken,
    )


def read_file(path: AnyPath) -> Cohort:
    """Read a single PNG as a scan of one slice.

    Args:
        path: in .../CASE_DAY/scans/ it keeps the ids of its cohort, elsewhere its name is the id. The competition's
            file names include the pixel size; for others the competition's usual one is assumed and noted.

    Returns:
        A cohort without annotations.

    Raises:
        DataError: the file cannot be read, or its size differs from its name.
    """
    named = _SLICE_NAME.fullmatch(path.name)
    notes: tuple[str, ...] = ()
    if named:
        number, spacing = int(named[1]), (SLICE_MM, float(named[5]), float(named[4]))
    else:
        number, spacing = 1, (SLICE_MM, _PIXEL_MM, _PIXEL_MM)
        notes = (
            f"{path}: assuming a pixel size of {_PIXEL_MM} x {_PIXEL_MM} mm, because the file name does not give one; "
            "name it like slice_NUMBER_WIDTH_HEIGHT_PIXELWIDTH_PIXELHEIGHT.png to set it",
        )
    in_cohort = named and path.parent.name == "scans"
    scan_id = path.parent.parent.name if in_cohort else path.stem
    slice_id = f"{scan_id}_slice_{named[1]}" if named and in_cohort else path.stem
    shape = read_png(path, (int(named[3]), int(named[2])) if named else None).shape
    source = CompetitionSource((SliceFile(number, slice_id, path),), {})
    scan = Scan(scan_id, scan_id.split("_")[0], (1, *shape), spacing, [number], [slice_id], NO_LABELS, (), source)
    return Cohort(path, (scan,), _fingerprint(path.parent, [path], "no table"), "competition", notes=notes)


def _cohort_root(root: AnyPath) -> tuple[AnyPath, tuple[str, ...]]:
    """Find the folder of the cohort: `root`, or its only subfolder with train.csv or train/, as archives unpack."""
    if isinstance(root, RemotePath) or any((root / name).exists() for name in ("train.csv", "train", "test")):
        return root, ()
    folders = [path for path in root.iterdir() if (path / "train.csv").is_file() or (path / "train").is_dir()]
    if len(folders) != 1:
        return root, ()
    return folders[0], (f"{root}: the cohort is read from its subfolder {folders[0].name}",)


def _filled_image_root(root: AnyPath, names: tuple[str, str]) -> tuple[AnyPath, AnyPath | None]:
    """Find the folder of the slices: the first of `names` with any; and a folder that was passed over, or None."""
    first = _image_root(root, names)
    other = root / names[1]
    if first == root / names[0] and other.is_dir() and next(_slices_under(first), None) is None:
        return other, first
    return first, None


def _check_no_table_elsewhere(root: AnyPath) -> None:
    if not isinstance(root, RemotePath):
        deeper = next(iter(sorted(root.glob("*/train.csv"))), None)
        if deeper is not None:
            raise DataError(f"{deeper}: is not next to the images; move it to {root}, or give {deeper.parent} alone")


def _image_root(root: AnyPath, names: tuple[str, str] = ("train", "test")) -> AnyPath:
    return next((root / name for name in names if (root / name).is_dir()), root)


def _slices_under(images: AnyPath) -> Iterator[AnyPath]:
    if isinstance(images, RemotePath):
        import tensorflow as tf

        # A bucket answers a glob in a few requests; walking the folders takes one per scan and file.
        found = tf.io.gfile.glob(f"{images}/*/*/scans/*.png")
        paths: Iterator[AnyPath] = map(RemotePath, found) if found else images.glob("**/scans/*.png")
    else:
        paths = images.glob("**/scans/*.png")
    return (path for path in paths if not path.name.startswith("."))


def _scan(folder: AnyPath, images: AnyPath, paths: list[AnyPath], *, rles, classes, labels: LabelSet) -> Scan:
    name = folder.parent.name
    slices, geometries = [], {}
    for path in paths:
        match = _SLICE_NAME.fullmatch(path.name)
        if not match:
            raise DataError(f"{path}: invalid name; expected slice_NUMBER_WIDTH_HEIGHT_PIXELWIDTH_PIXELHEIGHT.png")
        number, width, height, pixel_width, pixel_height = match.groups()
        slices.append(SliceFile(int(number), sys.intern(f"{name}_slice_{number}"), path))
        geometries[int(height), int(width), float(pixel_height), float(pixel_width)] = path
    if len(geometries) > 1:
        a, b = list(geometries.values())[:2]
        raise DataError(f"{folder}: {a.name} and {b.name} differ in size or pixel size; make them match")
    slices.sort(key=lambda s: s.number)
    numbers = [s.number for s in slices]
    if len(set(numbers)) < len(numbers):
        twice = next(n for n, count in Counter(numbers).items() if count > 1)
        raise DataError(f"{folder}: slice {twice} exists twice; remove one")
    ((height, width, pixel_height, pixel_width),) = geometries
    if min(height, width, pixel_height, pixel_width) <= 0:
        raise DataError(f"{paths[0]}: the name gives a size or pixel size of 0; fix the name")
    shape, spacing = (len(slices), height, width), (SLICE_MM, pixel_height, pixel_width)
    source = CompetitionSource(tuple(slices), rles.get(name, {}), tuple(classes.get(name, ())))
    ids = [s.id for s in slices]
    class_of: dict[str, str] = {}
    for cls in source.classes:
        label = labels.match(cls)
        if label is not None and label.name in class_of:
            raise DataError(
                f"train.csv: {name} has the classes {class_of[label.name]!r} and {cls!r}, which are both {label.name}; "
                "remove one"
            )
        if label is not None:
            class_of[label.name] = cls
    annotated = tuple(label.name for label in labels if label.name in class_of)
    # Without a folder for each patient, the patient is the part of the scan's name before the first underscore.
    case_folder = folder.parent.parent
    case = name.split("_")[0] if case_folder == images else case_folder.name
    return Scan(name, case, shape, spacing, numbers, ids, labels, annotated, source)


def _read_table(
    path: AnyPath,
) -> tuple[dict[str, dict[tuple[str, str], str]], dict[str, None], dict[str, dict[str, None]], str]:
    """Read the non-empty run-length strings by scan, then by (slice id, class); all slice ids in order; the classes of
    each scan; and a hash of the file."""
    content = path.read_bytes()
    rles: dict[str, dict[tuple[str, str], str]] = {}
    seen: dict[str, int] = {}
    bits: dict[str, int] = {}
    classes: dict[str, dict[str, None]] = {}
    for slice_id, name, rle in table_rows(path, content, ("id", "class", "segmentation")):
        if not name.strip():
            raise DataError(f"{path}: {slice_id} has a row without a class; fill in the class or remove the row")
        slice_id, bit = sys.intern(slice_id), bits.setdefault(name, 1 << len(bits))
        if seen.get(slice_id, 0) & bit:
            raise DataError(f"{path}: {slice_id}, {name} has two rows; remove one")
        seen[slice_id] = seen.get(slice_id, 0) | bit
        name, scan = sys.intern(name), scan_of_slice(slice_id)
        classes.setdefault(scan, {})[name] = None
        if rle := rle.strip():
            rles.setdefault(scan, {})[slice_id, name] = rle
    return rles, dict.fromkeys(seen), classes, hashlib.sha256(content).hexdigest()


def scan_of_slice(slice_id: str) -> str:
    """Get the scan id from a slice id: case123_day20 from case123_day20_slice_0001."""
    return _SLICE_SUFFIX.sub("", slice_id)


def table_rows(path: AnyPath, content: bytes, names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Iterate over the rows of some columns of a CSV table.

    Args:
        path: the table, for errors.
        content: the bytes of the file.
        names: the columns.

    Raises:
        DataError: a column is missing, or a row has too few or too many cells.
    """
    # Do not use pandas: importing it takes 10% of the time of converting 20 scans.
    csv.field_size_limit(max(csv.field_size_limit(), len(content)))
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline=""), strict=True)
    try:
        header = next(filter(None, reader), None)
        if header is None:
            raise DataError(f"{path}: cannot be read as CSV (it is empty); copy the file again")
        missing = set(names) - set(header)
        if missing:
            raise DataError(f"{path}: column {min(missing)} is missing; the required columns are {', '.join(names)}")
        columns = [header.index(name) for name in names]
        for row in filter(None, reader):
            if len(row) != len(header):
                raise DataError(
                    f"{path}: line {reader.line_num} has {len(row)} cells, but the header has {len(header)}; fix it"
                )
            yield tuple(row[column] for column in columns)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error}); fix the file") from None


def _fingerprint(root: AnyPath, files: list[AnyPath], table_hash: str) -> str:
    digest = hashlib.sha256(table_hash.encode())
    for path, size in zip(files, _sizes(files), strict=True):
        digest.update(f"{path.relative_to(root).as_posix()} {size}\n".encode())
    return digest.hexdigest()


def _sizes(files: list[AnyPath]) -> list[int]:
    if isinstance(files[0], RemotePath):
        with ThreadPoolExecutor(_REQUESTS) as pool:
            sizes = pool.map(file_size, files)
            return list(progress(sizes, "sizes", total=len(files), unit="file", delay=_BAR_AFTER))
    return [file_size(path) for path in files]


READER = Reader(is_here, read, read_file)
