"""Remote datasets, tested with TensorFlow's in-memory file system, against the dataset on the disk."""

import itertools

import numpy as np
import pytest

from gitseg_tf.cli import main
from gitseg_tf.core.paths import as_path, write_atomically
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.data.tfrecords.dataset import load_dataset, read_scans
from gitseg_tf.data.tfrecords.verify import verify_dataset

_names = itertools.count()


@pytest.fixture
def bucket():
    return as_path(f"ram://test-convert-{next(_names)}")


def contents(root):
    return {path.name: path.read_bytes() for path in root.iterdir()}


def test_a_bucket_gets_the_same_bytes_as_the_disk(tiny_cohort, tiny_dataset, bucket):
    assert main(["convert", str(tiny_cohort.root), str(bucket / "out"), "--folds", "3"]) == 0
    assert contents(bucket / "out") == contents(tiny_dataset.root)


def test_a_cohort_in_a_bucket_is_converted_to_a_bucket(tiny_cohort, tiny_dataset, bucket):
    for path in tiny_cohort.root.rglob("*.*"):
        copy = bucket / "cohort" / path.relative_to(tiny_cohort.root).as_posix()
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(copy, path.read_bytes())
    assert main(["convert", str(bucket / "cohort"), str(bucket / "out"), "--folds", "3"]) == 0
    assert contents(bucket / "out") == contents(tiny_dataset.root)


def test_a_dataset_in_a_bucket_is_read_and_verified(tiny_cohort, bucket):
    dataset = convert(tiny_cohort.root, str(bucket / "out"), folds=3)
    assert verify_dataset(str(bucket / "out")) == load_dataset(str(bucket / "out")) == dataset
    for scan in read_scans(dataset, range(3)):
        assert np.array_equal(scan.volume.voxels, tiny_cohort[scan.id].image)


def test_a_damaged_shard_in_a_bucket_is_named(tiny_cohort, bucket, refusal):
    dataset = convert(tiny_cohort.root, bucket / "out", folds=3)
    path = dataset.root / dataset.shards[1].file
    content = path.read_bytes()
    path.unlink()  # TensorFlow's in-memory file system appends to existing files
    with path.open("wb") as file:
        file.write(content[:-1] + b"?")
    assert f"{path}: the checksum differs" in refusal(verify_dataset, bucket / "out")


def test_a_conversion_to_a_bucket_is_resumed(make_cohort, tiny_dataset, tmp_path, bucket, refusal):
    cohort = make_cohort(tmp_path / "cohort")
    broken = tiny_dataset.shards[2].scans[0]
    path = next((cohort.root / "train" / broken.case / broken.id / "scans").iterdir())
    whole = path.read_bytes()
    path.write_bytes(b"")
    assert str(path) in refusal(convert, cohort.root, bucket / "out", folds=3)
    path.write_bytes(whole)
    convert(cohort.root, bucket / "out", folds=3, resume=True)
    assert contents(bucket / "out") == contents(tiny_dataset.root)
