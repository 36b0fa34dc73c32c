"""DICOM: series of single-frame images, and the contours of RT structure sets."""

import hashlib
import json
import re
from collections import Counter
from functools import partial
from pathlib import Path

import pydicom

from gitseg_tf.data.dicom_grid import series_grid
from gitseg_tf.data.dicom_source import DicomSource, Roi, read_dicom
from gitseg_tf.data.scans import ORGANS, Cohort, Scan, build_scans, numbered_slice_ids, organ_named, source_digest
from gitseg_tf.errors import InputError
from gitseg_tf.progress import progress

_IMAGES = ("MR", "CT")
_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "PatientID", "StudyInstanceUID", "StudyDate"),
    *("StudyTime", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "FrameOfReferenceUID", "Rows", "Columns"),
    *("NumberOfFrames", "PixelSpacing", "SpacingBetweenSlices", "SliceThickness", "ImagePositionPatient"),
    *("ImageOrientationPatient", "PhotometricInterpretation", "StructureSetROISequence"),
    "ReferencedFrameOfReferenceSequence",
]


def is_here(root: Path) -> bool:
    """True for a folder with a DICOM file anywhere in it."""
    return any(_starts_like_dicom(path) for path in root.rglob("*") if path.is_file())


def read(root: Path, table: bool = True) -> Cohort:
    """Find the scans of a folder; only headers are read.

    Args:
        root: DICOM files in any tree of folders.
        table: False leaves contours alone; structure sets still tell which of several series of a study is meant.

    Returns:
        The cohort, scans sorted by id; an id is PATIENTID_STUDYDATE. Broken are series with a damaged file in their
        folders, of multi-frame images, or whose slices make no grid; studies of several series of which no structure
        set tells the one that is meant; and scans whose structure set has no organ.

    Raises:
        InputError: no image; with the table, a structure set without its series.
    """
    headers, ignored, damaged = _read_headers(root)
    series: dict[str, list] = {}
    structures = []
    for path, header in headers:
        if header.Modality == "RTSTRUCT":
            structures.append((path, header))
        elif _is_image(header):
            series.setdefault(str(header.SeriesInstanceUID), []).append((path, header))
        else:
            ignored.append(f"{path}: {'localizer' if header.Modality in _IMAGES else header.Modality}")
    # Whose slice a damaged file was cannot be told; a scan that lacks one would pass for whole.
    series = {
        uid: images for uid, images in series.items() if damaged.keys().isdisjoint(path.parent for path, _ in images)
    }
    broken = [(str(folder), why) for folder, why in damaged.items()]
    if not series and not broken:
        raise InputError(f"{root}: holds DICOM files, but no {' or '.join(_IMAGES)} image; add the series")
    # The series of a structure set may be one of those that are left out.
    of_series = _match(structures, series, strict=table and not damaged)
    chosen = _choose(series, of_series, table, ignored, broken)
    labelled = table and bool(structures)
    labels: Counter = Counter()
    scans, without_grid = build_scans(
        (
            scan_id,
            partial(_scan, scan_id, series[uid], of_series.get(uid, []) if labelled else [], labelled, labels, ignored),
        )
        for scan_id, uid in _ids(chosen, series)
    )
    names = hashlib.sha256(json.dumps([scan.id for scan in scans]).encode() + source_digest(list(scans)).encode())
    lines = tuple(f"{line} ({n} of {len(scans)} scans)" for line, n in sorted(labels.items()))
    broken = (*broken, *without_grid)
    return Cohort(root, scans, labelled, names.hexdigest(), "DICOM", lines, tuple(ignored), broken=broken)


def _starts_like_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _read_headers(root: Path):
    """(path, header) of what is DICOM, lines on what is not, and folder to what is wrong with a file in it."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    headers, ignored, damaged = [], [], {}
    for path in progress(files, f"list {root.name}", unit="file", delay=2):
        try:
            if _starts_like_dicom(path):
                header = read_dicom(path, specific_tags=_TAGS, stop_before_pixels=True)
                if header.get("Modality") is not None:  # a DICOMDIR has none
                    if _is_image(header):
                        _check_has(path, header, "PatientID", "StudyInstanceUID", "SeriesInstanceUID")
                    headers.append((path, header))
            elif path.suffix.lower() in (".dcm", ".ima"):
                raise InputError(f"{path}: is no DICOM file; copy it again or remove it")
            else:
                ignored.append(f"{path}: no DICOM")
        except InputError as error:
            damaged.setdefault(path.parent, str(error))
    return headers, ignored, damaged


def _is_image(header: pydicom.Dataset) -> bool:
    return header.Modality in _IMAGES and "LOCALIZER" not in header.get("ImageType", ())


def _check_image(path: Path, header: pydicom.Dataset) -> None:
    kind = getattr(header.get("SOPClassUID"), "name", "of no class")
    if (header.get("NumberOfFrames") or 1) > 1 or "Enhanced" in kind:
        raise InputError(f"{path}: is a multi-frame image ({kind}); export the series as single frames")
    _check_has(path, header, "SOPInstanceUID", "Rows", "Columns", "PixelSpacing")
    _check_has(path, header, "ImagePositionPatient", "ImageOrientationPatient")
    if header.get("PhotometricInterpretation", "MONOCHROME2") != "MONOCHROME2":
        raise InputError(f"{path}: is {header.PhotometricInterpretation}; a slice is grey (MONOCHROME2)")


def _check_has(path: Path, header: pydicom.Dataset, *names: str) -> None:
    for name in names:
        if not header.get(name):
            raise InputError(f"{path}: has no {name}; a scan cannot be built without it")


def _match(structures, series, strict: bool) -> dict[str, list]:
    """Series UID to the structure sets that refer to it."""
    frames: dict[str, list[str]] = {}
    for uid, images in series.items():
        frames.setdefault(str(images[0][1].get("FrameOfReferenceUID")), []).append(uid)
    matched: dict[str, list] = {}
    for path, header in structures:
        references = header.get("ReferencedFrameOfReferenceSequence") or ()
        named = [
            str(item.SeriesInstanceUID)
            for frame in references
            for study in frame.get("RTReferencedStudySequence") or ()
            for item in study.get("RTReferencedSeriesSequence") or ()
        ]
        if not named:
            named = [uid for frame in references for uid in frames.get(str(frame.get("FrameOfReferenceUID")), ())]
            if len(named) > 1:
                raise InputError(f"{path}: refers to no series but to a frame of reference with {len(named)}; keep one")
        here = [uid for uid in named if uid in series]
        if not here and strict:
            raise InputError(f"{path}: refers to a series that is not there; add its images or remove the file")
        for uid in here:
            matched.setdefault(uid, []).append((path, header))
    return matched


def _choose(series, of_series, table: bool, ignored: list[str], broken: list[tuple[str, str]]) -> list[str]:
    """The series that are scans: those that structure sets refer to, or the only one of a study."""
    studies: dict[str, list[str]] = {}
    for uid, images in series.items():
        studies.setdefault(str(images[0][1].StudyInstanceUID), []).append(uid)
    chosen = []
    for uids in studies.values():
        referred = [uid for uid in uids if uid in of_series]
        path, header = series[uids[0]][0]
        patient = f"patient {header.PatientID}"
        study = f"{patient}, study of {header.get('StudyDate') or 'no date'} ({path.parent})"
        if not referred and table and of_series:
            reason = "no RTSTRUCT refers to it, to other studies one does; add it or move it away"
            broken.append((patient, f"{study}: {reason}"))
            continue
        if not referred and len(uids) > 1:
            names = ", ".join(repr(str(series[uid][0][1].get("SeriesDescription", uid))) for uid in sorted(uids))
            broken.append((patient, f"{study}: has {len(uids)} series ({names}); keep the one to segment"))
            continue
        chosen += referred or uids
        if referred:
            ignored += [f"{series[uid][0][0].parent}: series without RTSTRUCT" for uid in uids if uid not in referred]
    return chosen


def _ids(chosen: list[str], series) -> list[tuple[str, str]]:
    """(scan id, series UID); the second scan of a patient's day gets _2."""
    patients: dict[str, str] = {}
    named = []
    for uid in chosen:
        header = series[uid][0][1]
        case = _safe(header.PatientID)
        if patients.setdefault(case, header.PatientID) != header.PatientID:
            raise InputError(
                f"patients {patients[case]!r} and {header.PatientID!r} are both {case} as a file; rename one"
            )
        name = "_".join([case, *([str(header.StudyDate)] if header.get("StudyDate") else [])])
        order = (str(header.get("StudyTime")), str(header.StudyInstanceUID), int(header.get("SeriesNumber") or 0), uid)
        named.append((name, order, uid))
    seen: Counter = Counter()
    ids = []
    for name, _, uid in sorted(named):
        seen[name] += 1
        ids.append((name if seen[name] == 1 else f"{name}_{seen[name]}", uid))
    return ids


def _safe(patient: str) -> str:
    return re.sub(r"[^\w.-]+", "_", str(patient)).strip(".")


def _scan(scan_id: str, images, structures, labelled: bool, labels: Counter, ignored: list[str]) -> Scan:
    for path, header in images:
        _check_image(path, header)
    grid, order = series_grid(images)
    rois = _rois(structures, labels, ignored)
    header = images[0][1]
    source = DicomSource(
        tuple(images[i][0] for i in order),
        tuple(str(images[i][1].SOPInstanceUID) for i in order),
        str(header.SeriesInstanceUID),
        str(header.StudyInstanceUID),
        str(header.get("FrameOfReferenceUID", "")),
        grid,
        tuple(path for path, _ in structures),
        rois,
    )
    ids = numbered_slice_ids(scan_id, grid.numbers)
    return Scan(scan_id, _safe(header.PatientID), grid.records_shape, grid.spacing, grid.numbers, ids, labelled, source)


def _rois(structures, labels: Counter, ignored: list[str]) -> tuple[Roi, ...]:
    rois: dict[str, Roi] = {}
    for path, header in structures:
        names = [(int(roi.ROINumber), str(roi.ROIName)) for roi in header.get("StructureSetROISequence") or ()]
        for number, name in names:
            organ = organ_named(name)
            if organ is None:
                ignored.append(f"{path}: ROI {name!r}: no organ of ours")
            elif organ in rois:
                raise InputError(f"{path}: ROIs {rois[organ].name!r} and {name!r} are both {organ}; keep one")
            else:
                rois[organ] = Roi(organ, path, number, name)
                labels[f"ROI {name!r} is {organ}"] += 1
    if structures and not rois:
        listed = ", ".join(repr(name) for _, name in names) or "none"
        raise InputError(f"{structures[-1][0]}: no ROI is an organ; known are {', '.join(ORGANS)}, there are {listed}")
    return tuple(rois.values())
