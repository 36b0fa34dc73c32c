"""DICOM: series of images with the contours of RT structure sets."""

import hashlib
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import cast

from gitseg_tf.data.readers.base import (
    NO_LABELS,
    Cohort,
    FoundLabel,
    Reader,
    Scan,
    build_scans,
    numbered_slice_ids,
    source_digest,
)
from gitseg_tf.data.readers.dicom.files import starts_like_dicom, text
from gitseg_tf.data.readers.dicom.geometry import series_grid
from gitseg_tf.data.readers.dicom.headers import (
    IMAGES,
    File,
    Headers,
    Series,
    name_patients,
    read_headers,
    safe,
    series_beside,
    series_key,
    series_of,
)
from gitseg_tf.data.readers.dicom.slices import slices_of
from gitseg_tf.data.readers.dicom.source import DicomSource
from gitseg_tf.data.readers.dicom.structures import (
    match_structures,
    roi_names,
    rois_of,
    select_structures,
    split_note,
)
from gitseg_tf.data.readers.naming import found_notes, resolve_labels
from gitseg_tf.errors import DataError
from gitseg_tf.labels import LabelSet


def is_here(root: Path) -> bool:
    """Check whether the folder contains a DICOM file at any depth."""
    return any(starts_like_dicom(path) for path in root.rglob("*") if path.is_file())


def read(root: Path, table: bool = True, labels: LabelSet | None = None, structure_set: str | None = None) -> Cohort:
    """Find the scans of a folder, reading only headers.

    Args:
        root: DICOM files, in any folder structure.
        table: False ignores contours; structure sets still select one of several series of a study.
        labels: the labels to read; None reads every ROI.
        structure_set: which structure set of a series to read, see `select_structures`; None reads all, and refuses a
            scan if two of them have contours of the same label.

    Returns:
        The cohort; ids are PATIENTID_STUDYDATE. Broken are series with a faulty image or structure set or without a
        regular grid; studies with several series and no structure set that refers to one; and scans with two ROIs of
        the same label.

    Raises:
        DataError: no images.
    """
    headers = read_headers(root)
    series = series_of(headers.images)
    if not series and not headers.unreadable:
        raise DataError(f"{root}: has DICOM files, but no {' or '.join(IMAGES)} images; add the series")
    names, notes = name_patients(series, root)
    faults, strays = _faults(headers, series)
    matched = match_structures(headers.structures, series, headers.conflicts)
    if table:
        faults = matched.faults | faults
        notes += matched.orphans
    broken: list[tuple[str, str]] = []
    chosen = _choose(
        series, matched.of_series, names, table=table, ignored=headers.ignored, faults=faults, broken=broken
    )
    ids = _ids([series[i] for i in chosen], names)
    selected: dict[int, list[File]] = {}
    for i, scan_id in zip(chosen, ids, strict=True):
        try:
            selected[i] = select_structures(matched.of_series.get(i, []), structure_set) if table else []
        except DataError as error:
            faults.setdefault(i, f"{scan_id}: {error}")
    contours = [selected.get(i, []) if i not in faults else [] for i in chosen]
    labels, found = _resolve(contours, labels, root)
    scans, without_grid = build_scans(
        (scan_id, partial(_scan, scan_id, names[series[i].patient], series[i], structures, labels, faults.get(i)))
        for scan_id, i, structures in zip(ids, chosen, contours, strict=True)
    )
    if not scans:  # nothing else explains what is wrong
        broken += [(str(path), why) for path, why in headers.unreadable.items()]
    digest = hashlib.sha256(json.dumps([scan.id for scan in scans]).encode() + source_digest(list(scans)).encode())
    label_notes, left = found_notes(found, "ROI", len(scans))
    split = [f"{scan.id}: {note}" for scan in scans if (note := split_note(cast(DicomSource, scan.source).rois))]
    return Cohort(
        root,
        scans,
        digest.hexdigest(),
        "DICOM",
        labels,
        found=found,
        label_notes=label_notes,
        ignored=(*headers.ignored, *left),
        broken=(*broken, *without_grid),
        notes=(*headers.notes, *notes, *strays, *split),
    )


def _faults(headers: Headers, series: list[Series]) -> tuple[dict[int, str], list[str]]:
    """Find the series that faulty files belong to.

    Returns:
        Why a series cannot be read, by its index; and lines on files that may belong to any of several series.
    """
    faults: dict[int, str] = {}
    for i, item in enumerate(series):
        for key in {series_key(path, header) for path, header in item.images} & headers.faults.keys():
            faults[i] = headers.faults[key]
    strays = []
    for path, why in headers.unreadable.items():
        # Without this file, the only series of its folder would look complete.
        if beside := series_beside(path, series):
            faults.setdefault(beside[0], why)
        else:
            strays.append(f"{why}; left out, and a slice may be missing from a scan in its folder")
    return faults, strays


def _resolve(
    contours: list[list[File]], labels: LabelSet | None, root: Path
) -> tuple[LabelSet, tuple[FoundLabel, ...]]:
    counts: Counter = Counter()
    for structures in contours:
        counts.update({name for _, header in structures for _, name in roi_names(header)})
    if not any(contours):
        return NO_LABELS, ()
    return resolve_labels({name: counts[name] for name in sorted(counts)}, labels, str(root))


def _choose(
    series: list[Series],
    structures_of: dict[int, list[File]],
    names: dict[str, str],
    *,
    table: bool,
    ignored: list[str],
    faults: dict[int, str],
    broken: list[tuple[str, str]],
) -> list[int]:
    """Choose the series that are scans: those that structure sets refer to, or the only one of a study."""
    studies: dict[str, list[int]] = {}
    for i, item in enumerate(series):
        studies.setdefault(item.study, []).append(i)
    chosen = []
    for indices in studies.values():
        referred = [i for i in indices if i in structures_of]
        first = series[indices[0]]
        patient = f"patient {names[first.patient]}"
        study = f"{patient}, study of {text(first.header, 'StudyDate') or 'unknown date'} ({first.folder})"
        if not referred and table and structures_of and faults.keys().isdisjoint(indices):
            reason = "no RTSTRUCT refers to it, unlike other studies; add one or remove the study"
            broken.append((patient, f"{study}: {reason}"))
            continue
        if not referred and len(indices) > 1:
            described = [text(series[i].header, "SeriesDescription") or series[i].folder.name for i in indices]
            listed = ", ".join(map(repr, sorted(described)))
            broken.append((patient, f"{study}: has {len(indices)} series ({listed}); keep only the one to segment"))
            continue
        chosen += referred or indices
        if referred:
            ignored += [f"{series[i].folder}: series without RTSTRUCT" for i in indices if i not in referred]
    return chosen


def _ids(series: list[Series], names: dict[str, str]) -> list[str]:
    """Name each series; a second scan of a patient on the same day gets the suffix _2."""

    def name(item: Series) -> str:
        date = safe(text(item.header, "StudyDate"))
        return f"{names[item.patient]}_{date}" if date else names[item.patient]

    def order(i: int) -> tuple:
        header = series[i].header
        number = text(header, "SeriesNumber").zfill(12)
        return name(series[i]), text(header, "StudyTime"), series[i].study, number, sorted(series[i].uids)

    seen: Counter = Counter()
    ids = [""] * len(series)
    for i in sorted(range(len(series)), key=order):
        seen[name(series[i])] += 1
        count = seen[name(series[i])]
        ids[i] = name(series[i]) if count == 1 else f"{name(series[i])}_{count}"
    return ids


def _scan(scan_id: str, case: str, series: Series, structures: list[File], labels: LabelSet, fault: str | None) -> Scan:
    if fault is not None:
        raise DataError(fault)
    slices = [one for path, header in series.images for one in slices_of(path, header)]
    grid, order = series_grid(slices)
    rois = rois_of(structures, labels)
    header = series.header
    source = DicomSource(
        tuple(slices[i].path for i in order),
        tuple(slices[i].frame for i in order),
        tuple(slices[i].sop_uid for i in order),
        text(header, "SeriesInstanceUID"),
        text(header, "StudyInstanceUID"),
        text(header, "FrameOfReferenceUID"),
        grid,
        tuple(path for path, _ in structures),
        rois,
    )
    ids = numbered_slice_ids(scan_id, grid.numbers)
    contoured = {roi.label for roi in rois}
    annotated = tuple(label.name for label in labels if label.name in contoured)
    return Scan(scan_id, case, grid.records_shape, grid.spacing, grid.numbers, ids, labels, annotated, source)


READER = Reader(is_here, read)
