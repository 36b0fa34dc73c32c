"""A scan as a tf.train.Example, both ways. See tfrecords/README.md."""

import zlib

import cv2
import numpy as np

from gitseg_tf.data.scans import ORGANS, Scan
from gitseg_tf.data.tfrecord import decode_example, encode_example

PERCENTILES = (0, 0.5, 1, 5, 25, 50, 75, 95, 99, 99.5, 100)


def serialize_scan(scan: Scan, image: np.ndarray, masks: np.ndarray | None) -> bytes:
    """Write a scan as a serialized tf.train.Example.

    Args:
        scan: its id and geometry.
        image: uint16 [D, H, W].
        masks: bool [3, D, H, W] in the order of ORGANS, or None for a scan without contours.

    Returns:
        The bytes of the Example; the features are listed in tfrecords/README.md.
    """
    features = {
        "scan/id": scan.id.encode(),
        "scan/case": scan.case.encode(),
        "scan/shape": np.array(image.shape, np.int64),
        "scan/spacing": np.array(scan.spacing, np.float32),
        "slice/numbers": np.array(scan.numbers, np.int64),
        "image/voxels": np.ascontiguousarray(image, "<u2"),
        "image/percentiles": intensity_percentiles(image),
    }
    if masks is not None:
        features["mask/bits"] = zlib.compress(pack_masks(masks), 1)
    return encode_example(features)


def parse_scan(record):
    """Read an Example back, in a tf.data graph or eagerly.

    Args:
        record: scalar string tensor.

    Returns:
        dict of tensors: id and case (string), numbers (int64 [D]), image (uint16 [D, H, W]), bits (uint8 [D, H, W],
        bit k is organ k of ORGANS; all zero without contours), spacing (float32 [3], z, y, x in mm), percentiles
        (float32 [11]).
    """
    import tensorflow as tf

    fields = tf.io.parse_single_example(
        record,
        {
            "scan/id": tf.io.FixedLenFeature([], tf.string),
            "scan/case": tf.io.FixedLenFeature([], tf.string),
            "scan/shape": tf.io.FixedLenFeature([3], tf.int64),
            "scan/spacing": tf.io.FixedLenFeature([3], tf.float32),
            "slice/numbers": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
            "image/voxels": tf.io.FixedLenFeature([], tf.string),
            "image/percentiles": tf.io.FixedLenFeature([len(PERCENTILES)], tf.float32),
            "mask/bits": tf.io.FixedLenFeature([], tf.string, default_value=""),
        },
    )
    shape = fields["scan/shape"]
    packed = fields["mask/bits"]
    bits = tf.cond(
        tf.strings.length(packed) > 0,
        lambda: tf.reshape(tf.io.decode_raw(tf.io.decode_compressed(packed, "ZLIB"), tf.uint8), shape),
        lambda: tf.zeros(shape, tf.uint8),
    )
    return {
        "id": fields["scan/id"],
        "case": fields["scan/case"],
        "numbers": fields["slice/numbers"],
        "image": tf.reshape(tf.io.decode_raw(fields["image/voxels"], tf.uint16), shape),
        "bits": bits,
        "spacing": fields["scan/spacing"],
        "percentiles": fields["image/percentiles"],
    }


def decode_scan(record: bytes) -> dict:
    """Read an Example back without TensorFlow.

    Args:
        record: from `serialize_scan`.

    Returns:
        dict as `parse_scan` gives, of numpy arrays and strings.

    Raises:
        ValueError: the record is damaged, or is none of a scan.
    """
    fields = decode_example(record)
    try:
        shape = fields["scan/shape"]
        packed = fields.get("mask/bits", b"")
        bits = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(shape) if packed else np.zeros(shape, np.uint8)
        return {
            "id": fields["scan/id"].decode(),
            "case": fields["scan/case"].decode(),
            "numbers": fields["slice/numbers"],
            "image": np.frombuffer(fields["image/voxels"], "<u2").reshape(shape),
            "bits": bits,
            "spacing": fields["scan/spacing"],
            "percentiles": fields["image/percentiles"],
        }
    except KeyError as error:
        raise ValueError(f"the feature {error} is missing") from None
    except zlib.error as error:
        raise ValueError(f"the masks are damaged ({error})") from None


def pack_masks(masks: np.ndarray) -> np.ndarray:
    """Pack bool [3, D, H, W] into uint8 [D, H, W]: bit k is organ k."""
    bits = np.zeros(masks.shape[1:], np.uint8)
    # Plane by plane, for that stays in the processor's cache, and half of the planes are empty.
    for k, z in np.argwhere(masks.any((2, 3))).tolist():
        bits[z] |= masks[k, z].view(np.uint8) << k
    return bits


def unpack_masks(bits: np.ndarray) -> np.ndarray:
    """Unpack uint8 [...] into bool [3, ...], the inverse of `pack_masks`."""
    return np.stack([(bits >> k) & 1 for k in range(len(ORGANS))]).astype(bool)


def intensity_percentiles(image: np.ndarray) -> np.ndarray:
    """Percentiles of a scan's intensities.

    Args:
        image: uint16, any shape.

    Returns:
        float32 [11], at PERCENTILES: the lowest intensity that at least that share of the voxels does not exceed
        (numpy's method "inverted_cdf").
    """
    counts = np.zeros(int(image.max()) + 1, np.int64)
    # calcHist counts in float32, which is exact up to 2^24.
    for part in np.split(image.ravel(), range(1 << 23, image.size, 1 << 23)):
        counts += cv2.calcHist([part[None]], [0], None, [counts.size], [0, counts.size]).ravel().astype(np.int64)
    below = np.cumsum(counts)
    ranks = np.maximum(np.ceil(np.array(PERCENTILES) / 100 * image.size), 1)
    return np.searchsorted(below, ranks).astype(np.float32)
