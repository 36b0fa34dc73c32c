"""Encoded bytes are compared with those written by TensorFlow and protobuf."""

import io
import zlib
from contextlib import suppress

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from gitseg_tf.data.tfrecords.codec import RecordWriter, decode_example, encode_example, read_record

INT64 = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(width=32, allow_nan=False)
VALUES = st.one_of(
    st.binary(max_size=300),
    st.lists(INT64, max_size=9).map(lambda items: np.array(items, np.int64)),
    st.lists(FLOATS, max_size=9).map(lambda items: np.array(items, np.float32)),
)


def feature(value):
    if isinstance(value, bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    if value.dtype == np.int64:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=value))
    return tf.train.Feature(float_list=tf.train.FloatList(value=value))


@settings(deadline=None, max_examples=80)
@given(st.text(max_size=12), VALUES)
def test_an_encoded_feature_matches_protobuf(name, value):
    example = tf.train.Example(features=tf.train.Features(feature={name: feature(value)}))
    assert encode_example({name: value}) == example.SerializeToString()


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.text(max_size=12), VALUES, max_size=6))
def test_protobuf_parses_an_encoded_example(features):
    expected = tf.train.Example(features=tf.train.Features(feature={k: feature(v) for k, v in features.items()}))
    assert tf.train.Example.FromString(encode_example(features)) == expected


def test_an_unsigned_array_is_encoded_as_its_bytes():
    voxels = np.arange(70000, dtype="<u2").reshape(7, 100, 100)
    assert encode_example({"x": voxels}) == encode_example({"x": voxels.tobytes()})


@settings(deadline=None, max_examples=40)
@given(st.lists(st.binary(max_size=400), max_size=5))
def test_a_written_file_matches_tensorflow(tmp_path_factory, records):
    path = tmp_path_factory.getbasetemp() / "peer.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as peer:
        for record in records:
            peer.write(record)
    file = io.BytesIO()
    writer = RecordWriter(file)
    for record in records:
        writer.write(record)
    assert file.getvalue() == path.read_bytes()
    assert writer.size == path.stat().st_size and writer.crc32 == f"{zlib.crc32(path.read_bytes()):08x}"


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.text(max_size=12), VALUES, max_size=6))
def test_an_example_written_by_protobuf_is_decoded(features):
    example = tf.train.Example(features=tf.train.Features(feature={k: feature(v) for k, v in features.items()}))
    found = decode_example(example.SerializeToString())
    assert found.keys() == features.keys()
    for name, value in features.items():
        if isinstance(value, bytes):
            assert found[name] == value
        else:
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_damaged_example_decodes_or_raises_a_value_error(data):
    content = bytearray(encode_example({"a": b"xyz", "b": np.arange(3), "c": np.ones(2, np.float32)}))
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[at] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        decode_example(bytes(content[: data.draw(st.integers(0, len(content)))]))


def test_records_written_by_tensorflow_are_read_by_index(tmp_path):
    path = tmp_path / "peer.tfrecord"
    records = [b"first", b"", bytes(range(256)) * 9]
    with tf.io.TFRecordWriter(str(path)) as peer:
        for record in records:
            peer.write(record)
    for number, record in enumerate(records):
        with path.open("rb") as file:
            assert read_record(file, number) == record
    with path.open("rb") as file, pytest.raises(ValueError, match="record 3"):
        read_record(file, 3)


@pytest.mark.parametrize("at", [0, 9, 13, -1])
def test_a_damaged_record_is_refused(at):
    file = io.BytesIO()
    RecordWriter(file).write(b"voxels")
    content = bytearray(file.getvalue())
    content[at] ^= 1
    with pytest.raises(ValueError, match="record 0"):
        read_record(io.BytesIO(content), 0)
    with pytest.raises(ValueError, match="record 0"):
        read_record(io.BytesIO(file.getvalue()[:at]), 0)
