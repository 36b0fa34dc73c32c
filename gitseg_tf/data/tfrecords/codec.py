"""Encoding and decoding of tf.train.Example and TFRecord files without importing TensorFlow."""

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

import google_crc32c
import numpy as np

_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3


def encode_example(features: Mapping[str, bytes | np.ndarray]) -> bytes:
    """Serialize a tf.train.Example.

    Args:
        features: name to value. Bytes, or the memory of a contiguous unsigned array, become a bytes_list with one item,
            float32 [N] a float_list, int64 [N] an int64_list.

    Returns:
        The bytes, with the features sorted by name (protobuf's own order depends on its version).

    Source: tensorflow/core/example/example.proto, feature.proto; https://protobuf.dev/programming-guides/encoding/
    """
    entries = [part for name in sorted(features) for part in _entry(name, features[name])]
    return b"".join(_field(1, entries))


def _entry(name: str, value: Any) -> list:
    kind = value.dtype.kind if isinstance(value, np.ndarray) else "bytes"
    if kind == "f":
        number, items = _FLOAT_LIST, _packed([value.astype("<f4").tobytes()])
    elif kind == "i":
        number, items = _INT64_LIST, _packed([_varint(int(item)) for item in value])
    else:
        number, items = _BYTES_LIST, _field(1, [memoryview(value).cast("B")])
    return _field(1, [*_field(1, [name.encode()]), *_field(2, _field(number, items))])


def _packed(items: list) -> list:
    return _field(1, items) if any(items) else []


def _field(number: int, parts: list) -> list:
    return [_varint(number << 3 | 2) + _varint(sum(map(len, parts))), *parts]


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


class RecordWriter:
    """Writes records to a TFRecord file and keeps track of its size and CRC-32.

    Args:
        file: opened for writing bytes; the caller closes it.

    Source: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
    """

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._crc = 0
        self.size = 0

    @property
    def crc32(self) -> str:
        """CRC-32 of the bytes written so far, eight hexadecimal digits."""
        return f"{self._crc:08x}"

    def write(self, record: bytes) -> None:
        """Append a record with its length and checksums."""
        length = struct.pack("<Q", len(record))
        for part in (length, _masked_crc32c(length), record, _masked_crc32c(record)):
            self._file.write(part)
            self._crc = zlib.crc32(part, self._crc)
            self.size += len(part)


def read_record(file: IO[bytes], number: int) -> bytes:
    """Read one record of a TFRecord file, skipping those before it.

    Args:
        file: opened for reading bytes.
        number: index of the record, from 0.

    Returns:
        The record.

    Raises:
        ValueError: the record is truncated or missing, or a checksum does not match.
    """
    for n, size in enumerate(_lengths(file)):
        if n == number:
            record, check = file.read(size), file.read(4)
            if _masked_crc32c(record) != check:
                raise ValueError(f"the checksum of record {number} does not match")
            return record
    raise ValueError(f"the length of record {number} is damaged")


def check_lengths(file: IO[bytes]) -> None:
    """Check the lengths of all records of a TFRecord file, without reading the records.

    TensorFlow allocates memory for the length of a record before it looks at the size of the file, and ends the process
    if there is not enough.

    Args:
        file: opened for reading bytes.

    Raises:
        ValueError: a length is damaged, or larger than the rest of the file.
    """
    for _ in _lengths(file):
        pass


def _lengths(file: IO[bytes]) -> Iterator[int]:
    """Yield the length of each record; the file is then at its start."""
    file.seek(0, 2)
    end = file.tell()
    n = start = 0
    while start < end:
        file.seek(start)
        length, check = file.read(8), file.read(4)
        if len(check) < 4 or _masked_crc32c(length) != check:
            raise ValueError(f"the length of record {n} is damaged")
        (size,) = struct.unpack("<Q", length)
        if size + 16 > end - start:
            raise ValueError(f"record {n} is damaged: it is truncated")
        yield size
        n, start = n + 1, start + size + 16


def decode_example(record: bytes) -> dict[str, Any]:
    """Read a serialized tf.train.Example, the inverse of `encode_example`.

    Args:
        record: the bytes, with packed numbers as in protobuf 3.

    Returns:
        Name to value: bytes for a bytes_list with one item, float32 [N] for a float_list, int64 [N] for an int64_list.

    Raises:
        ValueError: not an Example, or one with other kinds of features.
    """
    (features,) = (value for _, value in _fields(memoryview(record)))
    return dict(_decode_entry(entry) for _, entry in _fields(features))


def _decode_entry(entry: memoryview) -> tuple[str, bytes | np.ndarray]:
    parts = dict(_fields(entry))
    if parts.keys() != {1, 2}:
        raise ValueError("a feature lacks its name or its value")
    ((kind, items),) = _fields(parts[2])
    values = [value for _, value in _fields(items)]
    packed = values[0] if values else b""
    value: bytes | np.ndarray
    if kind == _BYTES_LIST:
        value = bytes(packed)
    elif kind == _FLOAT_LIST:
        value = np.frombuffer(packed, "<f4")
    else:
        value = np.array(list(_varints(packed)), np.uint64).astype(np.int64)
    return bytes(parts[1]).decode(), value


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        if tag & 7 != 2:
            raise ValueError(f"wire type {tag & 7} does not occur in an Example")
        size, position = _read_varint(message, position)
        if position + size > len(message):
            raise ValueError("a field is truncated")
        yield tag >> 3, message[position : position + size]
        position += size


def _varints(packed) -> Iterator[int]:
    position = 0
    while position < len(packed):
        value, position = _read_varint(packed, position)
        yield value


def _read_varint(data, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError("a number is truncated")
        value |= (data[position] & 127) << shift
        position, shift = position + 1, shift + 7
        if data[position - 1] < 128:
            return value & (1 << 64) - 1, position


def _masked_crc32c(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
