"""The DICOM files of a folder: which are images, which belong together, and whose they are."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom

from gitseg_tf.core.progress import progress
from gitseg_tf.core.text import one_line, plural
from gitseg_tf.data.readers.dicom.source import naming_damage, read_dicom, starts_like_dicom
from gitseg_tf.errors import DataError, GitsegError

IMAGES = ("MR", "CT")
_LONGEST_ID = 100
_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "PatientID", "StudyInstanceUID", "StudyDate"),
    *("StudyTime", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "FrameOfReferenceUID", "Rows", "Columns"),
    *("NumberOfFrames", "PixelSpacing", "SpacingBetweenSlices", "SliceThickness", "ImagePositionPatient"),
    *("ImageOrientationPatient", "PhotometricInterpretation", "StructureSetROISequence"),
    "ReferencedFrameOfReferenceSequence",
]

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
        damaged: the fault of a file by its folder.
        notes: lines on copies.
    """

    images: list[File] = field(default_factory=list)
    structures: list[File] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    damaged: dict[Path, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_headers(root: Path) -> Headers:
    """Read the headers of all DICOM files below a folder."""
    found = Headers()
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    for path in progress(files, f"list {root.name}", unit="file", delay=2):
        try:
            if starts_like_dicom(path):
                _sort(path, read_dicom(path, specific_tags=_TAGS, stop_before_pixels=True), found)
            elif path.suffix.lower() in (".dcm", ".ima"):
                raise DataError(f"{path}: is not a DICOM file; copy it again or remove it")
            else:
                found.ignored.append(f"{path}: not a DICOM file")
        except GitsegError as error:
            found.damaged.setdefault(path.parent, str(error))
    found.images = list(_without_copies(found.images, found))
    found.structures = list(_without_copies(found.structures, found))
    return found


def _sort(path: Path, header: pydicom.Dataset, found: Headers) -> None:
    modality = header.get("Modality")
    if modality == "RTSTRUCT":
        with naming_damage(path):
            for roi in header.get("StructureSetROISequence") or ():
                int(roi.get("ROINumber") or 0)
        found.structures.append((path, header))
    elif modality in IMAGES and "LOCALIZER" not in (header.get("ImageType") or ()):
        found.images.append((path, header))
    elif modality:  # a DICOMDIR has none
        found.ignored.append(f"{path}: {'localizer' if modality in IMAGES else modality}")


def _without_copies(files: list[File], found: Headers) -> Iterator[File]:
    """Yield the first file of each instance; files of one instance must be the same."""
    first: dict[tuple[str, str], Path] = {}
    copies = []
    for path, header in files:
        uid, series = (str(header.get(name) or "") for name in ("SOPInstanceUID", "SeriesInstanceUID"))
        original = first.setdefault((uid, series), path) if uid else path
        if original == path:
            yield path, header
        elif _same(original, path):
            copies.append(path)
        else:
            found.damaged.setdefault(
                path.parent, f"{path}: has the SOPInstanceUID of {original}, but different content; remove one of them"
            )
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
    by_uid: dict[tuple[str, str], list[File]] = {}
    for path, header in images:
        uid = str(header.get("SeriesInstanceUID") or "")
        by_uid.setdefault((uid, "" if uid else str(path.parent)), []).append((path, header))
    groups: dict[tuple, list[list[File]]] = {}
    for files in by_uid.values():
        path, header = files[0]
        frame = str(header.get("FrameOfReferenceUID") or "")
        single = len(files) == 1
        groups.setdefault((_study(path, header), frame, path.parent) if single else (id(files),), []).append(files)
    series = []
    for parts in groups.values():
        # One or two single slices may well be separate scans.
        for files in [[file for part in parts for file in part]] if len(parts) > 2 else parts:
            path, header = files[0]
            uids = frozenset(str(h.get("SeriesInstanceUID")) for _, h in files if h.get("SeriesInstanceUID"))
            study = _study(path, header)
            series.append(Series(tuple(files), uids, study, str(header.get("PatientID") or "").strip() or study))
    return series


def _study(path: Path, header: pydicom.Dataset) -> str:
    return str(header.get("StudyInstanceUID") or "") or str(path.parent)


def check_image(path: Path, header: pydicom.Dataset) -> None:
    """Check that a file is a grayscale slice with a size, a pixel size, a position and an orientation.

    Raises:
        DataError: names the file, and what is missing or has the wrong number of values.
    """
    kind = getattr(header.get("SOPClassUID"), "name", "unknown class")
    if (header.get("NumberOfFrames") or 1) > 1 or "Enhanced" in kind:
        raise DataError(f"{path}: is a multi-frame image ({kind}); export the series as single frames")
    for name, count in (
        ("Rows", 1),
        ("Columns", 1),
        ("PixelSpacing", 2),
        ("ImagePositionPatient", 3),
        ("ImageOrientationPatient", 6),
    ):
        values = header.get(name)
        if values is None or values == "":
            raise DataError(f"{path}: has no {name}, which is required; export the series again")
        values = values if isinstance(values, pydicom.multival.MultiValue) else [values]
        if len(values) != count:
            raise DataError(f"{path}: {name} must have {plural(count, 'value')}, got {len(values)}; export it again")
    if (header.get("PhotometricInterpretation") or "MONOCHROME2") != "MONOCHROME2":
        raise DataError(
            f"{path}: is {one_line(str(header.PhotometricInterpretation))}; slices must be grayscale (MONOCHROME2)"
        )


def name_patients(series: list[Series], root: Path) -> tuple[dict[str, str], list[str]]:
    """Name each patient by the PatientID or, where that is blank, by the folder of the study.

    Returns:
        Names that are safe as file names, by `Series.patient`; and lines on patients without an ID.

    Raises:
        DataError: two PatientIDs would have the same name.
    """
    names: dict[str, str] = {}
    identified = [item for item in series if str(item.header.get("PatientID") or "").strip()]
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
    """Replace characters that are unsafe in file names, and cut the name; DICOM allows 64 characters."""
    return re.sub(r"[^\w.-]+", "_", str(name)[:_LONGEST_ID]).strip(".")
