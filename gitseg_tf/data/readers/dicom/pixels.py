"""Decode the pixels of DICOM images, and convert stored values to the image's units."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, get_decoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from gitseg_tf.data.readers.dicom.files import MALFORMED, is_truncated, items, number_or, read_dicom, text
from gitseg_tf.data.readers.dicom.slices import functional_group
from gitseg_tf.errors import DataError, DependencyError, first_line

_UNCOMPRESSED = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)


def read_pixels(path: Path, frames: Sequence[int | None]) -> np.ndarray:
    """Read slices of a file, with slope and intercept applied.

    Args:
        path: the file.
        frames: 0-based frames; [None] for a single-frame file.

    Returns:
        int32 or float32 [len(frames), rows, columns]; int32 if all values are integers.

    Raises:
        DataError: the pixels are missing, truncated or damaged.
        DependencyError: no decoder is installed for the file's compression.
    """
    dataset = read_dicom(path)
    stored = _decode(path, dataset)
    if frames == [None]:
        return _compact(_to_units(path, dataset, dataset, stored))[None]
    if stored.ndim == 2:
        stored = stored[None]
    return np.stack([_compact(_to_units(path, dataset, _transformation(dataset, i or 0), stored[i])) for i in frames])


def _decode(path: Path, dataset: pydicom.Dataset) -> np.ndarray:
    syntax = UID(text(dataset.file_meta, "TransferSyntaxUID"))
    if "PixelData" not in dataset:
        why = "is truncated; copy it again" if is_truncated(path) else "has no pixels; export it again"
        raise DataError(f"{path}: {why}")
    if syntax not in _UNCOMPRESSED:
        try:
            available = get_decoder(syntax).is_available
        except NotImplementedError:
            kind = syntax.name or "an empty transfer syntax"
            raise DataError(f"{path}: {kind} is not supported; export it uncompressed") from None
        if not available:
            raise DependencyError(f"{path}: decoding {syntax.name} requires pip install 'gitseg-tf[dicom]'")
    for name, default in (("PhotometricInterpretation", "MONOCHROME2"), ("SamplesPerPixel", 1)):
        if not text(dataset, name):
            setattr(dataset, name, default)  # pydicom requires both
    try:
        stored = dataset.pixel_array
    except (RuntimeError, EOFError, *MALFORMED) as error:
        raise DataError(f"{path}: its pixels cannot be read ({_reason(error)}); copy the file again") from None
    size, shape = (int(dataset.Rows), int(dataset.Columns)), stored.shape
    if shape[-2:] != size or stored.ndim > 3:
        raise DataError(f"{path}: has pixels of shape {shape}, not {size}; slices must be grayscale (MONOCHROME2)")
    return stored


def _reason(error: Exception) -> str:
    """Return the last line of an error: where several decoders fail, the first one does not say why."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def _transformation(dataset: pydicom.Dataset, frame: int) -> pydicom.Dataset:
    group = functional_group(dataset, frame, "PixelValueTransformationSequence")
    return group if len(group) else dataset


def _to_units(path: Path, dataset: pydicom.Dataset, rescale: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
    if items(dataset, "ModalityLUTSequence"):
        try:
            return apply_modality_lut(stored, dataset)
        except MALFORMED as error:
            raise DataError(f"{path}: its lookup table cannot be read ({first_line(error)}); export it again") from None
    slope = number_or(path, rescale, "RescaleSlope", 1.0)
    intercept = number_or(path, rescale, "RescaleIntercept", 0.0)
    if slope == 0:
        raise DataError(f"{path}: RescaleSlope is 0, which makes all intensities the same; export it again")
    return stored if (slope, intercept) == (1.0, 0.0) else stored * slope + intercept


def _compact(pixels: np.ndarray) -> np.ndarray:
    """Convert rescaled pixels, which are float64, to a type of half the size."""
    whole = pixels.dtype.kind != "f" or bool((pixels == np.rint(pixels)).all())
    return pixels.astype(np.int32 if whole and np.abs(pixels).max(initial=0) < 2**31 else np.float32)
