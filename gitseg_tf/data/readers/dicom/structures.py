"""The structure sets of a folder: which series they belong to, which one of several is read, and their ROIs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pydicom

from gitseg_tf.core.text import plural
from gitseg_tf.data.readers.dicom.files import is_truncated, items, read_dicom, text
from gitseg_tf.data.readers.dicom.headers import File, Series, series_beside
from gitseg_tf.errors import DataError
from gitseg_tf.labels import LabelSet

NEWEST, APPROVED = "newest", "approved"


@dataclass(frozen=True)
class Roi:
    """An ROI that matches a label: its structure set, and its number and name in it."""

    label: str
    path: Path
    number: int
    name: str


@dataclass
class Matched:
    """Structure sets by series.

    Attributes:
        of_series: the structure sets of each series, by its index.
        faults: why the structure sets of a series cannot be read, by its index.
        orphans: lines on structure sets that belong to none of the series.
    """

    of_series: dict[int, list[File]] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)
    orphans: list[str] = field(default_factory=list)


def match_structures(structures: Sequence[File], series: Sequence[Series], conflicts: dict[Path, str]) -> Matched:
    """Find the series that each structure set refers to.

    Args:
        structures: (path, header) of structure sets.
        series: the series of the folder.
        conflicts: structure sets that are known to be unusable, and why.

    Returns:
        The structure sets by series. A damaged one makes its series faulty, or if it no longer says which one that is,
        the series of its study, or the only one in its folder.
    """
    matched = Matched()
    for path, header in structures:
        fault = conflicts.get(path) or _fault(path, header)
        present, problem = _series_of(path, header, series)
        if not present and fault:
            study = text(header, "StudyInstanceUID")
            present = [i for i, item in enumerate(series) if study and item.study == study] or series_beside(
                path, series
            )
        if not present:
            matched.orphans.append(fault or f"{path}: refers to a series that is not here; ignored")
        for i in present:
            matched.of_series.setdefault(i, []).append((path, header))
            if reason := fault or problem:
                matched.faults.setdefault(i, reason)
    return matched


def _fault(path: Path, header: pydicom.Dataset) -> str:
    """Describe what is missing from a structure set; "" if nothing is."""
    if is_truncated(path):
        return f"{path}: is a truncated structure set; copy it again"
    if "StructureSetROISequence" not in header or "ROIContourSequence" not in read_dicom(path):
        return f"{path}: is a structure set without a list of ROIs or of contours; export it again"
    return ""


def _series_of(path: Path, header: pydicom.Dataset, series: Sequence[Series]) -> tuple[list[int], str]:
    """List the series that a structure set refers to, and why they are ambiguous or ""."""
    frames = items(header, "ReferencedFrameOfReferenceSequence")
    referred = [
        text(item, "SeriesInstanceUID")
        for frame in frames
        for study in items(frame, "RTReferencedStudySequence")
        for item in items(study, "RTReferencedSeriesSequence")
    ]
    if any(referred):
        return [i for i, item in enumerate(series) if not item.uids.isdisjoint(referred)], ""
    uids = {text(frame, "FrameOfReferenceUID") for frame in frames} - {""}
    present = [i for i, item in enumerate(series) if text(item.header, "FrameOfReferenceUID") in uids]
    if len(present) > 1:
        return present, f"{path}: refers to a frame of reference with {len(present)} series; keep one of them"
    return present, ""


def select_structures(structures: list[File], which: str | None) -> list[File]:
    """Select the structure sets of a series to read.

    Args:
        structures: the structure sets of one series.
        which: "newest", "approved", or a StructureSetLabel; None selects all.

    Returns:
        One structure set, or all of them. If any has contours, those without contours are not selected by `which`.

    Raises:
        DataError: no structure set, or more than one, is what `which` says; the message lists them.
    """
    if which is None or not structures:
        return structures
    choices = [file for file in structures if len(structures) > 1 and contoured_rois(file[0])] or structures
    if which == NEWEST:
        dates = [_date(header) for _, header in choices]
        chosen = [file for file, date in zip(choices, dates, strict=True) if date == max(dates)]
        if len(choices) > 1 and not all(dates):
            raise DataError(f"structure sets without StructureSetDate cannot be compared: {_listed(choices)}")
    elif which == APPROVED:
        chosen = [file for file in choices if text(file[1], "ApprovalStatus") == "APPROVED"]
    else:
        chosen = [file for file in choices if text(file[1], "StructureSetLabel") == which.strip()]
    if len(chosen) == 1:
        return chosen
    what = f"{len(chosen)} structure sets are" if chosen else "no structure set is"
    kind = which if which in (NEWEST, APPROVED) else f"labeled {which!r}"
    raise DataError(f"{what} {kind}; choose from {_listed(chosen or choices)}")


def _date(header: pydicom.Dataset) -> tuple[str, str] | tuple[()]:
    date, time = (text(header, f"StructureSet{name}") for name in ("Date", "Time"))
    # Older files have 2026.01.02, and times with or without a fraction.
    return (date.replace(".", ""), time.replace(":", "").ljust(13, "0")) if date else ()


def _listed(structures: Sequence[File]) -> str:
    return ", ".join(
        f"{path} (label {text(header, 'StructureSetLabel')!r}, {text(header, 'StructureSetDate') or 'no date'}"
        f"{' ' + text(header, 'StructureSetTime') if text(header, 'StructureSetTime') else ''}, "
        f"{text(header, 'ApprovalStatus') or 'no approval status'})"
        for path, header in structures
    )


def roi_names(header: pydicom.Dataset) -> list[tuple[int, str]]:
    """List the number and the name of each ROI that has both."""
    named = []
    for roi in items(header, "StructureSetROISequence"):
        number, name = roi_number(roi, "ROINumber"), text(roi, "ROIName")
        if number is not None and name:
            named.append((number, name))
    return named


def roi_number(item: pydicom.Dataset, name: str) -> int | None:
    """Read the number of an ROI; None if it is missing, empty or malformed."""
    value = text(item, name)
    try:
        return int(float(value))
    except (ValueError, OverflowError):
        return None


def contours_of(path: Path) -> dict[int, list[pydicom.Dataset]]:
    """Read the contours of a structure set by ROI number; those without a number belong to none."""
    contours: dict[int, list[pydicom.Dataset]] = {}
    for item in items(read_dicom(path), "ROIContourSequence"):
        number = roi_number(item, "ReferencedROINumber")
        if number is not None:
            contours.setdefault(number, []).extend(items(item, "ContourSequence"))
    return contours


def contoured_rois(path: Path) -> frozenset[int]:
    """List the numbers of the ROIs of a structure set that have any contour."""
    return frozenset(number for number, contours in contours_of(path).items() if contours)


def rois_of(structures: list[File], labels: LabelSet) -> tuple[Roi, ...]:
    """Find the ROI of each label.

    Args:
        structures: the structure sets of one series.
        labels: the labels to read.

    Returns:
        At most one ROI per label: of two in different structure sets, the one with contours.

    Raises:
        DataError: two ROIs are the same label.
    """
    rois: dict[str, Roi] = {}
    contoured = {path: contoured_rois(path) for path, _ in structures} if len(structures) > 1 else {}
    for path, header in structures:
        for number, name in roi_names(header):
            label = labels.match(name)
            if label is None:
                continue
            roi = Roi(label.name, path, number, name)
            before = rois.setdefault(label.name, roi)
            if before is roi:
                continue
            if before.path == path:
                raise DataError(f"{path}: ROIs {before.name!r} and {name!r} are both {label.name}; remove one")
            if before.number in contoured[before.path] and number in contoured[path]:
                choices = [file for file in structures if contoured[file[0]]]
                raise DataError(
                    f"{len(choices)} structure sets of one series have contours, both {before.path.name} and "
                    f"{path.name} of {label.name}; choose a structure set ({NEWEST}, {APPROVED} or a label) from "
                    f"{_listed(choices)}"
                )
            if number in contoured[path]:
                rois[label.name] = roi
    return tuple(rois.values())


def split_note(rois: Sequence[Roi]) -> str:
    """Describe labels of one scan that come from several structure sets; "" if there is one."""
    paths = list(dict.fromkeys(roi.path for roi in rois))
    if len(paths) < 2:
        return ""
    return f"labels are read from {plural(len(paths), 'structure set')}: {', '.join(map(str, paths))}"
