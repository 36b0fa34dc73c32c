"""The slices in the images of a series: one per file, or the frames of an enhanced multi-frame image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import UID

from gitseg_tf.data.readers.dicom.files import items, number_or, numbers, text
from gitseg_tf.errors import DataError

# Frames that differ in one of these are different images of the same anatomy, or images of different places.
_ONE_OF_EACH = (
    ("FrameContentSequence", "StackID"),
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("MREchoSequence", "EffectiveEchoTime"),
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("MRImageFrameTypeSequence", "ComplexImageComponent"),
)


@dataclass(frozen=True)
class Slice:
    """A slice, with its place in the patient.

    Attributes:
        path: its file.
        frame: its 0-based frame in the file; None for a single-frame file.
        sop_uid: the SOPInstanceUID of its file.
        size: (rows, columns).
        pixel_mm: (distance between rows, distance between columns).
        position: float [3], the center of the first pixel in mm, in DICOM patient coordinates.
        orientation: float [6], the direction of increasing columns, then of increasing rows.
        distance: distance to the next slice in mm according to the header; 0 if unknown. Slice positions take
            precedence.
        tilt: GantryDetectorTilt in degrees.
        dimensions: dimension indices of a frame, by name.
    """

    path: Path
    frame: int | None
    sop_uid: str
    size: tuple[int, int]
    pixel_mm: tuple[float, float]
    position: np.ndarray
    orientation: np.ndarray
    distance: float
    tilt: float
    dimensions: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        """The file name, and the 1-based number of a frame."""
        return self.path.name if self.frame is None else f"{self.path.name} (frame {self.frame + 1})"


def is_multi_frame(header: pydicom.Dataset) -> bool:
    """Check whether an image is stored as multi-frame, even if it has one frame only."""
    return _frame_count(header) > 1 or "Enhanced" in _class_name(header)


def slices_of(path: Path, header: pydicom.Dataset) -> list[Slice]:
    """Read the geometry of the slices in a file.

    Args:
        path: a grayscale image, single-frame, or multi-frame with functional groups (enhanced MR or CT).
        header: its header.

    Returns:
        One slice per frame, in stored order.

    Raises:
        DataError: an attribute is missing, malformed or has the wrong number of values; not grayscale; or frames with
            more than one dimension besides the position, such as several echoes.
    """
    shade = text(header, "PhotometricInterpretation") or "MONOCHROME2"
    if shade != "MONOCHROME2":
        raise DataError(f"{path}: is {shade}; slices must be grayscale (MONOCHROME2)")
    if not is_multi_frame(header):
        return [_slice(path, None, header, header, header, header, header)]
    frames = items(header, "PerFrameFunctionalGroupsSequence")
    kind = f"is a multi-frame image ({_class_name(header)})"
    if not frames:
        raise DataError(f"{path}: {kind} without positions of its frames; export the series as single frames")
    if len(frames) != _frame_count(header):
        raise DataError(f"{path}: {kind} of {_frame_count(header)} frames with {len(frames)} positions; copy it again")
    _check_one_of_each(path, header, len(frames))
    names = _dimension_names(header)
    return [
        _slice(
            path,
            i,
            header,
            functional_group(header, i, "PixelMeasuresSequence"),
            functional_group(header, i, "PlanePositionSequence"),
            functional_group(header, i, "PlaneOrientationSequence"),
            functional_group(header, i, "CTAcquisitionDetailsSequence"),
            _dimensions(functional_group(header, i, "FrameContentSequence"), names),
        )
        for i in range(len(frames))
    ]


def functional_group(header: pydicom.Dataset, frame: int, name: str) -> pydicom.Dataset:
    """Return the item of a functional group for a frame, from its own or the shared groups; empty if there is none."""
    own = items(header, "PerFrameFunctionalGroupsSequence")[frame : frame + 1]
    for groups in (*own, *items(header, "SharedFunctionalGroupsSequence")[:1]):
        for item in items(groups, name)[:1]:
            return item
    return pydicom.Dataset()


def _slice(
    path: Path,
    frame: int | None,
    header: pydicom.Dataset,
    measures: pydicom.Dataset,
    position: pydicom.Dataset,
    orientation: pydicom.Dataset,
    details: pydicom.Dataset,
    dimensions: tuple[tuple[str, int], ...] = (),
) -> Slice:
    rows, columns = (int(numbers(path, header, name, 1)[0]) for name in ("Rows", "Columns"))
    row_mm, column_mm = map(float, numbers(path, measures, "PixelSpacing", 2))
    if min(row_mm, column_mm) <= 0:
        raise DataError(f"{path}: PixelSpacing must be positive, got {row_mm:g} and {column_mm:g}; export it again")
    return Slice(
        path,
        frame,
        text(header, "SOPInstanceUID"),
        (rows, columns),
        (row_mm, column_mm),
        numbers(path, position, "ImagePositionPatient", 3),
        _unit_vectors(path, numbers(path, orientation, "ImageOrientationPatient", 6)),
        _optional(path, measures, "SpacingBetweenSlices") or _optional(path, measures, "SliceThickness"),
        _optional(path, details, "GantryDetectorTilt"),
        dimensions,
    )


def _unit_vectors(path: Path, orientation: np.ndarray) -> np.ndarray:
    """Check that the two directions are perpendicular and of length 1, up to rounding in the file."""
    across, down = orientation.reshape(2, 3)
    lengths = np.linalg.norm([across, down], axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(across @ down) > 0.01:
        raise DataError(f"{path}: ImageOrientationPatient is not a pair of perpendicular directions; export it again")
    return orientation


def _optional(path: Path, header: pydicom.Dataset, name: str) -> float:
    """Read a number that is needed in rare cases only; 0 if it is missing or malformed."""
    try:
        return number_or(path, header, name, 0.0)
    except DataError:
        return 0.0


def _frame_count(header: pydicom.Dataset) -> int:
    value = text(header, "NumberOfFrames")
    return int(value) if value.isdecimal() else 1


def _class_name(header: pydicom.Dataset) -> str:
    return UID(text(header, "SOPClassUID")).name or "unknown class"


def _check_one_of_each(path: Path, header: pydicom.Dataset, count: int) -> None:
    for group, name in _ONE_OF_EACH:
        values = list(dict.fromkeys(text(functional_group(header, i, group), name) for i in range(count)))
        if len(values) > 1:
            listed = ", ".join(value or "none" for value in values[:4]) + (", ..." if len(values) > 4 else "")
            raise DataError(
                f"{path}: has frames with {len(values)} values of {name} ({listed}); export each as a series of its own"
            )


def _dimension_names(header: pydicom.Dataset) -> list[str]:
    pointers = [item.get("DimensionIndexPointer") for item in items(header, "DimensionIndexSequence")]
    return [pydicom.datadict.keyword_for_tag(tag) or str(tag) if tag else "unknown" for tag in pointers]


def _dimensions(content: pydicom.Dataset, names: Sequence[str]) -> tuple[tuple[str, int], ...]:
    values = content.get("DimensionIndexValues")
    listed = [values] if isinstance(values, int) else list(values or ())
    return tuple(zip(names, listed, strict=False))
