"""Reading slices from PNG files."""

import zlib

import cv2
import numpy as np

from gitseg_tf.core.paths import AnyPath
from gitseg_tf.core.text import plural
from gitseg_tf.errors import DataError

_PNG_START = b"\x89PNG\r\n\x1a\n"
_MOST_PIXELS_PER_BYTE = 1100  # deflate makes nothing smaller than by a factor of 1032, and slices have 8 or 16 bits


def read_png(path: AnyPath, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Decode a grayscale PNG of 8 or 16 bits.

    Args:
        path: the file.
        shape: the required (height, width); None accepts any.

    Returns:
        uint8 or uint16 [H, W].

    Raises:
        DataError: the file is truncated, not grayscale, or of another shape.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    _check_png(path, data)
    height, width = png_size(data) or (0, 0)
    if height * width > _MOST_PIXELS_PER_BYTE * len(data):
        raise DataError(f"{path}: is too small for the {width} x {height} pixels in its header; copy the file again")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # larger than OpenCV supports
        image = None
    if image is None:
        raise DataError(f"{path}: the PNG is damaged; copy the file again")
    channels = plural(image.shape[2] if image.ndim > 2 else 1, "channel")
    if image.ndim != 2 or image.dtype not in (np.uint8, np.uint16):
        raise DataError(
            f"{path}: has {channels} with {image.dtype} values; a slice must be grayscale with 8 or 16 bits"
        )
    if shape is not None and image.shape != tuple(shape):
        raise DataError(
            f"{path}: the image is {image.shape[1]} wide and {image.shape[0]} high, but its name says "
            f"{shape[1]} wide and {shape[0]} high; fix the name or the image"
        )
    return image


def png_size(data: bytes) -> tuple[int, int] | None:
    """Read the size from the header of a PNG: (height, width); None if there is no header."""
    if len(data) < 24 or not data.startswith(_PNG_START) or data[12:16] != b"IHDR":
        return None
    return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")


def _check_png(path: AnyPath, data: bytes) -> None:
    """Check all chunks and checksums, because decoders only warn about damage, or return half an image."""
    if not data.startswith(_PNG_START):
        raise DataError(f"{path}: is not a PNG; replace the file")
    start, kind = len(_PNG_START), b""
    while kind != b"IEND":
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if end > len(data):
            raise DataError(f"{path}: the PNG is truncated after {len(data)} bytes; copy the file again")
        kind = data[start + 4 : start + 8]
        if zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise DataError(f"{path}: the PNG is damaged at byte {start}; copy the file again")
        start = end
