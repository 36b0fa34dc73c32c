import json
import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from gitseg_tf.config import load_config
from gitseg_tf.data.dataset import is_dataset, load_dataset, read_scans
from gitseg_tf.data.records import (
    PERCENTILES,
    intensity_percentiles,
    pack_masks,
    parse_scan,
    serialize_scan,
    unpack_masks,
)
from gitseg_tf.data.scans import ORGANS, Scan, SliceFile
from gitseg_tf.data.sources import DATASETS

FORMAT_PAGE = Path(__file__).parents[2] / "tfrecords" / "README.md"


@pytest.fixture(scope="module")
def scan():
    slices = tuple(SliceFile(n, f"case7_day2_slice_{n:04d}", Path("none.png")) for n in (3, 4, 9))
    return Scan("case7_day2", "case7", slices, (3, 5, 4), (3.0, 1.63, 1.5), {})


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 65536, (3, 5, 4)).astype(np.uint16)


@pytest.fixture(scope="module")
def masks():
    return np.random.default_rng(1).random((3, 3, 5, 4)) < 0.4


@pytest.fixture
def copied(drawn_dataset, tmp_path):
    """A converted dataset to be spoilt."""
    return Path(shutil.copytree(drawn_dataset.root, tmp_path / "dataset"))


@pytest.fixture
def edited(copied):
    """edited(change) changes dataset.json by a function of its tree."""

    def edit(change):
        tree = json.loads((copied / "dataset.json").read_text())
        change(tree)
        (copied / "dataset.json").write_text(json.dumps(tree))
        return copied

    return edit


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


def test_scans_are_read_back_whole(drawn, drawn_dataset):
    scans = list(read_scans(drawn_dataset, range(3)))
    assert sorted(scan["id"] for scan in scans) == sorted(scan.id for scan in drawn.scans)
    for scan in scans:
        truth = drawn[scan["id"]]
        assert np.array_equal(scan["image"], truth.image) and np.array_equal(unpack_masks(scan["bits"]), truth.masks)
        assert scan["numbers"].tolist() == truth.numbers and scan["case"] == truth.case


def test_a_dataset_is_the_same_after_loading(drawn_dataset):
    assert load_dataset(drawn_dataset.root, verify=True) == drawn_dataset


def test_a_dataset_is_told_from_other_folders(drawn, drawn_dataset):
    assert is_dataset(drawn_dataset.root) and not is_dataset(drawn.root)


def test_training_folds_are_all_but_the_one_held_out(drawn_dataset):
    assert drawn_dataset.training_folds(1) == [0, 2]


@pytest.mark.parametrize("fold", [-1, 3])
def test_a_fold_that_is_not_there_is_refused(drawn_dataset, refusal, fold):
    said = refusal(drawn_dataset.training_folds, fold)
    assert "folds 0 to 2" in said and f"not {fold}" in said


def test_a_folder_without_index_is_no_dataset(copied, refusal):
    (copied / "dataset.json").unlink()
    assert f"{copied}: holds no finished dataset" in refusal(load_dataset, copied)


def test_a_path_that_is_no_folder_is_no_dataset(copied, refusal):
    for path in (copied / "none", copied / "dataset.json"):
        assert f"{path}: holds no finished dataset" in refusal(load_dataset, path)


@pytest.mark.parametrize("content", [b"", b'{"format": ', b"\xff\xfe\x00"], ids=["empty", "cut", "no text"])
def test_a_broken_index_is_damaged(copied, refusal, content):
    (copied / "dataset.json").write_bytes(content)
    assert f"{copied / 'dataset.json'}: is damaged" in refusal(load_dataset, copied)


def test_an_index_without_its_shards_is_damaged(edited, refusal):
    assert "dataset.json: is damaged" in refusal(load_dataset, edited(lambda tree: tree.pop("shards")))


def test_an_index_with_unknown_facts_of_a_scan_is_damaged(edited, refusal):
    root = edited(lambda tree: tree["shards"][0]["scans"][0].update(weight=70))
    assert "dataset.json: is damaged" in refusal(load_dataset, root)


def test_another_version_is_refused(edited, refusal):
    said = refusal(load_dataset, edited(lambda tree: tree.update(version=2)))
    assert "version 2" in said and "version 1" in said


@pytest.mark.parametrize("content", ["[]", "3", "{}"])
def test_an_index_of_something_else_is_refused(copied, refusal, content):
    (copied / "dataset.json").write_text(content)
    assert "is of format None" in refusal(load_dataset, copied)


def test_a_missing_shard_is_named(copied, drawn_dataset, refusal):
    path = copied / drawn_dataset.shards[1].file
    path.unlink()
    assert f"{path}: the shard is missing" in refusal(load_dataset, copied)


def test_a_shard_of_another_size_is_named(copied, drawn_dataset, refusal):
    path = copied / drawn_dataset.shards[2].file
    path.write_bytes(path.read_bytes()[:-1])
    said = refusal(load_dataset, copied)
    assert str(path) in said and f"{drawn_dataset.shards[2].bytes - 1} bytes" in said


def test_one_changed_byte_is_noticed_when_asked(copied, drawn_dataset, refusal):
    path = copied / drawn_dataset.shards[0].file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert load_dataset(copied).shards == drawn_dataset.shards
    assert f"{path}: the checksum differs" in refusal(load_dataset, copied, verify=True)


def test_checksums_are_those_of_zlib(drawn_dataset):
    for shard in drawn_dataset.shards:
        assert shard.crc32 == f"{zlib.crc32((drawn_dataset.root / shard.file).read_bytes()):08x}"


def test_the_index_counts_every_organ_in_the_order_of_the_bits(drawn_dataset):
    tree = json.loads((drawn_dataset.root / "dataset.json").read_text())
    assert tree["organs"] == list(ORGANS) and set(tree["counts"]["organ_slices"]) == set(ORGANS)
