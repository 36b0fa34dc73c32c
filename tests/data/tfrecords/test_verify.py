"""Each test puts one fault into a valid dataset and updates the checksum, so that only reading records reveals it."""

import zlib

import pytest
import tensorflow as tf

from gitseg_tf.cli import main
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.data.tfrecords.dataset import load_dataset
from gitseg_tf.data.tfrecords.verify import naming_damaged_shards, verify_dataset


@pytest.fixture
def edited_shard(edited):
    """edited_shard(change) changes the first shard's entry in dataset.json."""
    return lambda change: edited(lambda tree: change(tree["shards"][0]))


@pytest.fixture
def rewritten(edited_shard, copied):
    """rewritten(change) changes the bytes of the first shard, and its size and checksum in dataset.json accordingly."""

    def rewrite(change):
        path = copied / load_dataset(copied).shards[0].file
        path.write_bytes(change(path.read_bytes()))
        return edited_shard(
            lambda shard: shard.update(bytes=path.stat().st_size, crc32=f"{zlib.crc32(path.read_bytes()):08x}")
        )

    return rewrite


@pytest.fixture
def changed_record(rewritten, tmp_path):
    """changed_record(change) changes the features of the first shard's first record."""

    def edit(change):
        def rewrite(content):
            (tmp_path / "old").write_bytes(content)
            examples = [
                tf.train.Example.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(tmp_path / "old"))
            ]
            change(examples[0].features.feature)
            with tf.io.TFRecordWriter(str(tmp_path / "new")) as writer:
                for example in examples:
                    writer.write(example.SerializeToString())
            return (tmp_path / "new").read_bytes()

        return rewritten(rewrite)

    return edit


def test_an_intact_dataset_passes_and_the_command_prints_its_counts(tiny_dataset, capsys):
    assert verify_dataset(tiny_dataset.root) == tiny_dataset
    assert main(["convert", "--verify", str(tiny_dataset.root)]) == 0
    assert "3 shards" in (printed := capsys.readouterr().out) and "9 scans, 73 slices" in printed


def test_a_dataset_without_annotations_passes(make_cohort, tmp_path):
    cohort = make_cohort(tmp_path / "cohort", [("case1_day0", (40, 64), range(1, 5))], labeled=False, folder="test")
    assert len(verify_dataset(convert(cohort.root, tmp_path / "out").root).shards) == 1


def test_a_changed_byte_is_found(copied, refusal):
    path = copied / load_dataset(copied).shards[1].file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert f"{path}: the checksum differs" in refusal(verify_dataset, copied)


@pytest.mark.parametrize("cut", [5, 70000], ids=["in the last checksum", "in a record"])
def test_a_truncated_record_is_found(rewritten, refusal, cut):
    message = refusal(verify_dataset, rewritten(lambda content: content[:-cut]))
    assert "fold0-00000-of-00001.tfrecord: record " in message and "is damaged" in message


def test_a_missing_record_is_found(rewritten, refusal):
    def without_first(content):
        return content[16 + int.from_bytes(content[:8], "little") :]

    assert "dataset.json has case4_day0" in refusal(verify_dataset, rewritten(without_first))


def test_missing_records_at_the_end_are_found(rewritten, refusal):
    def first(content):
        return content[: 16 + int.from_bytes(content[:8], "little")]

    assert "has 1 record, but dataset.json lists" in refusal(verify_dataset, rewritten(first))


def test_an_extra_record_is_found(rewritten, refusal):
    assert "has more records" in refusal(verify_dataset, rewritten(lambda content: 2 * content))


def test_a_record_without_voxels_is_found(changed_record, refusal):
    assert "record 1 is damaged" in refusal(verify_dataset, changed_record(lambda feature: feature.pop("image/voxels")))


def test_voxels_that_do_not_fill_the_shape_are_found(changed_record, refusal):
    def shorten(feature):
        feature["image/voxels"].bytes_list.value[0] = feature["image/voxels"].bytes_list.value[0][:-2]

    assert "record 1 is damaged" in refusal(verify_dataset, changed_record(shorten))


@pytest.mark.parametrize(
    ("what", "fault"),
    [
        ("shape", {"shape": [2, 40, 64]}),
        ("id", {"id": "case1_day9"}),
        ("case", {"case": "case77"}),
        ("spacing", {"spacing": [3.0, 1.0, 1.25]}),
        ("label slices", {"label_slices": {"large_bowel": 1, "small_bowel": 4, "stomach": 1}}),
        ("empty slices", {"empty_slices": 0}),
        ("label sets", {"label_sets": {"0": 2}}),
    ],
)
def test_a_contradiction_of_the_index_is_named(edited_shard, refusal, what, fault):
    message = refusal(verify_dataset, edited_shard(lambda shard: shard["scans"][0].update(fault)))
    assert f"the record has {what} " in message and "but dataset.json has" in message


def test_slice_numbers_out_of_order_are_found(changed_record, refusal):
    root = changed_record(lambda feature: feature["slice/numbers"].int64_list.value.reverse())
    assert "slice numbers" in refusal(verify_dataset, root)


def test_bits_beyond_the_labels_are_found(changed_record, refusal):
    def set_bit_3(feature):
        bits = bytearray(zlib.decompress(feature["mask/bits"].bytes_list.value[0]))
        bits[0] |= 8
        feature["mask/bits"].bytes_list.value[0] = zlib.compress(bytes(bits))

    assert "bits beyond the 3 labels" in refusal(verify_dataset, changed_record(set_bit_3))


@pytest.mark.parametrize("name", ["percentiles", "moments"])
def test_wrong_statistics_are_found(changed_record, refusal, name):
    def spoil(feature):
        feature[f"image/{name}"].float_list.value[1] += 1

    assert f"image/{name} do not match the voxels" in refusal(verify_dataset, changed_record(spoil))


def test_a_mask_of_an_unannotated_label_is_found(changed_record, refusal):
    def spoil(feature):
        feature["mask/annotated"].bytes_list.value[0] = b"\x01\x00\x01"

    assert "has a mask of small_bowel, which is not annotated" in refusal(verify_dataset, changed_record(spoil))


def test_a_wrong_number_of_labels_is_found(edited, refusal):
    root = edited(lambda tree: tree["labels"].append({"name": "liver"}))
    assert "the record has 3 labels, but dataset.json lists 4" in refusal(verify_dataset, root)


def test_a_wrong_number_of_channels_is_found(edited, refusal):
    root = edited(lambda tree: tree.update(channels=["T1", "T2"]))
    assert "the record has 1 channel, but dataset.json lists 2" in refusal(verify_dataset, root)


def test_wrong_intensities_are_found(edited_shard, refusal):
    root = edited_shard(lambda shard: shard["scans"][0]["intensities"][0].update(mean=7.0))
    assert "the intensities in dataset.json do not match the voxels" in refusal(verify_dataset, root)


def test_training_names_the_damaged_shard(rewritten, refusal):
    dataset = load_dataset(rewritten(lambda content: content[:-1] + bytes([content[-1] ^ 1])))

    def train():
        with naming_damaged_shards(dataset):
            list(tf.data.TFRecordDataset(dataset.paths_of([0])))

    assert "fold0-00000-of-00001.tfrecord: record " in refusal(train)
