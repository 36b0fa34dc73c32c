"""What all DICOM files with masks share: the images they refer to, and the model they name."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from pydicom import Dataset

from gitseg_tf import __version__
from gitseg_tf.data.readers.base import Cohort, Scan
from gitseg_tf.data.readers.dicom.source import DicomSource, read_dicom
from gitseg_tf.errors import DataError
from gitseg_tf.inference.identity import UNKNOWN, ModelIdentity
from gitseg_tf.labels import Label, LabelSet

UTF8 = "ISO_IR 192"
# Limits in characters of the value representations SH, LO and ST (PS3.5 6.2).
SHORT, LONG, TEXT = 16, 64, 1024
# Type 2 attributes of the patient and study modules: present, but possibly empty.
OF_PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
OF_STUDY = ("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber")
_REQUIRED = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")


@dataclass(frozen=True)
class Origin:
    """What made the masks, in the lengths that DICOM allows.

    Attributes:
        algorithm: the ROIGenerationAlgorithm: "AUTOMATIC", or "" if it is unknown.
        label: at most 16 characters.
        line: at most 64 characters.
        text: at most 1024 characters, with the whole hash of the weights.
        software: values of SoftwareVersions: of this package, and of the model if there is one.
        serial: at most 64 characters for DeviceSerialNumber: the whole hash of the weights, or "unknown".
    """

    algorithm: str
    label: str
    line: str
    text: str
    software: tuple[str, ...]
    serial: str = UNKNOWN

    @classmethod
    def of(cls, model: ModelIdentity | None) -> "Origin":
        """Describe the origin of masks: a model, or None for masks that were read from files.

        Example:
            >>> Origin.of(ModelIdentity("uwmgi", "0.1.0", "3f5a9c0d" + 56 * "0")).label
            'uwmgi 3f5a9c0d'
        """
        if model is None:
            line = f"made from mask files by gitseg {__version__}, not by a model"
            return cls("", "from masks", line, line, (__version__,))
        text = f"{model.text}; SHA-256 of the weights: {model.weights}"
        versions = (model.version, f"model {model.name}", f"weights {model.short_weights}")
        texts = (_plain(model.label, SHORT), _plain(model.text, LONG), _plain(text, TEXT))
        return cls("AUTOMATIC", *texts, tuple(_plain(one, LONG) for one in versions), _plain(model.weights, LONG))


def check_layout(cohort: Cohort, what: str) -> None:
    """Check that a cohort was read from DICOM.

    Raises:
        DataError: another layout; `what` is the output that needs DICOM.
    """
    if cohort.layout != "DICOM":
        raise DataError(f"{cohort.root}: has the layout {cohort.layout}, but {what} needs DICOM; write nifti")


def image_headers(scan: Scan, what: str) -> list[Dataset]:
    """Read the header of each slice, in the order of the grid's third axis; frames of one file share a header.

    Args:
        scan: a scan read from DICOM.
        what: the parts of the output that refer to the images, for errors.

    Raises:
        DataError: an image cannot be read, or lacks an identifier that the output must refer to.
    """
    source = cast(DicomSource, scan.source)
    headers = {path: read_dicom(path, stop_before_pixels=True) for path in dict.fromkeys(source.paths)}
    for path, header in headers.items():
        for name in _REQUIRED:
            if not header.get(name):
                raise DataError(f"{path}: has no {name}, which {what} need; write nifti instead")
    return [headers[path] for path in source.paths]


def roi_name(label: Label) -> str:
    """Return the name of a label's ROI or segment, truncated to 64 characters."""
    return _plain(label.roi_name or label.name, LONG)


def character_set(header: Dataset, *texts: str) -> str | list[str] | None:
    """Choose the SpecificCharacterSet of a file: that of the images, unless a text is not ASCII; then UTF-8.

    Files of one patient in one character set have the same bytes in their names, which some software compares.
    """
    own = header.get("SpecificCharacterSet") or None
    return own if all(text.isascii() for text in texts) else UTF8


def _plain(text: str, most: int) -> str:
    """Replace backslashes, which separate values in DICOM, and control characters; truncate the text."""
    return re.sub(r"[\\\x00-\x1f\x7f]", "_", text)[:most].strip()


def label_texts(labels: LabelSet) -> Iterator[str]:
    """Yield the texts of labels that are written to DICOM files."""
    for label in labels:
        yield roi_name(label)
        if label.code:
            yield label.code.meaning


def reference(header: Dataset, frame: int | None = None) -> Dataset:
    """Refer to an image by its header, or to one of its frames, counted from 0."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    if frame is not None:
        item.ReferencedFrameNumber = frame + 1
    return item


def by_series(headers: list[Dataset]) -> list[tuple[str, list[Dataset]]]:
    """Refer to all images: (SeriesInstanceUID, references); some exports give each slice a series of its own."""
    of_series: dict[str, list[Dataset]] = {}
    for header in {str(header.SOPInstanceUID): header for header in headers}.values():
        of_series.setdefault(str(header.SeriesInstanceUID), []).append(reference(header))
    return list(of_series.items())


def encoded(dataset: Dataset) -> bytes:
    """Encode an instance as the content of a file."""
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
