"""Conversion between scans and tf.train.Example. See tfrecords/README.md."""

import math
import zlib

import numpy as np

from gitseg_tf.data.tfrecords.codec import decode_example, encode_example
from gitseg_tf.data.volume import PERCENTILES, Annotation, LoadedScan, PseudoLabels, Volume
from gitseg_tf.labels import LabelSet

# The dtypes of stored voxels; `parse_scan` converts them to float32, `decode_scan` keeps them.
DTYPES = ("uint16", "int16", "float32")


def serialize_scan(
    scan_id: str,
    case: str,
    *,
    volume: Volume,
    annotation: Annotation | None,
    labels: LabelSet,
    pseudo: PseudoLabels | None = None,
) -> bytes:
    """Serialize a scan as a tf.train.Example.

    Args:
        scan_id, case: ids of the scan and its patient.
        volume: voxels of one of DTYPES.
        annotation: its masks in the order of `labels`, or None.
        labels: the labels of the dataset.
        pseudo: predictions for labels that are not annotated, or None.

    Returns:
        The serialized Example; tfrecords/README.md lists its features.
    """
    voxels = np.ascontiguousarray(np.moveaxis(volume.with_channels, -1, 0))
    annotated = np.zeros(len(labels), bool) if annotation is None else annotation.annotated
    features: dict[str, bytes | np.ndarray] = {
        "scan/id": scan_id.encode(),
        "scan/case": case.encode(),
        "scan/shape": np.array(volume.shape, np.int64),
        "scan/spacing": np.array(volume.spacing, np.float32),
        "slice/numbers": np.array(volume.numbers, np.int64),
        "image/channels": np.array([volume.channels], np.int64),
        "image/dtype": voxels.dtype.name.encode(),
        "image/voxels": voxels.astype(voxels.dtype.newbyteorder("<"), copy=False).view(np.uint8),
        "image/percentiles": volume.percentiles.ravel(),
        "image/moments": volume.moments.ravel(),
        "mask/annotated": annotated.astype(np.uint8),
    }
    known = [part.masks for part in (annotation, pseudo) if part is not None]
    if known:
        features["mask/bits"] = _deflate(known[0] if len(known) == 1 else known[0] | known[1])
    if annotation is not None and annotation.ignore is not None:
        features["mask/ignore"] = zlib.compress(annotation.ignore.astype(np.uint8).data, 1)
    if pseudo is not None:
        features["mask/pseudo"] = pseudo.labels.astype(np.uint8)
        features["mask/uncertain"] = _deflate(pseudo.uncertain)
    return encode_example(features)


def _deflate(masks: np.ndarray) -> bytes:
    return zlib.compress(np.ascontiguousarray(np.moveaxis(pack_masks(masks), -1, 0)).data, 1)


def parse_scan(record, *, pseudo: bool = False, teacher: bool = False):
    """Parse a serialized scan, in a tf.data graph or eagerly.

    Args:
        record: scalar string tensor.
        pseudo: also return pseudo-labels, which a scan of the dataset may have.
        teacher: also parse the probabilities of a teacher.

    Returns:
        dict of tensors: id and case (string), numbers (int64 [D]), spacing (float32 [3], z, y, x in mm), image (float32
        [D, H, W, C]), percentiles (float32 [C, 11]), moments (float32 [C, 2]: mean and standard deviation), bits (uint8
        [D, H, W, G]: bit k % 8 of byte k // 8 is label k), annotated (bool [L]) and ignore (bool [D, H, W]). With
        `pseudo` also pseudo (bool [L], the labels whose bits are predictions) and uncertain (as bits: the voxels that
        do not count for a label). With `teacher`, teacher (uint8 [D, H, W, T]): bit 4 k + i is set where its
        probability of label k reaches (2 i + 1) / 8.
    """
    import tensorflow as tf

    more = {"teacher/bits": tf.io.FixedLenFeature([], tf.string)} if teacher else {}
    fields = tf.io.parse_single_example(
        record,
        more
        | {
            "scan/id": tf.io.FixedLenFeature([], tf.string),
            "scan/case": tf.io.FixedLenFeature([], tf.string),
            "scan/shape": tf.io.FixedLenFeature([3], tf.int64),
            "scan/spacing": tf.io.FixedLenFeature([3], tf.float32),
            "slice/numbers": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
            "image/channels": tf.io.FixedLenFeature([], tf.int64),
            "image/dtype": tf.io.FixedLenFeature([], tf.string),
            "image/voxels": tf.io.FixedLenFeature([], tf.string),
            "image/percentiles": tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True),
            "image/moments": tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True),
            "mask/annotated": tf.io.FixedLenFeature([], tf.string),
            "mask/bits": tf.io.FixedLenFeature([], tf.string, default_value=""),
            "mask/ignore": tf.io.FixedLenFeature([], tf.string, default_value=""),
            "mask/pseudo": tf.io.FixedLenFeature([], tf.string, default_value=""),
            "mask/uncertain": tf.io.FixedLenFeature([], tf.string, default_value=""),
        },
    )
    shape, channels = fields["scan/shape"], fields["image/channels"]
    annotated = tf.cast(tf.io.decode_raw(fields["mask/annotated"], tf.uint8), tf.bool)
    groups = (tf.size(annotated, tf.int64) + 7) // 8

    def voxels_of(name):
        return lambda: tf.cast(tf.io.decode_raw(fields["image/voxels"], tf.as_dtype(name)), tf.float32)

    def last(flat, count):
        """Reshape flat [count, D, H, W] to [D, H, W, count]; a count of 1 needs no transpose."""
        return tf.cond(
            tf.equal(count, 1),
            lambda: tf.reshape(flat, tf.concat([shape, [count]], 0)),
            lambda: tf.transpose(tf.reshape(flat, tf.concat([[count], shape], 0)), [1, 2, 3, 0]),
        )

    def unpacked(packed, count):
        return tf.cond(
            tf.strings.length(packed) > 0,
            lambda: tf.io.decode_raw(tf.io.decode_compressed(packed, "ZLIB"), tf.uint8),
            lambda: tf.zeros(tf.reduce_prod(shape) * count, tf.uint8),
        )

    kind = tf.argmax(tf.equal(fields["image/dtype"], list(DTYPES)), output_type=tf.int32)
    image = tf.switch_case(kind, [voxels_of(name) for name in DTYPES])
    scan = {}
    if pseudo:
        predicted = tf.io.decode_raw(fields["mask/pseudo"], tf.uint8)  # empty in a scan without pseudo-labels
        predicted = tf.pad(predicted, [[0, tf.size(annotated) - tf.size(predicted)]])
        uncertain = last(unpacked(fields["mask/uncertain"], groups), groups)
        scan = {"pseudo": tf.cast(predicted, tf.bool), "uncertain": tf.ensure_shape(uncertain, [None] * 4)}
    scan |= {
        "id": fields["scan/id"],
        "case": fields["scan/case"],
        "numbers": fields["slice/numbers"],
        "spacing": fields["scan/spacing"],
        "image": tf.ensure_shape(last(image, channels), [None] * 4),
        "percentiles": tf.reshape(fields["image/percentiles"], [-1, len(PERCENTILES)]),
        "moments": tf.reshape(fields["image/moments"], [-1, 2]),
        "bits": tf.ensure_shape(last(unpacked(fields["mask/bits"], groups), groups), [None] * 4),
        "annotated": annotated,
        "ignore": tf.reshape(unpacked(fields["mask/ignore"], 1), shape) > 0,
    }
    if teacher:
        groups = (tf.size(annotated, tf.int64) * 4 + 7) // 8
        scan["teacher"] = tf.ensure_shape(last(unpacked(fields["teacher/bits"], groups), groups), [None] * 4)
    return scan


def decode_scan(record: bytes) -> LoadedScan:
    """Parse a serialized scan without TensorFlow.

    Args:
        record: from `serialize_scan`.

    Returns:
        The scan, with voxels of the stored dtype.

    Raises:
        ValueError: the record is damaged or not a scan.
    """
    fields = decode_example(record)
    try:
        depth, height, width = shape = tuple(map(int, fields["scan/shape"]))
        channels, dtype = int(fields["image/channels"][0]), fields["image/dtype"].decode()
        if dtype not in DTYPES:
            raise ValueError(f"unsupported voxel type {dtype}")
        stored = np.dtype(dtype).newbyteorder("<")
        voxels = np.frombuffer(fields["image/voxels"], stored).reshape(channels, *shape)
        # Spacing is stored as float32: round 1.6299999 to 1.63.
        z, y, x = (float(f"{value:.6g}") for value in fields["scan/spacing"])
        volume = Volume(
            voxels[0] if channels == 1 else np.moveaxis(voxels, 0, -1),
            (z, y, x),
            tuple(map(int, fields["slice/numbers"])),
            stored_statistics=(
                fields["image/percentiles"].reshape(channels, len(PERCENTILES)),
                fields["image/moments"].reshape(channels, 2),
            ),
        )
        annotated = np.frombuffer(fields["mask/annotated"], np.uint8).astype(bool)
        predicted = np.frombuffer(fields.get("mask/pseudo", bytes(len(annotated))), np.uint8).astype(bool)
        annotation, pseudo = _masks(fields, annotated, predicted, (depth, height, width))
        scan_id, case = fields["scan/id"].decode(), fields["scan/case"].decode()
        return LoadedScan(scan_id, case, volume, annotation, pseudo=pseudo)
    except KeyError as error:
        raise ValueError(f"the feature {error} is missing") from None
    except (AttributeError, TypeError, IndexError, OverflowError) as error:
        raise ValueError(f"a feature has another type or size ({error})") from None
    except zlib.error as error:
        raise ValueError(f"the masks are damaged ({error})") from None


def pack_masks(masks: np.ndarray) -> np.ndarray:
    """Pack bool [L, D, H, W] into uint8 [D, H, W, G] with G = ceil(L / 8): bit k % 8 of byte k // 8 is label k."""
    groups = np.zeros((-(-len(masks) // 8), *masks.shape[1:]), np.uint8)
    # Plane by plane, because a plane fits into the CPU cache and many planes are empty.
    for k, z in np.argwhere(masks.any((2, 3))).tolist():
        groups[k // 8, z] |= masks[k, z].view(np.uint8) << (k % 8)
    return np.moveaxis(groups, 0, -1)


def unpack_masks(bits: np.ndarray, count: int) -> np.ndarray:
    """Unpack uint8 [..., G] into bool [count, ...], the inverse of `pack_masks`."""
    return np.stack([(bits[..., k // 8] >> (k % 8)) & 1 for k in range(count)]).astype(bool)


def _masks(
    fields: dict, annotated: np.ndarray, predicted: np.ndarray, shape: tuple[int, int, int]
) -> tuple[Annotation | None, PseudoLabels | None]:
    """Separate what was annotated from what was predicted."""
    if predicted.shape != annotated.shape or (predicted & annotated).any():
        raise ValueError("mask/pseudo does not fit mask/annotated")
    if not (annotated | predicted).any():
        return None, None
    masks = _unpacked(fields["mask/bits"], len(annotated), shape, "mask/bits")
    packed = fields.get("mask/ignore", b"")
    ignore = _inflate(packed, shape) > 0 if packed else None
    pseudo = None
    if predicted.any():
        uncertain = _unpacked(fields["mask/uncertain"], len(annotated), shape, "mask/uncertain")
        pseudo = PseudoLabels(predicted, masks & predicted[:, None, None, None], uncertain)
        masks &= ~predicted[:, None, None, None]
    return Annotation(masks, annotated, ignore) if annotated.any() else None, pseudo


def _unpacked(packed: bytes, labels: int, shape: tuple[int, int, int], name: str) -> np.ndarray:
    bits = _inflate(packed, (-(-labels // 8), *shape))
    if labels % 8 and (bits[-1] >> (labels % 8)).any():
        raise ValueError(f"{name} has bits beyond the {labels} labels")
    return unpack_masks(np.moveaxis(bits, 0, -1), labels)


def _inflate(packed: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Decompress uint8 of a known shape, without allocating more if the data are longer."""
    size = math.prod(shape)
    inflater = zlib.decompressobj()
    unpacked = inflater.decompress(packed, size + 1)
    if len(unpacked) != size or not inflater.eof:
        raise ValueError(f"the masks do not have {size} bytes")
    return np.frombuffer(unpacked, np.uint8).reshape(shape)
