"""Reading scans from the competition's folder layout."""

import hashlib
import json
import re
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from gitseg_tf.data.rle import RleError, rle_to_mask
from gitseg_tf.errors import InputError

ORGANS = ("large_bowel", "small_bowel", "stomach")
SLICE_MM = 3.0
# Told apart with any common colour vision deficiency, and bright on grey MR slices: orange and sky blue of Okabe and
# Ito (https://jfly.uni-koeln.de/color/), and their bluish green made lighter.
ORGAN_COLORS = {"large_bowel": (230, 159, 0), "small_bowel": (86, 180, 233), "stomach": (0, 214, 150)}

_SLICE_NAME = re.compile(r"slice_(\d+)_(\d+)_(\d+)_(\d+(?:\.\d+)?)_(\d+(?:\.\d+)?)\.png")
_PNG_START = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class SliceFile:
    """One slice: its number in the scan, its id in the table and its PNG."""

    number: int
    id: str
    path: Path


@dataclass(frozen=True)
class Scan:
    """One day of one patient.

    Attributes:
        id: "case123_day20".
        case: "case123", the patient.
        slices: in the order of their numbers, which need not be contiguous.
        shape: (depth, height, width); depth counts the slices that are there.
        spacing: (z, y, x) in mm.
        rles: (slice id, organ) to run-length string; an absent organ has "" or is left out. None for a scan without
            table.
    """

    id: str
    case: str
    slices: tuple[SliceFile, ...]
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    rles: dict[tuple[str, str], str] | None = field(repr=False)

    @property
    def numbers(self) -> list[int]:
        """The slices' numbers, rising."""
        return [s.number for s in self.slices]


@dataclass(frozen=True)
class Cohort:
    """The scans of a folder, by id, and a fingerprint that changes with any file name, file size or table cell.

    `orphans` are slice ids of the table that have no image; `read_cohort` refuses them unless told to list them.
    """

    root: Path
    scans: tuple[Scan, ...]
    labelled: bool
    fingerprint: str
    orphans: tuple[str, ...] = ()


def is_cohort(root: str | Path) -> bool:
    """True for a folder that looks like the competition's: a train.csv, or slices in .../scans/."""
    root = Path(root)
    return root.is_dir() and (
        (root / "train.csv").is_file() or next(_image_root(root).glob("**/scans/*.png"), None) is not None
    )


def read_cohort(root: str | Path, table: bool = True, list_orphans: bool = False) -> Cohort:
    """Find the scans of a folder in the competition's layout; no pixel is read.

    Args:
        root: holds train.csv (id, class, segmentation; rows in any order, rows of absent organs may be left out) and
            train/CASE/CASE_DAY/scans/slice_NUMBER_WIDTH_HEIGHT_PIXELWIDTH_PIXELHEIGHT.png (width before height, mm).
            Without a table the scans are without contours: a test set.
        table: False leaves train.csv alone, and takes the scans of test/ where both train/ and test/ are there.
        list_orphans: True lists rows without image in the cohort instead of refusing them.

    Returns:
        The cohort, scans sorted by id.

    Raises:
        InputError: nothing there, a name that cannot be read, an unknown organ, a row without image, a row given twice.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(
            f"{root}: no such folder; give a folder that holds train.csv and train/CASE/CASE_DAY/scans/*.png"
        )
    images = _image_root(root, ("train", "test") if table else ("test", "train"))
    files = sorted(path for path in images.glob("**/scans/*.png") if not path.name.startswith("."))
    if not files:
        raise InputError(f"{root}: no slices found; they are expected at train/CASE/CASE_DAY/scans/slice_*.png")
    table_path = root / "train.csv"
    rles, table_hash = _read_table(table_path) if table and table_path.is_file() else (None, "no table")
    by_scan: dict[Path, list[Path]] = {}
    for path in files:
        by_scan.setdefault(path.parent, []).append(path)
    scans = sorted((_scan(folder, paths, rles) for folder, paths in by_scan.items()), key=lambda s: s.id)
    twice = [name for name, n in Counter(s.id for s in scans).items() if n > 1]
    if twice:
        raise InputError(f"{root}: scan {twice[0]} is there in two folders; keep one")
    orphans = _rows_without_image(rles or {}, scans)
    if orphans and not list_orphans:
        raise InputError(f"{table_path}: {orphans[0]} has no image; add its PNG or remove its rows")
    return Cohort(root, tuple(scans), rles is not None, _fingerprint(root, files, table_hash), orphans)


def read_image(scan: Scan) -> np.ndarray:
    """Decode the slices of a scan.

    Args:
        scan: from `read_cohort`.

    Returns:
        uint16 [D, H, W], the stored values; 8-bit files keep their values too.

    Raises:
        InputError: a file that is truncated, not grey, or not of the size that its name says.
    """
    volume = np.empty(scan.shape, np.uint16)
    for plane, item in zip(volume, scan.slices, strict=True):
        plane[:] = read_png(item.path, scan.shape[1:])
    return volume


def read_png(path: Path, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Decode a grey 8- or 16-bit PNG.

    Args:
        path: the file.
        shape: (height, width) that it must have; None takes any.

    Returns:
        uint8 or uint16 [H, W].

    Raises:
        InputError: as `read_image`.
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


def read_masks(scan: Scan) -> np.ndarray:
    """Decode the contours of a scan.

    Args:
        scan: from `read_cohort`, with a table.

    Returns:
        bool [3, D, H, W] in the order of ORGANS.

    Raises:
        InputError: the scan has no table, or a run-length string does not fit its slice (the id is named).
    """
    if scan.rles is None:
        raise InputError(f"{scan.id}: has no contours, for the cohort has no train.csv")
    masks = np.zeros((len(ORGANS), *scan.shape), bool)
    for z, item in enumerate(scan.slices):
        for k, organ in enumerate(ORGANS):
            rle = scan.rles.get((item.id, organ))
            if rle:
                try:
                    masks[k, z] = rle_to_mask(rle, scan.shape[1:])
                except RleError as error:
                    raise InputError(f"train.csv, {item.id}, {organ}: {error}; correct the row") from None
    return masks


def slice_strata(scan: Scan) -> list[int]:
    """What each slice shows, without decoding a contour where that can be told from the source alone.

    Args:
        scan: from `read_cohort`, with contours.

    Returns:
        D numbers in the order of the slices: bit k is set where organ k of ORGANS is there.
    """
    return [sum(1 << k for k, organ in enumerate(ORGANS) if scan.rles.get((item.id, organ))) for item in scan.slices]


def source_digest(scans: list[Scan]) -> str:
    """SHA-256, hexadecimal, that changes with a slice's name or file size and with a contour, for these scans alone."""
    digest = hashlib.sha256()
    for scan in scans:
        for item in scan.slices:
            digest.update(f"{item.id} {item.path.name} {item.path.stat().st_size}\n".encode())
        digest.update(json.dumps(sorted((*key, rle) for key, rle in (scan.rles or {}).items())).encode())
    return digest.hexdigest()


def _check_png(path: Path, data: bytes) -> None:
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


def _image_root(root: Path, names: tuple[str, str] = ("train", "test")) -> Path:
    return next((root / name for name in names if (root / name).is_dir()), root)


def _scan(folder: Path, paths: list[Path], rles) -> Scan:
    name = folder.parent.name
    slices, geometries = [], {}
    for path in paths:
        match = _SLICE_NAME.fullmatch(path.name)
        if not match:
            raise InputError(f"{path}: the name is not slice_NUMBER_WIDTH_HEIGHT_PIXELWIDTH_PIXELHEIGHT.png")
        number, width, height, pixel_width, pixel_height = match.groups()
        slices.append(SliceFile(int(number), f"{name}_slice_{number}", path))
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
    own = None if rles is None else rles.get(name, {})
    shape, spacing = (len(slices), height, width), (SLICE_MM, pixel_height, pixel_width)
    return Scan(name, name.split("_")[0], tuple(slices), shape, spacing, own)


def _read_table(path: Path) -> tuple[dict[str, dict[tuple[str, str], str]], str]:
    """The table's run-length strings by scan, then by (slice id, organ); and a hash of the file."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as CSV ({str(error).strip().splitlines()[0]})") from None
    missing = {"id", "class", "segmentation"} - set(table)
    if missing:
        raise InputError(f"{path}: column {min(missing)} is missing; the columns are id, class, segmentation")
    unknown = set(table["class"]) - set(ORGANS)
    if unknown:
        raise InputError(f"{path}: unknown class {min(unknown)!r}; the classes are {', '.join(ORGANS)}")
    double = table.duplicated(["id", "class"])
    if double.any():
        row = table[double].iloc[0]
        raise InputError(f"{path}: {row['id']}, {row['class']} is there twice; keep one row")
    scans = table["id"].str.replace(r"_slice_\d+$", "", regex=True)
    rles: dict[str, dict[tuple[str, str], str]] = {}
    for scan, slice_id, organ, rle in zip(scans, table["id"], table["class"], table["segmentation"], strict=True):
        rles.setdefault(scan, {})[slice_id, organ] = rle.strip()
    return rles, hashlib.sha256(path.read_bytes()).hexdigest()


def _rows_without_image(rles: dict, scans: list[Scan]) -> tuple[str, ...]:
    """Slice ids of the table, in its order, that have no image."""
    ids = {item.id for scan in scans for item in scan.slices}
    return tuple(dict.fromkeys(slice_id for rows in rles.values() for slice_id, _ in rows if slice_id not in ids))


def _fingerprint(root: Path, files: list[Path], table_hash: str) -> str:
    digest = hashlib.sha256(table_hash.encode())
    for path in files:
        digest.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
    return digest.hexdigest()
