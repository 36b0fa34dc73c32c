"""Read DICOM files as they come: without preamble, with empty or malformed attributes, or truncated."""

import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from gitseg_tf.core.text import plural
from gitseg_tf.errors import DataError, first_line

_PADDING = " \0"
_UNDEFINED = 0xFFFFFFFF
_DELIMITERS, _ITEM_END, _SEQUENCE_END = 0xFFFE, 0xFFFEE00D, 0xFFFEE0DD
_LONG_LENGTH = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
# What pydicom raises while it parses a value that does not have its format.
MALFORMED = (
    *(ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError, NotImplementedError),
    *(EOFError, OSError, struct.error),
)


def starts_like_dicom(path: Path) -> bool:
    """Check whether a file starts with DICOM's preamble or, as some planning systems write it, with its first group."""
    with open(path, "rb") as file:
        start = file.read(132)
    # Without a preamble: group 0008 in little endian, a low element, and a value representation or a short length.
    return start[128:] == b"DICM" or (
        start[:2] == b"\x08\x00" and start[3:4] == b"\x00" and (start[4:6].isalpha() or start[5:8] == b"\x00\x00\x00")
    )


def read_dicom(path: Path, **options) -> pydicom.Dataset:
    """Read a DICOM file, with or without preamble.

    Args:
        path: the file.
        options: passed to pydicom.dcmread.

    Raises:
        DataError: not a DICOM file, or a damaged one.
    """
    try:
        try:
            dataset = pydicom.dcmread(path, **options)
        except InvalidDicomError:
            if not starts_like_dicom(path):
                raise
            dataset = pydicom.dcmread(path, force=True, **options)
        if "TransferSyntaxUID" not in dataset.file_meta:  # a file without preamble; needed to decode pixels
            implicit, little = dataset.original_encoding
            explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
        return dataset
    except (InvalidDicomError, zlib.error, *MALFORMED) as error:
        raise DataError(f"{path}: cannot be read as DICOM ({first_line(error)}); copy the file again") from None


def text(header: pydicom.Dataset, name: str) -> str:
    """Return an attribute as text without padding; "" if it is missing, empty or malformed."""
    try:
        value = header.get(name)
    except MALFORMED:
        return ""
    if isinstance(value, MultiValue):
        value = "\\".join(map(str, value))
    return "" if value is None else str(value).strip(_PADDING)


def items(header: pydicom.Dataset, name: str) -> list[pydicom.Dataset]:
    """Return the items of a sequence; none if it is missing, empty or malformed."""
    try:
        value = header.get(name)
    except MALFORMED:
        return []
    return list(value) if isinstance(value, pydicom.Sequence) else []


def numbers(path: Path, header: pydicom.Dataset, name: str, count: int) -> np.ndarray:
    """Read a required numeric attribute: float [count].

    Raises:
        DataError: the attribute is missing, empty or malformed, or has another number of values.
    """
    values = _values(path, header, name)
    if values is None:
        why = f"is truncated before {name}; copy it again" if is_truncated(path) else None
        raise DataError(f"{path}: {why or f'has no {name}, which is required; export the series again'}")
    if len(values) != count:
        raise DataError(f"{path}: {name} must have {plural(count, 'value')}, got {len(values)}; export it again")
    return values


def number_or(path: Path, header: pydicom.Dataset, name: str, default: float) -> float:
    """Read an optional numeric attribute with one value; the default if it is missing or empty.

    Raises:
        DataError: the attribute is malformed or has several values.
    """
    return default if _values(path, header, name) is None else float(numbers(path, header, name, 1)[0])


def _values(path: Path, header: pydicom.Dataset, name: str) -> np.ndarray | None:
    try:
        value = header.get(name)
        listed = list(value) if isinstance(value, MultiValue) else [value]
        if all(part is None or str(part).strip(_PADDING) == "" for part in listed):
            return None
        values = np.array([float(part) for part in listed])
        if not np.isfinite(values).all():
            raise ValueError
        return values
    except MALFORMED:
        raw = header.get_item(name)
        value = getattr(raw, "value", "")
        shown = value.decode("latin-1").strip(_PADDING) if isinstance(value, bytes) else str(value)
        raise DataError(f"{path}: {name} is not a number ({shown[:40]!r}); export it again") from None


def is_truncated(path: Path) -> bool:
    """Check whether a DICOM file ends within an element, which pydicom does not always report.

    A deflated file is never reported here, because its compression detects it.
    """
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            syntax = _syntax(file)
            if syntax != DeflatedExplicitVRLittleEndian:
                order = ">" if syntax == ExplicitVRBigEndian else "<"
                _skip_elements(file, order, syntax != ImplicitVRLittleEndian, size)
        return False
    except (EOFError, struct.error):
        return True


def _syntax(file: BinaryIO) -> str:
    """Read the transfer syntax, and move to the first element after the file meta information."""
    start = file.read(132)
    if start[128:] != b"DICM":
        file.seek(0)
        return ExplicitVRLittleEndian if start[4:6].isalpha() else ImplicitVRLittleEndian
    syntax = ""
    while True:
        at = file.tell()
        tag, _, length = _element(file, "<", explicit=True)
        if tag >> 16 != 2:
            file.seek(at)
            return syntax
        value = file.read(length)
        if tag == 0x00020010:
            syntax = value.decode("ascii", "replace").strip(_PADDING)


def _skip_elements(file: BinaryIO, order: str, explicit: bool, end: int, nested: bool = False) -> None:
    """Skip elements up to `end`, or to the delimiter of an item; EOFError if the last one is cut off."""
    while nested or file.tell() < end:
        if not nested and end - file.tell() < 8 and not file.read().strip(b"\0"):
            return  # padding
        tag, kind, length = _element(file, order, explicit)
        if nested and tag == _ITEM_END:
            return
        if length != _UNDEFINED:
            file.seek(length, os.SEEK_CUR)
        else:
            _skip_items(file, order, explicit and kind != b"UN", end)
        if file.tell() > end:
            raise EOFError


def _skip_items(file: BinaryIO, order: str, explicit: bool, end: int) -> None:
    while True:
        tag, _, length = _element(file, order, explicit)
        if tag == _SEQUENCE_END:
            return
        if length == _UNDEFINED:
            _skip_elements(file, order, explicit, end, nested=True)
        else:
            file.seek(length, os.SEEK_CUR)


def _element(file: BinaryIO, order: str, explicit: bool) -> tuple[int, bytes, int]:
    """Read the tag, the value representation (b"" if implicit) and the length of an element or an item."""
    group, element = struct.unpack(f"{order}HH", file.read(4))
    tag, kind = group << 16 | element, b""
    if explicit and group != _DELIMITERS:
        kind = file.read(2)
        if kind not in _LONG_LENGTH:
            return tag, kind, struct.unpack(f"{order}H", file.read(2))[0]
        file.read(2)
    return tag, kind, struct.unpack(f"{order}L", file.read(4))[0]
