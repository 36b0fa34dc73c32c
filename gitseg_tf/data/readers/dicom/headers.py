"""The DICOM files of a folder: which are images, which belong together, and whose they are."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MediaStorageDirectoryStorage,
    MRImageStorage,
    RTStructureSetStorage,
)

from gitseg_tf.core.progress import progress
from gitseg_tf.core.text import plural
from gitseg_tf.data.readers.dicom.files import is_truncated, read_dicom, starts_like_dicom, text
from gitseg_tf.data.readers.dicom.slices import is_multi_frame
from gitseg_tf.errors import DataError, GitsegError

IMAGES = ("MR", "CT")
_LONGEST_ID = 100
_STRUCTURES = "RTSTRUCT"
_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "PatientID", "StudyInstanceUID", "StudyDate"),
    *("StudyTime", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "FrameOfReferenceUID", "Rows", "Columns"),
    *("NumberOfFrames", "PixelSpacing", "SpacingBetweenSlices", "SliceThickness", "ImagePositionPatient"),
    *("ImageOrientationPatient", "PhotometricInterpretation", "GantryDetectorTilt", "DimensionIndexSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "StructureSetROISequence"),
    *("ReferencedFrameOfReferenceSequence", "StructureSetLabel", "StructureSetDate", "StructureSetTime"),
    "ApprovalStatus",
]
_SERIES = 0x0020000E  # SeriesInstanceUID
# For files whose Modality is empty.
_MODALITY_OF_CLASS: dict[str, str] = {
    MRImageStorage: "MR",
    EnhancedMRImageStorage: "MR",
    LegacyConvertedEnhancedMRImageStorage: "MR",
    CTImageStorage: "CT",
    EnhancedCTImageStorage: "CT",
    LegacyConvertedEnhancedCTImageStorage: "CT",
    RTStructureSetStorage: _STRUCTURES,
}

File = tuple[Path, pydicom.Dataset]


@dataclass(frozen=True)
class Series:
    """The images of a scan.

    Attributes:
        images: (path, header) of each slice.
        uids: the SeriesInstanceUIDs of its files; several if an export gave each slice its own, none if they are blank.
        study: the StudyInstanceUID, or the folder if that is blank.
        patient: the PatientID, or the study if that is blank.
    """

    images: tuple[File, ...]
    uids: frozenset[str]
    study: str
    patient: str

    @property
    def header(self) -> pydicom.Dataset:
        """The header of the first image."""
        return self.images[0][1]

    @property
    def folder(self) -> Path:
        """The folder of the first image."""
        return self.images[0][0].parent


@dataclass
class Headers:
    """What is in a folder.

    Attributes:
        images, structures: (path, header) of images and of structure sets, without copies.
        ignored: lines on other files.
        faults: why a series cannot be read, by `series_key`.
        conflicts: why a structure set cannot be read, by its file.
        unreadable: files of which no header can be read, and why.
        notes: lines on copies.
    """

    images: list[File] = field(default_factory=list)
    structures: list[File] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    faults: dict[tuple[str, str], str] = field(default_factory=dict)
    conflicts: dict[Path, str] = field(default_factory=dict)
    unreadable: dict[Path, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def series_key(path: Path, header: pydicom.Dataset) -> tuple[str, str]:
    """Return what the images of a series share: the SeriesInstanceUID or, where that is blank, the folder."""
    uid = text(header, "SeriesInstanceUID")
    return uid, "" if uid else str(path.parent)


def read_headers(root: Path) -> Headers:
    """Read the headers of all DICOM files below a folder."""
    found, others = Headers(), []
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    for path in progress(files, f"list {root.name}", unit="file", delay=2):
        try:
            if starts_like_dicom(path):
                _sort(path, read_dicom(path, specific_tags=_TAGS, stop_before_pixels=True), found)
            elif path.suffix.lower() in (".dcm", ".ima"):
                raise DataError(f"{path}: is not a DICOM file; copy it again or remove it")
            else:
                others.append(path)
        except OSError as error:
            found.unreadable[path] = f"{path}: {error.strerror}"
        except GitsegError as error:
            found.unreadable[path] = str(error)
    named_like_images = {(path.parent, path.suffix) for path, _ in found.images}
    for path in others:
        if (path.parent, path.suffix) in named_like_images and _is_blank(path):
            found.unreadable[path] = f"{path}: is empty; copy it again or remove it"
        else:
            found.ignored.append(f"{path}: not a DICOM file")
    found.images = list(_without_copies(found.images, found))
    found.structures = list(_without_copies(found.structures, found))
    return found


def _is_blank(path: Path) -> bool:
    """Check whether a file has no content, as after a copy that failed."""
    with open(path, "rb") as file:
        return not file.read(128).strip(b"\0")


def _sort(path: Path, header: pydicom.Dataset, found: Headers) -> None:
    kind = text(header, "SOPClassUID") or text(header.file_meta, "MediaStorageSOPClassUID")
    modality = text(header, "Modality") or _MODALITY_OF_CLASS.get(kind, "")
    if modality == _STRUCTURES:
        found.structures.append((path, header))
    elif modality in IMAGES and "LOCALIZER" in text(header, "ImageType").split("\\"):
        found.ignored.append(f"{path}: localizer")
    elif modality in IMAGES and "Rows" in header:
        found.images.append((path, header))
    elif modality in IMAGES and kind in ("", *_MODALITY_OF_CLASS):
        why = f"{path}: has no Rows or is truncated; copy it again"
        # The last element may be cut off; SeriesInstanceUID comes before others that are read here.
        if not text(header, "SeriesInstanceUID") or max(header.keys()) <= _SERIES:
            raise DataError(why)
        found.faults.setdefault(series_key(path, header), why)
    elif not modality and is_truncated(path):
        raise DataError(f"{path}: is truncated; copy it again")
    elif kind != MediaStorageDirectoryStorage:
        found.ignored.append(f"{path}: {UID(kind).name if modality in IMAGES else modality or 'has no Modality'}")


def _without_copies(files: list[File], found: Headers) -> Iterator[File]:
    """Yield the first file of each instance; files of one instance must be the same."""
    first: dict[tuple[str, str], Path] = {}
    copies = []
    for path, header in files:
        uid = text(header, "SOPInstanceUID")
        original = first.setdefault((uid, text(header, "SeriesInstanceUID")), path) if uid else path
        try:
            if original == path:
                yield path, header
            elif _same(original, path):
                copies.append(path)
            else:
                raise DataError(
                    f"{path}: has the SOPInstanceUID of {original}, but different content; remove one of them"
                )
        except DataError as error:
            found.faults.setdefault(series_key(path, header), str(error))
            found.conflicts |= {original: str(error), path: str(error)}
            yield path, header
    if copies:
        found.notes.append(f"{plural(len(copies), 'duplicate file')} left out; the first is {copies[0]}")


def _same(one: Path, other: Path) -> bool:
    if one.read_bytes() == other.read_bytes():
        return True
    contents: list[Any] = [read_dicom(path) for path in (one, other)]
    return contents[0].get("PixelData") == contents[1].get("PixelData") is not None


def series_of(images: list[File]) -> list[Series]:
    """Sort images into series, in the order of their first file.

    Images whose UIDs are blank belong together if they are in one folder. Where an export gave each slice a series of
    its own, the slices of a study with one frame of reference are one series.
    """
    by_key: dict[tuple[str, str], list[File]] = {}
    for path, header in images:
        by_key.setdefault(series_key(path, header), []).append((path, header))
    groups: dict[tuple, list[list[File]]] = {}
    for files in by_key.values():
        path, header = files[0]
        frame = text(header, "FrameOfReferenceUID")
        single = len(files) == 1 and not is_multi_frame(header)
        groups.setdefault((_study(path, header), frame, path.parent) if single else (id(files),), []).append(files)
    series = []
    for parts in groups.values():
        # One or two single slices may well be separate scans.
        for files in [[file for part in parts for file in part]] if len(parts) > 2 else parts:
            path, header = files[0]
            uids = frozenset(text(h, "SeriesInstanceUID") for _, h in files) - {""}
            study = _study(path, header)
            series.append(Series(tuple(files), uids, study, text(header, "PatientID") or study))
    return series


def series_beside(path: Path, series: Sequence[Series]) -> list[int]:
    """Return the index of the only series with images in a file's folder; nothing if there are several or none."""
    beside = [i for i, item in enumerate(series) if any(image.parent == path.parent for image, _ in item.images)]
    return beside if len(beside) == 1 else []


def _study(path: Path, header: pydicom.Dataset) -> str:
    return text(header, "StudyInstanceUID") or str(path.parent)


def name_patients(series: list[Series], root: Path) -> tuple[dict[str, str], list[str]]:
    """Name each patient by the PatientID or, where that is blank, by the folder of the study.

    Returns:
        Names that are safe as file names, by `Series.patient`; and lines on patients without an ID.

    Raises:
        DataError: two PatientIDs would have the same name.
    """
    names: dict[str, str] = {}
    identified = [item for item in series if text(item.header, "PatientID")]
    for patient in dict.fromkeys(item.patient for item in identified):
        name = safe(patient)
        if name in names.values():
            other = next(known for known, taken in names.items() if taken == name)
            raise DataError(f"patients {other!r} and {patient!r} would both be named {name}; rename one")
        names[patient] = name
    blank = []
    for item in series:
        if item.patient not in names:
            folder = item.folder.relative_to(root).parts
            name = safe(folder[0] if folder else root.name) or "patient"
            candidates = (name, *(f"{name}_{n}" for n in range(2, len(series) + 2)))
            names[item.patient] = next(one for one in candidates if one not in names.values())
            blank.append(names[item.patient])
    if not blank:
        return names, []
    what = "1 study has no PatientID; it" if len(blank) == 1 else f"{len(blank)} studies have no PatientID; each"
    return names, [f"{what} counts as a patient of its own, named after its folder: {', '.join(blank[:5])}"]


def safe(name: str) -> str:
    """Replace characters that are unsafe in file names, and cut the name, so that files can be named after it."""
    return re.sub(r"[^\w.-]+", "_", str(name)[:_LONGEST_ID]).strip(".")
