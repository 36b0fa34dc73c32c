import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from gitseg_tf.config import load_config
from gitseg_tf.data.records import (
    PERCENTILES,
    decode_scan,
    intensity_percentiles,
    pack_masks,
    parse_scan,
    serialize_scan,
    unpack_masks,
)
from gitseg_tf.data.scans import Scan, numbered_slice_ids
from gitseg_tf.data.sources import DATASETS

FORMAT_PAGE = Path(__file__).parents[2] / "tfrecords" / "README.md"


@pytest.fixture(scope="module")
def scan():
    numbers = [3, 4, 9]
    ids = numbered_slice_ids("case7_day2", numbers)
    return Scan("case7_day2", "case7", (3, 5, 4), (3.0, 1.63, 1.5), numbers, ids, labelled=True, source=None)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 65536, (3, 5, 4)).astype(np.uint16)


@pytest.fixture(scope="module")
def masks():
    return np.random.default_rng(1).random((3, 3, 5, 4)) < 0.4


@settings(deadline=None, max_examples=60)
@given(arrays(np.uint16, array_shapes(min_dims=3, max_dims=3, max_side=9), elements=st.integers(0, 65535)))
def test_percentiles_are_those_of_numpy(image):
    assert np.array_equal(intensity_percentiles(image), np.percentile(image, PERCENTILES, method="inverted_cdf"))


@pytest.mark.parametrize("voxels", [1, 2, 99, 100, 101, 199, 200, 201, 999, 1000, 12345])
def test_percentiles_are_exact_where_ranks_are_whole(voxels):
    image = np.random.default_rng(0).permutation(voxels).astype(np.uint16)
    assert np.array_equal(intensity_percentiles(image), np.percentile(image, PERCENTILES, method="inverted_cdf"))


@settings(deadline=None, max_examples=60)
@given(arrays(bool, st.tuples(st.just(3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))))
def test_overlapping_masks_survive_packing(masks):
    assert np.array_equal(unpack_masks(pack_masks(masks)), masks)


def test_bit_k_is_organ_k():
    masks = np.array([[[[0, 1, 0, 1]]], [[[0, 0, 1, 1]]], [[[0, 0, 0, 1]]]], bool)
    assert pack_masks(masks).tolist() == [[[0, 1, 2, 7]]]


def test_a_record_gives_back_what_was_written(scan, image, masks):
    fields = {name: value.numpy() for name, value in parse_scan(serialize_scan(scan, image, masks)).items()}
    assert (fields["id"], fields["case"]) == (b"case7_day2", b"case7")
    assert fields["image"].dtype == np.uint16 and np.array_equal(fields["image"], image)
    assert np.array_equal(unpack_masks(fields["bits"]), masks)
    assert fields["numbers"].tolist() == [3, 4, 9]
    assert np.array_equal(fields["spacing"], np.float32([3.0, 1.63, 1.5]))
    assert np.array_equal(fields["percentiles"], np.percentile(image, PERCENTILES, method="inverted_cdf"))


def test_an_image_of_strided_memory_is_written_right(scan, image, masks):
    turned = np.asfortranarray(image)
    assert serialize_scan(scan, turned, np.asfortranarray(masks)) == serialize_scan(scan, image, masks)


def test_a_scan_without_contours_has_zero_bits(scan, image):
    assert not parse_scan(serialize_scan(scan, image, None))["bits"].numpy().any()


def test_a_record_has_the_documented_features(scan, image, masks):
    table = dict(re.findall(r"^\| `(\w+/\w+)` \| (\w+) \|", FORMAT_PAGE.read_text(), re.MULTILINE))
    features = tf.train.Example.FromString(serialize_scan(scan, image, masks)).features.feature
    assert {name: feature.WhichOneof("kind").removesuffix("_list") for name, feature in features.items()} == table


def test_voxels_and_bits_are_stored_as_documented(scan, image, masks):
    features = tf.train.Example.FromString(serialize_scan(scan, image, masks)).features.feature
    voxels = np.frombuffer(features["image/voxels"].bytes_list.value[0], "<u2").reshape(3, 5, 4)
    bits = np.frombuffer(zlib.decompress(features["mask/bits"].bytes_list.value[0]), np.uint8).reshape(3, 5, 4)
    assert np.array_equal(voxels, image) and np.array_equal(bits, masks[0] + 2 * masks[1] + 4 * masks[2])


def test_the_documented_example_reads_a_dataset(drawn, drawn_dataset, capsys):
    code = re.search(r"```python\n(.*?)```", FORMAT_PAGE.read_text(), re.DOTALL)[1]
    names = {}
    phantom = str(DATASETS / "phantom" / f"records-{load_config().data.folds}folds")
    assert phantom in code
    exec(code.replace(phantom, str(drawn_dataset.root)), names)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(drawn_dataset.scans_of([1, 2]))
    for scan_id, image, masks, spacing in tf.data.TFRecordDataset(names["files"]).map(names["read"]):
        truth = drawn[scan_id.numpy().decode()]
        assert np.array_equal(image, truth.image) and np.array_equal(masks, truth.masks)
        assert np.allclose(spacing, truth.spacing)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_record_is_read_without_tensorflow_as_with_it(scan, image, masks, labelled):
    record = serialize_scan(scan, image, masks if labelled else None)
    found, expected = decode_scan(record), {name: value.numpy() for name, value in parse_scan(record).items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name in ("id", "case"):
            assert found[name] == value.decode()
        else:
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)


def test_a_record_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="scan/shape"):
        decode_scan(tf.train.Example().SerializeToString() or b"\n\x00")
