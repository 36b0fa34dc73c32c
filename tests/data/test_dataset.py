"""The folder that a conversion leaves: its index, its folds, and what is said of a damaged one."""

import json
import zlib

import numpy as np
import pytest

from gitseg_tf.data.dataset import is_dataset, load_dataset, read_scans
from gitseg_tf.data.records import unpack_masks
from gitseg_tf.data.scans import ORGANS


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
