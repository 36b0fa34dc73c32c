"""The folder that a conversion writes: its index, its folds, and errors for damaged folders."""

import json
import zlib

import numpy as np
import pytest

from gitseg_tf.data.tfrecords.dataset import is_dataset, load_dataset, read_scans
from gitseg_tf.labels import UWMGI, LabelSet


def test_scans_are_read_back_unchanged(tiny_cohort, tiny_dataset):
    scans = list(read_scans(tiny_dataset, range(3)))
    assert sorted(scan.id for scan in scans) == sorted(scan.id for scan in tiny_cohort.scans)
    for scan in scans:
        truth = tiny_cohort[scan.id]
        assert scan.volume.voxels.dtype == np.uint16 and np.array_equal(scan.volume.voxels, truth.image)
        assert np.array_equal(scan.annotation.masks, truth.masks) and scan.annotation.annotated.all()
        assert list(scan.volume.numbers) == truth.numbers and scan.case == truth.case
        assert scan.volume.spacing == truth.spacing and scan.fold in range(3)


def test_excluded_scans_are_not_read(tiny_cohort, tiny_dataset):
    scans = read_scans(tiny_dataset, range(3), exclude=("case1_day0", "case6_day1"))
    assert sorted(scan.id for scan in scans) == sorted({s.id for s in tiny_cohort.scans} - {"case1_day0", "case6_day1"})


def test_a_dataset_loads_unchanged(tiny_dataset):
    assert load_dataset(tiny_dataset.root, verify=True) == tiny_dataset


def test_a_dataset_is_recognized(tiny_cohort, tiny_dataset):
    assert is_dataset(tiny_dataset.root) and not is_dataset(tiny_cohort.root)


def test_training_folds_are_all_but_the_held_out_one(tiny_dataset):
    assert tiny_dataset.training_folds(1) == [0, 2]


@pytest.mark.parametrize("fold", [-1, 3])
def test_an_unknown_fold_is_refused(tiny_dataset, refusal, fold):
    message = refusal(tiny_dataset.training_folds, fold)
    assert "folds 0 to 2" in message and f"not {fold}" in message


def test_a_folder_without_an_index_is_not_a_dataset(copied, refusal):
    (copied / "dataset.json").unlink()
    assert f"{copied}: contains no finished dataset" in refusal(load_dataset, copied)


def test_a_path_that_is_not_a_folder_is_not_a_dataset(copied, refusal):
    for path in (copied / "none", copied / "dataset.json"):
        assert f"{path}: contains no finished dataset" in refusal(load_dataset, path)


@pytest.mark.parametrize("content", [b"", b'{"format": ', b"\xff\xfe\x00"], ids=["empty", "cut", "no text"])
def test_a_broken_index_is_reported_as_damaged(copied, refusal, content):
    (copied / "dataset.json").write_bytes(content)
    assert f"{copied / 'dataset.json'}: is damaged" in refusal(load_dataset, copied)


def test_an_index_without_shards_is_reported_as_damaged(edited, refusal):
    assert "dataset.json: is damaged" in refusal(load_dataset, edited(lambda tree: tree.pop("shards")))


def test_an_index_with_an_unknown_scan_field_is_reported_as_damaged(edited, refusal):
    root = edited(lambda tree: tree["shards"][0]["scans"][0].update(weight=70))
    assert "dataset.json: is damaged" in refusal(load_dataset, root)


def test_an_index_from_before_label_sets_were_recorded_is_read(edited):
    root = edited(lambda tree: [scan.pop("label_sets") for shard in tree["shards"] for scan in shard["scans"]])
    assert {scan.label_sets for scan in load_dataset(root).scans_of(range(3))} == {None}


def test_version_1_is_refused_with_the_command_that_converts_it_again(edited, copied, refusal):
    message = refusal(load_dataset, edited(lambda tree: tree.update(version=1)))
    assert message.startswith(f"{copied}: has format version 1, but this package reads version 2")
    assert message.endswith(f"gitseg convert SCANS {copied}")


def test_a_later_version_is_refused(edited, refusal):
    message = refusal(load_dataset, edited(lambda tree: tree.update(version=3)))
    assert "version 3" in message and "version 2" in message


@pytest.mark.parametrize("content", ["[]", "3", "{}"])
def test_a_json_file_of_another_format_is_refused(copied, refusal, content):
    (copied / "dataset.json").write_text(content)
    assert "has format None" in refusal(load_dataset, copied)


def test_a_missing_shard_is_named(copied, tiny_dataset, refusal):
    path = copied / tiny_dataset.shards[1].file
    path.unlink()
    assert f"{path}: the shard is missing" in refusal(load_dataset, copied)


def test_a_shard_of_the_wrong_size_is_named(copied, tiny_dataset, refusal):
    path = copied / tiny_dataset.shards[2].file
    path.write_bytes(path.read_bytes()[:-1])
    message = refusal(load_dataset, copied)
    assert str(path) in message and f"{tiny_dataset.shards[2].bytes - 1} bytes" in message


def test_verify_detects_one_changed_byte(copied, tiny_dataset, refusal):
    path = copied / tiny_dataset.shards[0].file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert load_dataset(copied).shards == tiny_dataset.shards
    assert f"{path}: the checksum differs" in refusal(load_dataset, copied, verify=True)


def test_checksums_match_zlib(tiny_dataset):
    for shard in tiny_dataset.shards:
        assert shard.crc32 == f"{zlib.crc32((tiny_dataset.root / shard.file).read_bytes()):08x}"


def test_the_index_has_the_labels_in_the_order_of_the_bits(tiny_dataset):
    tree = json.loads((tiny_dataset.root / "dataset.json").read_text())
    assert LabelSet.from_tree(tree["labels"]) == UWMGI == tiny_dataset.labels
    assert list(tree["counts"]["label_slices"]) == list(UWMGI.names) and tree["channels"] == ["image"]


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree["labels"].append(dict(tree["labels"][0])),
        lambda tree: tree["labels"][0].pop("name"),
        lambda tree: tree.update(labels=[{"name": f"label{k}"} for k in range(256)]),
        lambda tree: tree.update(channels=[]),
        lambda tree: tree.update(channels=list("abcdefghi")),
    ],
    ids=["defined twice", "no name", "256 labels", "no channel", "9 channels"],
)
def test_an_index_with_invalid_labels_or_channels_is_reported_as_damaged(edited, refusal, change):
    assert "dataset.json: is damaged" in refusal(load_dataset, edited(change))


def test_scan_intensities_are_measured_inside_the_masks(tiny_cohort, tiny_dataset):
    for entry in tiny_dataset.scans_of(range(3)):
        inside = tiny_cohort[entry.id].image[tiny_cohort[entry.id].masks.any(0)].astype(float)
        (actual,) = entry.intensities
        expected = (inside.mean(), inside.std(), *np.percentile(inside, [0.5, 99.5], method="inverted_cdf"))
        assert actual.voxels == inside.size
        assert (actual.mean, actual.std, actual.p005, actual.p995) == pytest.approx(expected, rel=1e-6)


def test_dataset_intensities_pool_all_scans(tiny_cohort, tiny_dataset):
    inside = [scan.image[scan.masks.any(0)].astype(float) for scan in tiny_cohort.scans]
    (found,), everything = tiny_dataset.intensities, np.concatenate(inside)
    assert found.voxels == everything.size
    assert (found.mean, found.std) == pytest.approx((everything.mean(), everything.std()), rel=1e-6)
    weighted = np.average(
        [np.percentile(v, [0.5, 99.5], method="inverted_cdf") for v in inside], axis=0, weights=[v.size for v in inside]
    )
    assert (found.p005, found.p995) == pytest.approx(tuple(weighted), rel=1e-6)
