"""DICOM: series of single-frame images with the contours of RT structure sets."""

import hashlib
import json
from collections import Counter
from functools import partial
from pathlib import Path

import pydicom

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
from gitseg_tf.data.readers.dicom.geometry import series_grid
from gitseg_tf.data.readers.dicom.headers import (
    IMAGES,
    File,
    Series,
    check_image,
    name_patients,
    read_headers,
    series_of,
)
from gitseg_tf.data.readers.dicom.source import DicomSource, Roi, has_contours, starts_like_dicom
from gitseg_tf.data.readers.naming import found_notes, resolve_labels
from gitseg_tf.errors import DataError, first_line
from gitseg_tf.labels import LabelSet


def is_here(root: Path) -> bool:
    """Check whether the folder contains a DICOM file at any depth."""
    return any(starts_like_dicom(path) for path in root.rglob("*") if path.is_file())


def read(root: Path, table: bool = True, labels: LabelSet | None = None) -> Cohort:
    """Find the scans of a folder, reading only headers.

    Args:
        root: DICOM files, in any folder structure.
        table: False ignores contours; structure sets still select one of several series of a study.
        labels: the labels to read; None reads every ROI.

    Returns:
        The cohort; ids are PATIENTID_STUDYDATE. Broken are series with a damaged file in their folder, with multi-frame
        images or without a regular grid; studies with several series and no structure set that refers to one; and
        scans with two ROIs of the same label.

    Raises:
        DataError: no images; or, with `table`, a structure set without its series.
    """
    headers = read_headers(root)
    # A damaged file may be a slice of any series in its folder, which would then look complete without it.
    faulty = headers.damaged.keys()
    series = [item for item in series_of(headers.images) if faulty.isdisjoint(path.parent for path, _ in item.images)]
    broken = [(str(folder), why) for folder, why in headers.damaged.items()]
    if not series and not broken:
        raise DataError(f"{root}: has DICOM files, but no {' or '.join(IMAGES)} images; add the series")
    names, notes = name_patients(series, root)
    # A structure set may refer to a series that was left out.
    structures_of = _match(headers.structures, series, strict=table and not headers.damaged)
    chosen = _choose(series, structures_of, names, table=table, ignored=headers.ignored, broken=broken)
    contours = [structures_of.get(i, []) if table else [] for i in chosen]
    labels, found = _resolve(contours, labels, root)
    ids = _ids([series[i] for i in chosen], names)
    scans, without_grid = build_scans(
        (scan_id, partial(_scan, scan_id, names[series[i].patient], series[i], structures, labels))
        for scan_id, i, structures in zip(ids, chosen, contours, strict=True)
    )
    digest = hashlib.sha256(json.dumps([scan.id for scan in scans]).encode() + source_digest(list(scans)).encode())
    label_notes, left = found_notes(found, "ROI", len(scans))
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
        notes=(*headers.notes, *notes),
    )


def _resolve(
    contours: list[list[File]], labels: LabelSet | None, root: Path
) -> tuple[LabelSet, tuple[FoundLabel, ...]]:
    counts: Counter = Counter()
    for structures in contours:
        counts.update({name for _, header in structures for _, name in _roi_names(header)})
    if not any(contours):
        return NO_LABELS, ()
    return resolve_labels({name: counts[name] for name in sorted(counts)}, labels, str(root))


def _match(structures: list[File], series: list[Series], strict: bool) -> dict[int, list[File]]:
    """Map the index of each series to the structure sets that refer to it."""
    of_uid = {uid: i for i, item in enumerate(series) for uid in item.uids}
    of_frame: dict[str, list[int]] = {}
    for i, item in enumerate(series):
        of_frame.setdefault(str(item.header.get("FrameOfReferenceUID") or ""), []).append(i)
    matched: dict[int, list[File]] = {}
    for path, header in structures:
        frames = header.get("ReferencedFrameOfReferenceSequence") or ()
        referred = [
            str(item.get("SeriesInstanceUID") or "")
            for frame in frames
            for study in frame.get("RTReferencedStudySequence") or ()
            for item in study.get("RTReferencedSeriesSequence") or ()
        ]
        if any(referred):
            present = list(dict.fromkeys(of_uid[uid] for uid in referred if uid in of_uid))
        else:
            uids = [str(frame.get("FrameOfReferenceUID") or "") for frame in frames]
            present = [i for uid in uids if uid for i in of_frame.get(uid, ())]
            if len(present) > 1:
                raise DataError(f"{path}: refers to a frame of reference with {len(present)} series; keep one of them")
        if not present and strict:
            raise DataError(f"{path}: refers to a series without images; add them or remove the file")
        for i in present:
            matched.setdefault(i, []).append((path, header))
    return matched


def _choose(
    series: list[Series],
    structures_of: dict[int, list[File]],
    names: dict[str, str],
    *,
    table: bool,
    ignored: list[str],
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
        study = f"{patient}, study of {first.header.get('StudyDate') or 'unknown date'} ({first.folder})"
        if not referred and table and structures_of:
            reason = "no RTSTRUCT refers to it, unlike other studies; add one or remove the study"
            broken.append((patient, f"{study}: {reason}"))
            continue
        if not referred and len(indices) > 1:
            described = [str(series[i].header.get("SeriesDescription") or series[i].folder.name) for i in indices]
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
        date = item.header.get("StudyDate")
        return f"{names[item.patient]}_{date}" if date else names[item.patient]

    def order(i: int) -> tuple:
        header = series[i].header
        number = str(header.get("SeriesNumber") or "").zfill(12)
        return name(series[i]), str(header.get("StudyTime")), series[i].study, number, sorted(series[i].uids)

    seen: Counter = Counter()
    ids = [""] * len(series)
    for i in sorted(range(len(series)), key=order):
        seen[name(series[i])] += 1
        count = seen[name(series[i])]
        ids[i] = name(series[i]) if count == 1 else f"{name(series[i])}_{count}"
    return ids


def _scan(scan_id: str, case: str, series: Series, structures: list[File], labels: LabelSet) -> Scan:
    try:
        for path, header in series.images:
            check_image(path, header)
        grid, order = series_grid(series.images)
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError) as error:
        raise DataError(
            f"{series.folder}: a position or size cannot be read ({first_line(error)}); export the series again"
        ) from None
    rois = _rois(structures, labels)
    header = series.header
    source = DicomSource(
        tuple(series.images[i][0] for i in order),
        tuple(str(series.images[i][1].get("SOPInstanceUID") or "") for i in order),
        str(header.get("SeriesInstanceUID") or ""),
        str(header.get("StudyInstanceUID") or ""),
        str(header.get("FrameOfReferenceUID") or ""),
        grid,
        tuple(path for path, _ in structures),
        rois,
    )
    ids = numbered_slice_ids(scan_id, grid.numbers)
    contoured = {roi.label for roi in rois}
    annotated = tuple(label.name for label in labels if label.name in contoured)
    return Scan(scan_id, case, grid.records_shape, grid.spacing, grid.numbers, ids, labels, annotated, source)


def _roi_names(header: pydicom.Dataset) -> list[tuple[int, str]]:
    """List the number and the name of each ROI that has both."""
    named = []
    for roi in header.get("StructureSetROISequence") or ():
        number, name = roi.get("ROINumber"), str(roi.get("ROIName") or "").strip()
        if number is not None and name:
            named.append((int(number), name))
    return named


def _rois(structures: list[File], labels: LabelSet) -> tuple[Roi, ...]:
    rois: dict[str, Roi] = {}
    for path, header in structures:
        for number, name in _roi_names(header):
            label = labels.match(name)
            if label is None:
                continue
            roi = Roi(label.name, path, number, name)
            before = rois.setdefault(label.name, roi)
            if before is roi or (before.path != path and not has_contours(roi)):
                continue
            if before.path != path and not has_contours(before):
                rois[label.name] = roi
                continue
            where = "" if before.path == path else f" of {before.path}"
            raise DataError(f"{path}: ROIs {before.name!r}{where} and {name!r} are both {label.name}; remove one")
    return tuple(rois.values())


READER = Reader(is_here, read)
