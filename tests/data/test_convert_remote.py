"""Datasets in buckets, shown on TensorFlow's file system in memory, against the dataset on the disk."""

import itertools

import numpy as np
import pytest

from gitseg_tf.cli import main
from gitseg_tf.data.convert import convert
from gitseg_tf.data.dataset import load_dataset, read_scans
from gitseg_tf.data.verify import verify_dataset
from gitseg_tf.files import as_path, write_atomically

_names = itertools.count()


@pytest.fixture
def bucket():
    return as_path(f"ram://test-convert-{next(_names)}")


def contents(root):
    return {path.name: path.read_bytes() for path in root.iterdir()}


def test_a_bucket_gets_the_bytes_of_the_disk(drawn, drawn_dataset, bucket):
    assert main(["convert", str(drawn.root), str(bucket / "out"), "--folds", "3"]) == 0
    assert contents(bucket / "out") == contents(drawn_dataset.root)


def test_a_cohort_in_a_bucket_is_converted_to_a_bucket(drawn, drawn_dataset, bucket):
    for path in drawn.root.rglob("*.*"):
        copy = bucket / "cohort" / path.relative_to(drawn.root).as_posix()
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(copy, path.read_bytes())
    assert main(["convert", str(bucket / "cohort"), str(bucket / "out"), "--folds", "3"]) == 0
    assert contents(bucket / "out") == contents(drawn_dataset.root)


def test_a_dataset_in_a_bucket_is_read_and_verified(drawn, bucket):
    dataset = convert(drawn.root, str(bucket / "out"), folds=3)
    assert verify_dataset(str(bucket / "out")) == load_dataset(str(bucket / "out")) == dataset
    for scan in read_scans(dataset, range(3)):
        assert np.array_equal(scan["image"], drawn[scan["id"]].image)


def test_a_damaged_shard_in_a_bucket_is_named(drawn, bucket, refusal):
    dataset = convert(drawn.root, bucket / "out", folds=3)
    path = dataset.root / dataset.shards[1].file
    content = path.read_bytes()
    path.unlink()  # TensorFlow's file system in memory appends to a file that is there
    with path.open("wb") as file:
        file.write(content[:-1] + b"?")
    assert f"{path}: the checksum differs" in refusal(verify_dataset, bucket / "out")


def test_a_conversion_to_a_bucket_is_resumed(draw, drawn_dataset, tmp_path, bucket, refusal):
    cohort = draw(tmp_path / "cohort")
    broken = drawn_dataset.shards[2].scans[0]
    path = next((cohort.root / "train" / broken.case / broken.id / "scans").iterdir())
    whole = path.read_bytes()
    path.write_bytes(b"")
    assert str(path) in refusal(convert, cohort.root, bucket / "out", folds=3)
    path.write_bytes(whole)
    convert(cohort.root, bucket / "out", folds=3, resume=True)
    assert contents(bucket / "out") == contents(drawn_dataset.root)
