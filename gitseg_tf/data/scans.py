"""Scans of any layout: what a scan is, and reading one from the competition's folders, NIfTI or DICOM."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, RemotePath, as_path

if TYPE_CHECKING:
    from gitseg_tf.data.orientation import Grid

ORGANS = ("large_bowel", "small_bowel", "stomach")
SLICE_MM = 3.0
# Told apart with any common colour vision deficiency, and bright on grey MR slices: orange and sky blue of Okabe and
# Ito (https://jfly.uni-koeln.de/color/), and their bluish green made lighter.
ORGAN_COLORS = {"large_bowel": (230, 159, 0), "small_bowel": (86, 180, 233), "stomach": (0, 214, 150)}
# As `organ_named` spells names. Bowel_Large and Bowel_Small are those of AAPM TG-263, colon and small_bowel those of
# TotalSegmentator.
ORGAN_ALIASES = {
    "large_bowel": ("largebowel", "bowellarge", "colon", "largeintestine", "intestinelarge"),
    "small_bowel": ("smallbowel", "bowelsmall", "smallintestine", "intestinesmall"),
    "stomach": ("stomach",),
}


class Layout(NamedTuple):
    """A row of the table of layouts.

    Attributes:
        module: has is_here(root) -> bool and read(root, table) -> Cohort; with endings, also read_file(path) -> Cohort.
        expected: what has to be in the folder, for people.
        remote: whether SCHEME:// folders are read too.
        endings: of single files that are scans by themselves.
    """

    module: str
    expected: str
    remote: bool
    endings: tuple[str, ...] = ()


LAYOUTS = (
    Layout(
        "gitseg_tf.data.competition",
        "train/CASE/CASE_DAY/scans/slice_*.png with train.csv",
        remote=True,
        endings=(".png",),
    ),
    Layout(
        "gitseg_tf.data.nifti",
        "NIfTI files (imagesTr/ and labelsTr/, or a folder a scan with image.nii.gz and a mask an organ)",
        remote=False,
        endings=(".nii", ".nii.gz"),
    ),
    Layout("gitseg_tf.data.dicom", "DICOM series with RTSTRUCT", remote=False),
)
EXPECTED = "; ".join(layout.expected for layout in LAYOUTS)


class Source(ABC):
    """Where the voxels and the contours of one scan come from; each layout has its own."""

    @abstractmethod
    def files(self) -> list[tuple[str, AnyPath]]:
        """(what it is taken as, file): "image", "contours" or an organ."""

    @abstractmethod
    def digest(self) -> Iterator[bytes]:
        """Changes with a file's name or size and with a contour, and is the same in another folder."""

    @abstractmethod
    def read_image(self, scan: "Scan") -> np.ndarray:
        """See the function `read_image`."""

    @abstractmethod
    def read_masks(self, scan: "Scan") -> np.ndarray:
        """See the function `read_masks`; only called for scans with contours."""

    @abstractmethod
    def whole_grid(self, scan: "Scan") -> "Grid":
        """The `orientation.Grid` from the first to the last slice, those that are left out in scan.numbers included."""

    def slice_strata(self, scan: "Scan") -> list[int]:
        """See the function `slice_strata`."""
        shown = self.read_masks(scan).any((2, 3))
        return (shown * (1 << np.arange(len(ORGANS)))[:, None]).sum(0).tolist()


@dataclass(frozen=True)
class Scan:
    """One examination of one patient.

    Attributes:
        id: "case123_day20"; unique in the cohort, and fit for a file name.
        case: "case123", the patient.
        shape: (depth, height, width). Slices go from head to feet, rows from anterior to posterior, columns from the
            patient's right to the left, as in the competition; depth counts the slices that are there.
        spacing: (z, y, x) in mm.
        numbers: the slices' numbers, rising; one is left out where a slice is missing.
        slice_ids: "case123_day20_slice_0001", in the order of the slices.
        labelled: whether there are contours; organs that are nowhere are no contours that are missing.
        source: for reading it.
    """

    id: str
    case: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    numbers: list[int]
    slice_ids: list[str] = field(repr=False)
    labelled: bool
    source: Source = field(repr=False)


@dataclass(frozen=True)
class Cohort:
    """The scans of a folder.

    Attributes:
        root: the folder.
        scans: by rising id.
        labelled: whether its scans have contours; all have or none.
        fingerprint: changes with any file's name or size and with any contour; the same in another place.
        layout: "competition", "NIfTI" or "DICOM".
        labels: lines on what was taken as which organ.
        ignored: lines on what was left alone, and why.
        orphans: slice ids of the competition's table that have no image.
        broken: (scan or folder, why it cannot be read) of what is left out for that.
        notes: lines on what was assumed, for nothing says it.
    """

    root: AnyPath
    scans: tuple[Scan, ...]
    labelled: bool
    fingerprint: str
    layout: str
    labels: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()
    broken: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def is_cohort(root: str | PathLike) -> bool:
    """True for a folder that looks like one of LAYOUTS."""
    root = as_path(root)
    return root.is_dir() and _reader_of(root) is not None


def read_cohort(
    root: str | PathLike, table: bool = True, list_orphans: bool = False, list_broken: bool = False
) -> Cohort:
    """Find the scans of a folder in any of LAYOUTS; no pixel is read.

    Args:
        root: see docs/data.md for what may be in it. SCHEME:// (gs://...) in the competition's layout alone.
        table: False leaves contours alone, and takes the test scans where there are training and test scans.
        list_orphans: True lists rows of train.csv without image in the cohort instead of refusing them.
        list_broken: True lists scans that cannot be read in the cohort instead of refusing them, as long as one can.

    Returns:
        The cohort, scans sorted by id.

    Raises:
        InputError: nothing there, or something in it cannot be read without doubt; the line names the file.
    """
    root = as_path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give a folder with {EXPECTED}")
    reader = _reader_of(root)
    if reader is None:
        cure = "; copy NIfTI and DICOM to a local folder" if isinstance(root, RemotePath) else ""
        raise InputError(f"{root}: no slices found; expected are {EXPECTED}{cure}")
    cohort = reader.read(root, table)
    if cohort.broken and not (list_broken and cohort.scans):
        raise InputError(cohort.broken[0][1])
    twice = [name for name, n in Counter(scan.id for scan in cohort.scans).items() if n > 1]
    if twice:
        raise InputError(f"{root}: scan {twice[0]} is there in two folders; keep one")
    if cohort.orphans and not list_orphans:
        raise InputError(f"{root / 'train.csv'}: {cohort.orphans[0]} has no image; add its PNG or remove its rows")
    return cohort


def read_file(path: str | PathLike) -> Cohort:
    """Take a single file as a scan without contours.

    Args:
        path: a PNG slice or a NIfTI image.

    Returns:
        A cohort of one scan, whose root is the file.

    Raises:
        InputError: a file of another kind, or one that cannot be read.
    """
    path = as_path(path)
    for layout in LAYOUTS:
        if path.name.lower().endswith(layout.endings):
            if isinstance(path, RemotePath) and not layout.remote:
                raise InputError(f"{path}: copy it to a local folder; of a bucket only PNG slices are read")
            return import_module(layout.module).read_file(path)
    endings = ", ".join(ending for layout in LAYOUTS for ending in layout.endings)
    raise InputError(f"{path}: ends in none of {endings}; give such a file, or a folder with {EXPECTED}")


def build_scans(
    found: Iterable[tuple[str, Callable[[], Scan]]],
) -> tuple[tuple[Scan, ...], tuple[tuple[str, str], ...]]:
    """Build scans, and go on where one cannot be read.

    Args:
        found: (name, function that builds the scan or raises InputError).

    Returns:
        The scans by rising id, and (name, why) of those that cannot be read.
    """
    scans, broken = [], []
    for name, build in found:
        try:
            scans.append(build())
        except InputError as error:
            broken.append((name, str(error)))
    return tuple(sorted(scans, key=lambda scan: scan.id)), tuple(broken)


def read_image(scan: Scan) -> np.ndarray:
    """Read the voxels of a scan.

    Args:
        scan: from `read_cohort`.

    Returns:
        uint16 [D, H, W]. Whole numbers from 0 to 65535 are as stored (after the file's rescaling), others are mapped
        by `orientation.to_uint16`.

    Raises:
        InputError: a file that cannot be read, or is not of the size that was announced.
    """
    return scan.source.read_image(scan)


def read_masks(scan: Scan) -> np.ndarray:
    """Read the contours of a scan.

    Args:
        scan: from `read_cohort`, labelled.

    Returns:
        bool [3, D, H, W] in the order of ORGANS.

    Raises:
        InputError: the scan has no contours, or a contour or label does not fit its slice (it is named).
    """
    if not scan.labelled:
        raise InputError(f"{scan.id}: has no contours; add them (see docs/data.md)")
    return scan.source.read_masks(scan)


def slice_strata(scan: Scan) -> list[int]:
    """What each slice shows, without reading masks where that can be told from the source alone.

    Args:
        scan: from `read_cohort`, labelled.

    Returns:
        D numbers in the order of the slices: bit k is set where organ k of ORGANS is there.

    Raises:
        InputError: as `read_masks`.
    """
    return scan.source.slice_strata(scan)


def source_digest(scans: list[Scan]) -> str:
    """SHA-256, hexadecimal, that changes with a file's name or size and with a contour, for these scans alone."""
    digest = hashlib.sha256()
    for scan in scans:
        for part in scan.source.digest():
            digest.update(part)
    return digest.hexdigest()


def organ_named(name: str) -> str | None:
    """The organ of ORGANS that a label, ROI or file means: "Bowel_Large", "colon", "Large bowel"; None for others."""
    spelled = re.sub(r"[^a-z0-9]", "", name.lower())
    return next((organ for organ, aliases in ORGAN_ALIASES.items() if spelled in aliases), None)


def numbered_slice_ids(scan_id: str, numbers: list[int]) -> list[str]:
    """The competition's form of a slice's id."""
    return [f"{scan_id}_slice_{number:04d}" for number in numbers]


def _reader_of(root: AnyPath):
    for layout in LAYOUTS:
        if layout.remote or not isinstance(root, RemotePath):
            reader = import_module(layout.module)
            if reader.is_here(root):
                return reader
    return None
