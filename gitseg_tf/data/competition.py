"""The competition's layout: PNG slices in folders a scan, run-length strings in train.csv."""

import csv
import hashlib
import io
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import cv2
import numpy as np

from gitseg_tf.data.rle import RleError, rle_to_mask
from gitseg_tf.data.scans import ORGANS, SLICE_MM, Cohort, Scan, Source, build_scans
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, RemotePath, file_size
from gitseg_tf.progress import progress

_SLICE_NAME = re.compile(r"slice_(\d+)_(\d+)_(\d+)_(\d+(?:\.\d+)?)_(\d+(?:\.\d+)?)\.png")
_SLICE_SUFFIX = re.compile(r"_slice_\d+$")
_PIXEL_MM = 1.5  # of nearly all scans of the competition
_PNG_START = b"\x89PNG\r\n\x1a\n"
_BAR_AFTER = 2  # seconds of listing
_REQUESTS = 32  # a stat of a bucket is a request of tens of milliseconds


@dataclass(frozen=True)
class SliceFile:
    """One slice: its number in the scan, its id in the table and its PNG."""

    number: int
    id: str
    path: AnyPath


@dataclass(frozen=True)
class CompetitionSource(Source):
    """PNG files and rows of the table.

    Attributes:
        slices: in the order of their numbers, which need not be contiguous.
        rles: (slice id, organ) to run-length string; an absent organ has "" or is left out.
    """

    slices: tuple[SliceFile, ...]
    rles: dict[tuple[str, str], str] = field(repr=False)

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

    def read_masks(self, scan: Scan) -> np.ndarray:
        masks = np.zeros((len(ORGANS), *scan.shape), bool)
        for z, item in enumerate(self.slices):
            for k, organ in enumerate(ORGANS):
                rle = self.rles.get((item.id, organ))
                if rle:
                    try:
                        masks[k, z] = rle_to_mask(rle, scan.shape[1:])
                    except RleError as error:
                        raise InputError(f"train.csv, {item.id}, {organ}: {error}; correct the row") from None
        return masks

    def whole_grid(self, scan: Scan):
        # The files do not say where the patient lies: the first pixel of slice 1 is at 0. Imported here, for nibabel's
        # import takes a tenth of the time of a conversion of 20 scans.
        from gitseg_tf.data.orientation import records_grid

        first, last = scan.numbers[0], scan.numbers[-1]
        return records_grid((last - first + 1, *scan.shape[1:]), scan.spacing, first - 1)

    def slice_strata(self, scan: Scan) -> list[int]:
        return [
            sum(1 << k for k, organ in enumerate(ORGANS) if self.rles.get((item.id, organ))) for item in self.slices
        ]


def is_here(root: AnyPath) -> bool:
    """True for a folder with a train.csv, or with slices in .../scans/."""
    return (root / "train.csv").is_file() or next(_slices_under(_image_root(root)), None) is not None


def read(root: AnyPath, table: bool = True) -> Cohort:
    """Find the scans of a folder; no pixel is read.

    Args:
        root: holds train.csv (id, class, segmentation; rows in any order, rows of absent organs may be left out) and
            train/CASE/CASE_DAY/scans/slice_NUMBER_WIDTH_HEIGHT_PIXELWIDTH_PIXELHEIGHT.png (width before height, mm).
            Without a table the scans are without contours: a test set.
        table: False leaves train.csv alone, and takes the scans of test/ where both train/ and test/ are there.

    Returns:
        The cohort, scans sorted by id; broken are those with a name that cannot be read, a slice twice, or slices of
        several sizes.

    Raises:
        InputError: nothing there, an unknown organ, a row given twice.
    """
    images = _image_root(root, ("train", "test") if table else ("test", "train"))
    listed = progress(_slices_under(images), f"list {root.name}", unit="file", delay=_BAR_AFTER)
    files = sorted(listed, key=str)
    if not files:
        raise InputError(f"{root}: no slices found; they are expected at train/CASE/CASE_DAY/scans/slice_*.png")
    table_path = root / "train.csv"
    has_table = table and table_path.is_file()
    rles, rows, table_hash = _read_table(table_path) if has_table else (None, {}, "no table")
    by_scan: dict[AnyPath, list[AnyPath]] = {}
    for path in files:
        by_scan.setdefault(path.parent, []).append(path)
    scans, broken = build_scans(
        (folder.parent.name, partial(_scan, folder, paths, rles)) for folder, paths in by_scan.items()
    )
    with_image = {slice_id for scan in scans for slice_id in scan.slice_ids}
    without = {name for name, _ in broken}
    orphans = tuple(
        slice_id for slice_id in rows if slice_id not in with_image and scan_of_slice(slice_id) not in without
    )
    fingerprint = _fingerprint(root, files, table_hash)
    return Cohort(root, scans, has_table, fingerprint, "competition", orphans=orphans, broken=broken)


def read_file(path: AnyPath) -> Cohort:
    """A PNG alone is a scan of one slice.

    Args:
        path: in .../CASE_DAY/scans/ it has the ids that it has in its cohort, elsewhere the file's name is the id. A
            name of the competition's form says the pixel size, for others the competition's own is taken and noted.

    Returns:
        A cohort without contours.

    Raises:
        InputError: the file cannot be read, or is not of the size that its name says.
    """
    named, notes = _SLICE_NAME.fullmatch(path.name), ()
    if named:
        number, spacing = int(named[1]), (SLICE_MM, float(named[5]), float(named[4]))
    else:
        number, spacing = 1, (SLICE_MM, _PIXEL_MM, _PIXEL_MM)
        notes = (
            f"{path}: its name says no pixel size, {_PIXEL_MM} x {_PIXEL_MM} mm is taken; "
            "slice_NUMBER_WIDTH_HEIGHT_PIXELWIDTH_PIXELHEIGHT.png says it",
        )
    in_cohort = named and path.parent.name == "scans"
    scan_id = path.parent.parent.name if in_cohort else path.stem
    slice_id = f"{scan_id}_slice_{named[1]}" if in_cohort else path.stem
    shape = read_png(path, (int(named[3]), int(named[2])) if named else None).shape
    source = CompetitionSource((SliceFile(number, slice_id, path),), {})
    scan = Scan(scan_id, scan_id.split("_")[0], (1, *shape), spacing, [number], [slice_id], False, source)
    return Cohort(path, (scan,), False, _fingerprint(path.parent, [path], "no table"), "competition", notes=notes)


def read_png(path: AnyPath, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Decode a grey 8- or 16-bit PNG.

    Args:
        path: the file.
        shape: (height, width) that it must have; None takes any.

    Returns:
        uint8 or uint16 [H, W].

    Raises:
        InputError: a file that is truncated, not grey, or not of this shape.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    _check_png(path, data)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise InputError(f"{path}: the PNG is damaged; copy the file again")
    if image.ndim != 2 or image.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{path}: has {image.shape[-1]} channels; a slice is grey with 8 or 16 bits")
    if shape is not None and image.shape != tuple(shape):
        raise InputError(
            f"{path}: the image is {image.shape[1]} wide and {image.shape[0]} high, "
            f"its name says {shape[1]} wide and {shape[0]} high; correct the name or the image"
        )
    return image


def _check_png(path: AnyPath, data: bytes) -> None:
    """Walk through the chunks and their checksums: decoders print a warning and go on, or return half an image."""
    if not data.startswith(_PNG_START):
        raise InputError(f"{path}: is no PNG; replace the file")
    start, kind = len(_PNG_START), b""
    while kind != b"IEND":
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if end > len(data):
            raise InputError(f"{path}: the PNG is truncated after {len(data)} bytes; copy the file again")
        kind = data[start + 4 : start + 8]
        if zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise InputError(f"{path}: the PNG is damaged at byte {start}; copy the file again")
        start = end


def _image_root(root: AnyPath, names: tuple[str, str] = ("train", "test")) -> AnyPath:
    return next((root / name for name in names if (root / name).is_dir()), root)


def _slices_under(images: AnyPath) -> Iterator[AnyPath]:
    if isinstance(images, RemotePath):
        import tensorflow as tf

        # A bucket answers this in a few requests, walking through the folders takes one a scan and file.
        found = tf.io.gfile.glob(f"{images}/*/*/scans/*.png")
        paths = map(RemotePath, found) if found else images.glob("**/scans/*.png")
    else:
        paths = images.glob("**/scans/*.png")
    return (path for path in paths if not path.name.startswith("."))


def _scan(folder: AnyPath, paths: list[AnyPath], rles) -> Scan:
    name = folder.parent.name
    slices, geometries = [], {}
    for path in paths:
        match = _SLICE_NAME.fullmatch(path.name)
        if not match:
            raise InputError(f"{path}: the name is not slice_NUMBER_WIDTH_HEIGHT_PIXELWIDTH_PIXELHEIGHT.png")
        number, width, height, pixel_width, pixel_height = match.groups()
        slices.append(SliceFile(int(number), sys.intern(f"{name}_slice_{number}"), path))
        geometries[int(height), int(width), float(pixel_height), float(pixel_width)] = path
    if len(geometries) > 1:
        a, b = list(geometries.values())[:2]
        raise InputError(f"{folder}: {a.name} and {b.name} differ in size or pixel size; a scan has one geometry")
    slices.sort(key=lambda s: s.number)
    numbers = [s.number for s in slices]
    if len(set(numbers)) < len(numbers):
        twice = next(n for n, count in Counter(numbers).items() if count > 1)
        raise InputError(f"{folder}: slice {twice} is there twice; keep one")
    ((height, width, pixel_height, pixel_width),) = geometries
    if min(height, width, pixel_height, pixel_width) <= 0:
        raise InputError(f"{paths[0]}: the name says a size or a pixel size of 0; correct the name")
    shape, spacing = (len(slices), height, width), (SLICE_MM, pixel_height, pixel_width)
    source = CompetitionSource(tuple(slices), {} if rles is None else rles.get(name, {}))
    ids = [s.id for s in slices]
    return Scan(name, name.split("_")[0], shape, spacing, numbers, ids, rles is not None, source)


def _read_table(path: AnyPath) -> tuple[dict[str, dict[tuple[str, str], str]], dict[str, None], str]:
    """The table's run-length strings by scan, then by (slice id, organ), without empty ones; all its slice ids in
    their order; and a hash of the file."""
    content = path.read_bytes()
    rles: dict[str, dict[tuple[str, str], str]] = {}
    seen: dict[str, int] = {}
    for slice_id, organ, rle in table_rows(path, content, ("id", "class", "segmentation")):
        check_organ(path, organ)
        slice_id, bit = sys.intern(slice_id), 1 << ORGANS.index(organ)
        if seen.get(slice_id, 0) & bit:
            raise InputError(f"{path}: {slice_id}, {organ} is there twice; keep one row")
        seen[slice_id] = seen.get(slice_id, 0) | bit
        if rle := rle.strip():
            rles.setdefault(scan_of_slice(slice_id), {})[slice_id, sys.intern(organ)] = rle
    return rles, dict.fromkeys(seen), hashlib.sha256(content).hexdigest()


def scan_of_slice(slice_id: str) -> str:
    """The scan's id in a slice's: case123_day20 of case123_day20_slice_0001."""
    return _SLICE_SUFFIX.sub("", slice_id)


def check_organ(path: AnyPath, organ: str) -> None:
    """Refuse a class of a table that is none of ORGANS."""
    if organ not in ORGANS:
        raise InputError(f"{path}: unknown class {organ!r}; the classes are {', '.join(ORGANS)}")


def table_rows(path: AnyPath, content: bytes, names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The cells of some columns of a CSV table, row by row.

    Args:
        path: of the table, for errors.
        content: of the file.
        names: of the columns.

    Raises:
        InputError: a column is missing, or a row has too few or too many cells.
    """
    # Not by pandas, whose import takes a tenth of the time of a conversion of 20 scans.
    csv.field_size_limit(max(csv.field_size_limit(), len(content)))
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline=""), strict=True)
    try:
        header = next(filter(None, reader), None)
        if header is None:
            raise InputError(f"{path}: cannot be read as CSV (it is empty)")
        missing = set(names) - set(header)
        if missing:
            raise InputError(f"{path}: column {min(missing)} is missing; the columns are {', '.join(names)}")
        columns = [header.index(name) for name in names]
        for row in filter(None, reader):
            if len(row) != len(header):
                raise InputError(
                    f"{path}: line {reader.line_num} has {len(row)} cells, the header {len(header)}; correct it"
                )
            yield tuple(row[column] for column in columns)
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error})") from None


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
