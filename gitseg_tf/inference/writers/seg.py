"""Write masks as a DICOM Segmentation, with the package highdicom."""

import re
import warnings
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from pydicom import Dataset
from pydicom.sr.codedict import Code as Concept
from pydicom.sr.codedict import codes
from pydicom.uid import MRImageStorage, generate_uid
from pydicom.valuerep import DSfloat

from gitseg_tf.core.paths import write_atomically
from gitseg_tf.data.readers.base import Scan
from gitseg_tf.data.readers.dicom.source import DicomSource
from gitseg_tf.data.volume import Volume
from gitseg_tf.errors import DataError, DependencyError, first_line
from gitseg_tf.inference.identity import ModelIdentity
from gitseg_tf.inference.prediction import Prediction
from gitseg_tf.inference.writers.dicom import (
    LONG,
    OF_PATIENT,
    OF_STUDY,
    SHORT,
    Origin,
    by_series,
    character_set,
    check_layout,
    encoded,
    image_headers,
    label_texts,
    reference,
    roi_name,
)
from gitseg_tf.inference.writers.registry import Writer
from gitseg_tf.labels import Label, LabelSet

FILE = "segmentation.dcm"
# Labels without a code get one of this private coding scheme, whose value is the label's name.
PRIVATE_SCHEME = "99GITSEG"
_RAS_TO_LPS = np.array([[-1.0], [-1.0], [1.0]])
_SERIES_NUMBER = 300  # must be filled; the same as in dcmqi


class Segmentations(Writer):
    """Writes OUT/SCAN/segmentation.dcm, a DICOM Segmentation that refers to the scan's series, a segment per label."""

    def check(self) -> None:
        check_layout(self.cohort, "a DICOM segmentation")
        _highdicom()

    def write(self, scan: Scan, volume: Volume, prediction: Prediction) -> None:
        content = encoded(segmentation(scan, prediction.masks, self.labels, self.model))
        folder = self.out / scan.id
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE, content)


def segmentation(scan: Scan, masks: np.ndarray, labels: LabelSet, model: ModelIdentity | None = None) -> Dataset:
    """Build the DICOM Segmentation (PS3.3 A.51), binary, with one segment per label; segments may overlap.

    Args:
        scan: a scan read from DICOM.
        masks: bool [L, D, H, W].
        labels: names, colors and codes of the segments. A label without a code gets one of a private scheme.
        model: the model that made the masks, which the file names; None says that it was made from masks.

    Returns:
        A new instance in a new series of the scan's study. Frames without a voxel of their segment are left out.

    Raises:
        DataError: an image cannot be read or has no identifier to refer to, or its header is not valid.
        DependencyError: highdicom is missing.
    """
    highdicom, origin, headers = _highdicom(), Origin.of(model), image_headers(scan, "the segments")
    source = cast(DicomSource, scan.source)
    frames = np.stack([source.grid.from_records(mask).transpose(2, 1, 0) for mask in masks], -1)
    axes = np.array(source.grid.affine)[:3, :3] * _RAS_TO_LPS
    column_mm, row_mm, slice_mm = map(float, np.linalg.norm(axes, axis=0))
    orientation = [*(axes[:, 0] / column_mm), *(axes[:, 1] / row_mm)]
    measures = highdicom.PixelMeasuresSequence((row_mm, column_mm), slice_mm, slice_mm)
    images = list(_stand_ins(headers, _positions(source, headers), orientation, measures[0]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # absent labels, and names in a form that highdicom does not expect
            dataset = highdicom.seg.Segmentation(
                source_images=images,
                pixel_array=frames,
                segmentation_type="BINARY",
                segment_descriptions=[_segment(number, label, origin) for number, label in enumerate(labels, 1)],
                series_instance_uid=generate_uid(),
                series_number=_SERIES_NUMBER,
                sop_instance_uid=generate_uid(),
                instance_number=1,
                manufacturer="gitseg",
                manufacturer_model_name="gitseg",
                software_versions=list(origin.software),
                device_serial_number=origin.serial,
                content_label=_code_string(origin.label),
                content_description=origin.line,
                series_description=origin.line,
                pixel_measures=measures,
                plane_orientation=highdicom.PlaneOrientationSequence("PATIENT", orientation),
                plane_positions=[
                    highdicom.PlanePositionSequence("PATIENT", image.ImagePositionPatient) for image in images
                ],
                specific_character_set=None,
            )
    except ValueError as error:
        raise DataError(f"{scan.id}: cannot be written as SEG ({first_line(error)}); write rtstruct instead") from None
    _restore(dataset, headers, origin, labels)
    references = {
        image.SOPInstanceUID: (header, frame)
        for image, header, frame in zip(images, headers, source.frames, strict=True)
    }
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        for derivation in groups.get("DerivationImageSequence", ()):
            for item in derivation.SourceImageSequence:
                # The segments of a slice share the item.
                if item.ReferencedSOPInstanceUID in references:
                    item.update(reference(*references[item.ReferencedSOPInstanceUID]))
    return dataset


def _segment(number: int, label: Label, origin: Origin) -> Any:
    highdicom = _highdicom()
    category, kind = _concepts(label)
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=origin.line,
        family=codes.cid7162.ArtificialIntelligence if origin.algorithm else codes.cid7162.ManualProcessing,
        version=origin.software[0],
        parameters={"origin": origin.text},
    )
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=roi_name(label),
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=origin.algorithm or "SEMIAUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=generate_uid(),
        tracking_id=roi_name(label),
        display_color=_cielab(label.color),
    )


def _concepts(label: Label) -> tuple[Concept, Concept]:
    """Return the property category and type of a label."""
    if label.code is None:
        # The broadest category: nothing is known about the structure but its name.
        return codes.cid7150.Tissue, Concept(roi_name(label), PRIVATE_SCHEME, roi_name(label))
    concept = Concept(label.code.value, label.code.scheme[:SHORT], label.code.meaning[:LONG])
    lesion = concept in codes.cid7159
    return codes.cid7150.MorphologicallyAbnormalStructure if lesion else codes.cid7150.AnatomicalStructure, concept


def _cielab(color: tuple[int, int, int]) -> Any:
    import cv2

    lightness, a, b = cv2.cvtColor(np.array([[color]], np.float32) / 255, cv2.COLOR_RGB2LAB)[0, 0].tolist()
    return _highdicom().color.CIELabColor(
        min(max(lightness, 0.0), 100.0), min(max(a, -128.0), 127.0), min(max(b, -128.0), 127.0)
    )


def _code_string(text: str) -> str:
    """Convert a text to the characters of CS: upper case, digits, space and underscore."""
    return re.sub(r"[^A-Z0-9_ ]", "_", text.upper())[:SHORT]


def _positions(source: DicomSource, headers: list[Dataset]) -> list[list[float]]:
    """Return the position of each slice as its image states it; that of a frame follows from the grid."""
    origins = source.grid.points_at(np.array([(0, 0, step) for step in source.grid.steps], float))
    return [
        [float(mm) for mm in (header.ImagePositionPatient if frame is None else origin)]
        for header, frame, origin in zip(headers, source.frames, origins, strict=True)
    ]


def _stand_ins(
    headers: list[Dataset], positions: list[list[float]], orientation: list[float], measures: Dataset
) -> Iterator[Dataset]:
    """Yield an image per slice in the form that highdicom requires: single frames of one series, nothing missing.

    Each has a SOPInstanceUID of its own, which references to the images replace afterwards; `_restore` sets the rest.
    """
    for header, position in zip(headers, positions, strict=True):
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID, image.Modality = MRImageStorage, generate_uid(), "MR"
        image.StudyInstanceUID, image.SeriesInstanceUID = header.StudyInstanceUID, headers[0].SeriesInstanceUID
        image.FrameOfReferenceUID = headers[0].FrameOfReferenceUID
        image.PositionReferenceIndicator = header.get("PositionReferenceIndicator", "")
        image.Rows, image.Columns = header.Rows, header.Columns
        image.PixelSpacing, image.SliceThickness = measures.PixelSpacing, measures.SliceThickness
        image.ImagePositionPatient = [DSfloat(mm, auto_format=True) for mm in position]
        image.ImageOrientationPatient = [DSfloat(cosine, auto_format=True) for cosine in orientation]
        for name in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if header.get(name):
                setattr(image, name, header[name].value)
        for name in (*OF_PATIENT, *OF_STUDY):
            setattr(image, name, "")
        yield image


def _restore(dataset: Dataset, headers: list[Dataset], origin: Origin, labels: LabelSet) -> None:
    """Set what the stand-ins left out: patient, study, and the series of each image."""
    for name in (*OF_PATIENT, *OF_STUDY):
        setattr(dataset, name, headers[0].get(name, ""))
    if characters := character_set(headers[0], *label_texts(labels), origin.text):
        dataset.SpecificCharacterSet = characters
    dataset.ReferencedSeriesSequence = []
    for uid, images in by_series(headers):
        item = Dataset()
        item.SeriesInstanceUID, item.ReferencedInstanceSequence = uid, images
        dataset.ReferencedSeriesSequence.append(item)


def _highdicom() -> Any:
    try:
        import highdicom
        import highdicom.color
        import highdicom.seg
    except ModuleNotFoundError as error:
        missing = error.name or "highdicom"
        raise DependencyError(f"the package {missing} is missing; pip install 'gitseg-tf[seg]'") from None
    return highdicom
