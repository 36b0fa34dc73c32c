"""Scans and cohorts, independent of the file format."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gitseg_tf.core.paths import AnyPath
from gitseg_tf.data.volume import Annotation, Volume
from gitseg_tf.errors import GitsegError
from gitseg_tf.labels import LabelSet

if TYPE_CHECKING:
    from gitseg_tf.data.readers.grid import Grid

SLICE_MM = 3.0
NO_LABELS = LabelSet(())


class Source(ABC):
    """Reads the voxels and masks of one scan; each layout has its own subclass.

    Attributes:
        voxel_bytes: upper bound on the bytes of a stored voxel per channel, according to the headers; used to plan
            shards.
    """

    voxel_bytes: int = 2

    @abstractmethod
    def files(self) -> Sequence[tuple[str, AnyPath]]:
        """List (role, file) pairs; a role is "image", "contours" or the name of a label."""

    @abstractmethod
    def digest(self) -> Iterator[bytes]:
        """Yield bytes that change with a file's name or size and with a contour, but not with the folder's location."""

    @abstractmethod
    def read_image(self, scan: "Scan") -> np.ndarray:
        """Read voxels [D, H, W] or [D, H, W, C] in the file's units: uint16, int16 or float32."""

    @abstractmethod
    def read_annotation(self, scan: "Scan") -> Annotation:
        """Read the reference masks in the order of scan.labels; called only for scans with an annotation."""

    @abstractmethod
    def whole_grid(self, scan: "Scan") -> "Grid":
        """Return the `grid.Grid` from the first to the last slice, including slices missing from scan.numbers."""

    def slice_strata(self, scan: "Scan") -> list[int]:
        """Determine the labels of each slice, see `Scan.slice_strata`."""
        shown = np.any(self.read_annotation(scan).masks, axis=(2, 3)).T
        return [sum(1 << int(k) for k in np.flatnonzero(labels)) for labels in shown]


@dataclass(frozen=True)
class Scan:
    """One examination of one patient.

    Attributes:
        id: "case123_day20"; unique in the cohort, safe as a file name.
        case: "case123", the patient.
        shape: (depth, height, width). Slices go from head to feet, rows from anterior to posterior, columns from the
            patient's right to left, as in the competition; depth counts the slices present.
        spacing: (z, y, x) in mm.
        numbers: slice numbers in ascending order, with gaps where slices are missing.
        slice_ids: "case123_day20_slice_0001", in slice order.
        labels: those of its cohort.
        annotated: names of the labels annotated in this scan; empty if it has no annotation.
        source: reads its voxels and masks.

    Example:
        >>> import gitseg_tf
        >>> scan = gitseg_tf.open_cohort("cohort").scans[0]
        >>> scan.id, scan.case, scan.shape, scan.spacing
        ('case1_day0', 'case1', (24, 266, 266), (3.0, 1.5, 1.5))
        >>> scan.read_annotation().masks.shape
        (3, 24, 266, 266)
    """

    id: str
    case: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    numbers: list[int]
    slice_ids: list[str] = field(repr=False)
    labels: LabelSet = field(repr=False)
    annotated: tuple[str, ...] = field(repr=False)
    source: Source = field(repr=False)

    @property
    def is_annotated(self) -> np.ndarray:
        """bool [L], whether each label is annotated."""
        return np.array([name in self.annotated for name in self.labels.names])

    @property
    def labeled(self) -> bool:
        """Whether any label is annotated."""
        return bool(self.annotated)

    labelled = labeled  # the spelling in version 0.1

    def read_volume(self) -> Volume:
        """Read the voxels, in the file's units.

        Raises:
            DataError: a file cannot be read, or its size is not what its name or header says.
        """
        return Volume(self.source.read_image(self), self.spacing, tuple(self.numbers))

    def read_annotation(self) -> Annotation | None:
        """Read the reference masks; None for a scan without any.

        Raises:
            DataError: a contour or mask cannot be read or does not fit its slice.
        """
        if not self.labeled:
            return None
        return self.source.read_annotation(self)

    def slice_strata(self) -> list[int]:
        """Determine which labels each slice shows, without reading masks if the source allows.

        Returns:
            D integers in slice order: bit k is set if label k is present; 0 without annotation.

        Raises:
            DataError: see `read_annotation`.
        """
        return self.source.slice_strata(self) if self.labeled else [0] * self.shape[0]


@dataclass(frozen=True)
class Reader:
    """Finds the scans of a layout; `registry.LAYOUTS` has one per layout.

    Attributes:
        is_here: true if a folder has this layout. Layouts without remote support take a Path here and below.
        read: function from (root, table, labels) to the cohort, see `registry.read_cohort`; reads no voxels. A layout
            registered with the fact `structure_sets` also takes `structure_set`.
        read_file: reads a single file as a cohort of one scan; None if the layout has no single files.
    """

    is_here: Callable[[Any], bool]
    read: Callable[..., "Cohort"]
    read_file: Callable[[Any], "Cohort"] | None = None


@dataclass(frozen=True)
class FoundLabel:
    """A label name found in the data, the number of scans that have it, and the label that it matches or None."""

    name: str
    scans: int
    label: str | None


@dataclass(frozen=True)
class Cohort:
    """The scans of a folder.

    Attributes:
        root: the folder.
        scans: sorted by id.
        fingerprint: changes with any file's name or size and with any contour, but not with the folder's location.
        layout: its name in `registry.LAYOUTS`, such as "competition", "NIfTI" or "DICOM".
        labels: those of its scans; empty if no scan has an annotation.
        channels: names of the channels, the same for each scan.
        found: the label names in the data, and the labels they match.
        label_notes: lines on which name is read as which label, and on labels that some scans lack.
        ignored: lines on what was skipped, and why.
        orphans: slice ids in the competition's table without an image.
        broken: (scan or folder, reason) for data that cannot be read and is left out.
        notes: lines on assumptions made where the data is ambiguous.

    Example:
        >>> import gitseg_tf
        >>> cohort = gitseg_tf.open_cohort("cohort")
        >>> cohort.layout, len(cohort.scans), cohort.channels
        ('competition', 1, ('image',))
    """

    root: AnyPath
    scans: tuple[Scan, ...]
    fingerprint: str
    layout: str
    labels: LabelSet = NO_LABELS
    channels: tuple[str, ...] = ("image",)
    found: tuple[FoundLabel, ...] = ()
    label_notes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()
    broken: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def labeled(self) -> bool:
        """Whether any scan has an annotation."""
        return any(scan.labeled for scan in self.scans)


def build_scans(
    found: Iterable[tuple[str, Callable[[], Scan]]],
) -> tuple[tuple[Scan, ...], tuple[tuple[str, str], ...]]:
    """Build scans, skipping those that cannot be read.

    Args:
        found: (name, function that builds the scan or raises DataError).

    Returns:
        The scans sorted by id, and (name, reason) of those that cannot be read.
    """
    scans, broken = [], []
    for name, build in found:
        try:
            scans.append(build())
        except GitsegError as error:
            broken.append((name, str(error)))
    return tuple(sorted(scans, key=lambda scan: scan.id)), tuple(broken)


def source_digest(scans: Iterable[Scan]) -> str:
    """Compute a hexadecimal SHA-256 that changes with any file's name or size and with any contour of the scans."""
    digest = hashlib.sha256()
    for scan in scans:
        for part in scan.source.digest():
            digest.update(part)
    return digest.hexdigest()


def numbered_slice_ids(scan_id: str, numbers: list[int]) -> list[str]:
    """Format slice ids in the competition's style: case123_day20_slice_0001."""
    return [f"{scan_id}_slice_{number:04d}" for number in numbers]
