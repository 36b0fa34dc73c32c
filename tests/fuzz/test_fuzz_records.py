"""Damaged dataset.json and TFRecord shards of a converted dataset."""

import io
import json
import struct
import zlib

import google_crc32c
import numpy as np
import pytest
from helpers.damage import Tally, damaged_bytes, damaged_json, generator

from gitseg_tf.data.tfrecords.codec import RecordWriter, decode_example, encode_example, read_record
from gitseg_tf.data.tfrecords.dataset import is_dataset, load_dataset, read_scans
from gitseg_tf.data.tfrecords.example import decode_scan
from gitseg_tf.data.tfrecords.verify import verify_dataset
from gitseg_tf.data.volume import Volume
from gitseg_tf.errors import DataError

pytestmark = pytest.mark.slow


@pytest.fixture
def small(make_cohort, tmp_path):
    from gitseg_tf.data.tfrecords.convert import convert

    cohort = make_cohort(
        tmp_path / "cohort", [("case1_day0", (40, 64), (1, 2, 3, 4)), ("case2_day0", (40, 64), (1, 2, 3, 4))]
    )
    return convert(cohort.root, tmp_path / "records", folds=2, workers=1).root


def records_of(content):
    start, records = 0, []
    while start < len(content):
        (size,) = struct.unpack("<Q", content[start : start + 8])
        records.append(content[start + 12 : start + 12 + size])
        start += 16 + size
    return records


def framed(records):
    file = io.BytesIO()
    writer = RecordWriter(file)
    for record in records:
        writer.write(record)
    return file.getvalue()


HUGE = [2**20, 2**40, 2**62, 2**63, 2**64 - 1, 2**64 - 5]


def with_length(content, size):
    """The file with another length of its first record, with the right checksum."""
    length = struct.pack("<Q", size)
    crc = google_crc32c.value(length)
    return length + struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF) + content[12:]


def as_data_error(call, *arguments):
    """The codec raises ValueError, which its callers convert; nothing else."""
    try:
        return call(*arguments)
    except ValueError as error:
        raise DataError(str(error)) from None


def test_dataset_json(small):
    rng, tally = generator(40), Tally()
    path = small / "dataset.json"
    tree = json.loads(path.read_text())
    for _n in range(800):
        path.write_bytes(damaged_json(rng, tree))

        def read():
            is_dataset(small)
            dataset = load_dataset(small)
            dataset.intensities, dataset.training_folds(0), dataset.scans_of([0])
            return dataset

        tally(path.read_bytes()[:200], read)
    tally.check(800, accepted=50, refused=200)


def test_framing(small):
    rng, tally = generator(41), Tally()
    content = next(small.glob("*.tfrecord")).read_bytes()
    records = framed([*records_of(content), b"second", b""])
    path = small / "shard"
    for n in range(700):
        if n % 10 == 0:  # a length that is far too large, with the right checksum
            damaged = with_length(records, HUGE[(n // 10) % len(HUGE)])
        else:
            damaged = damaged_bytes(rng, records, 0, None if n % 2 else 20)
        path.write_bytes(damaged)
        with path.open("rb") as file:
            tally(damaged[:40].hex(), as_data_error, read_record, file, n % 3)
    tally.check(700, accepted=20, refused=200)


VALUES = [
    b"",
    b"\xff\xfe",
    b"float64",
    np.array([], np.int64),
    np.array([-1], np.int64),
    np.array([2**40] * 3, np.int64),
    np.array([0, 0, 0], np.int64),
    np.array([2**31, 2**31, 1], np.int64),
    np.array([np.nan, np.inf, -1], np.float32),
    np.zeros(3, np.float32),
    np.array([1e30] * 3, np.float32),
    zlib.compress(bytes(1 << 24)),
    zlib.compress(b"")[:4],
    np.array([2, 4, 40, 64], np.int64),
    b"int16",
    b"float32",
    np.arange(4),
    np.zeros(4, np.int64),
]


def damaged_features(rng, record):
    """The record with one of its features replaced, in valid protobuf."""
    features = decode_example(record)
    name = list(features)[rng.integers(len(features))]
    kind = rng.integers(5)
    if kind == 0:
        del features[name]
    elif kind == 1 and isinstance(features[name], bytes):
        features[name] = damaged_bytes(rng, features[name])
    elif kind == 2:
        features[name] = list(features.values())[rng.integers(len(features))]
    else:
        features[name] = VALUES[rng.integers(len(VALUES))]
    return encode_example(features)


def test_examples(small):
    rng, tally = generator(42), Tally()
    record = records_of(next(small.glob("*.tfrecord")).read_bytes())[0]

    def read(damaged):
        scan = as_data_error(decode_scan, damaged)
        assert len(Volume(scan.volume.voxels, scan.volume.spacing, scan.volume.numbers).percentiles)

    for n in range(1200):
        damaged = damaged_features(rng, record) if n % 2 else damaged_bytes(rng, record, 0, None if n % 4 else 400)
        tally(n, read, damaged)
    tally.check(1200, accepted=100, refused=300)


def test_shards(small):
    """Damaged shards whose size and checksum in dataset.json are right, so that reading gets to the records."""
    rng, tally = generator(43), Tally(30)
    index = json.loads((small / "dataset.json").read_text())
    shard = index["shards"][0]
    path = small / shard["file"]
    content = path.read_bytes()
    (record,) = records_of(content)
    for n in range(160):
        kind = n % 5
        if kind == 4:
            damaged = with_length(content, HUGE[(n // 5) % len(HUGE)])
        elif kind == 0:
            damaged = damaged_bytes(rng, content, 0, 40)
        elif kind == 1:
            damaged = framed([damaged_bytes(rng, record)])
        elif kind == 2:
            damaged = framed([damaged_features(rng, record)])
        else:
            damaged = framed([record] * int(rng.integers(4)))
        path.write_bytes(damaged)
        shard["bytes"], shard["crc32"] = len(damaged), f"{zlib.crc32(damaged):08x}"
        (small / "dataset.json").write_text(json.dumps(index))
        tally(("verify", n), verify_dataset, small)
        tally(("read", n), lambda: [scan.id for scan in read_scans(load_dataset(small), [0, 1])])
    tally.check(320, accepted=5, refused=50)
