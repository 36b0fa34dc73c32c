"""tf.train.Example and TFRecord files in bytes, for writers that need not wait for TensorFlow to be imported."""

import struct
import zlib
from collections.abc import Mapping
from typing import IO

import google_crc32c
import numpy as np

_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3


def encode_example(features: Mapping[str, bytes | np.ndarray]) -> bytes:
    """Serialize a tf.train.Example.

    Args:
        features: name to value: bytes, or a contiguous unsigned array whose memory is taken as bytes, make a bytes_list
            of one; float32 [N] makes a float_list; int64 [N] makes an int64_list.

    Returns:
        The bytes, the features in the order of their names (protobuf's own order depends on its version).

    Source: tensorflow/core/example/example.proto, feature.proto; https://protobuf.dev/programming-guides/encoding/
    """
    entries = [part for name in sorted(features) for part in _entry(name, features[name])]
    return b"".join(_field(1, entries))


def _entry(name: str, value: bytes | np.ndarray) -> list:
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
    """Writes records to a TFRecord file and knows its size and CRC-32 without reading it back.

    Args:
        file: open for writing bytes; the caller closes it.

    Source: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
    """

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._crc = 0
        self.size = 0

    @property
    def crc32(self) -> str:
        """CRC-32 of the file so far, eight hexadecimal digits."""
        return f"{self._crc:08x}"

    def write(self, record: bytes) -> None:
        """Append a record with its lengths and checksums."""
        length = struct.pack("<Q", len(record))
        for part in (length, _masked_crc32c(length), record, _masked_crc32c(record)):
            self._file.write(part)
            self._crc = zlib.crc32(part, self._crc)
            self.size += len(part)


def _masked_crc32c(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
