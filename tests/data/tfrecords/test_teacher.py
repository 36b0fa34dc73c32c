"""A teacher's probabilities in records, and the scans that training chooses with them."""

import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.configs import tiny_config

from gitseg_tf.data.tfrecords.codec import decode_example
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.data.tfrecords.example import decode_scan, serialize_scan
from gitseg_tf.data.tfrecords.index import ScanEntry, Shard, Teacher, TeacherSlices
from gitseg_tf.data.tfrecords.teacher import add_teacher, learns_from_teacher, training_scans
from gitseg_tf.data.volume import Annotation, Volume
from gitseg_tf.labels import UWMGI, LabelSet

LABELS = LabelSet.of("liver", "spleen", "aorta")


def entry(name, labeled=True, teacher=None):
    slices = {"stomach": 5} if labeled else {}
    return ScanEntry(
        name, name.split("_")[0], (8, 4, 4), (3.0, 1.0, 1.0), slices, 3 * labeled, (), (), {}, teacher=teacher
    )


def test_probabilities_become_the_bits_that_the_format_describes():
    rng = np.random.default_rng(0)
    probabilities = rng.random((3, 2, 4, 5)).astype(np.float32)
    probabilities[:, 1] *= 0.3  # the second slice shows nothing, whose probabilities are below 3/8
    probabilities[1] = 0
    probabilities[0, 0, 0, :4] = 0.125, 0.375, 0.625, 0.875  # exactly on the thresholds
    volume = Volume(rng.integers(0, 99, (2, 4, 5)).astype(np.uint16), (3.0, 1.0, 1.0))
    annotation = Annotation.complete(rng.random((3, 2, 4, 5)) < 0.5)
    record = serialize_scan("a_1", "a", volume=volume, annotation=annotation, labels=LABELS)
    added, found = add_teacher(record, entry("a_1"), probabilities, LABELS.names)

    packed = np.frombuffer(zlib.decompress(decode_example(added)["teacher/bits"]), np.uint8).reshape(2, 2, 4, 5)
    for k in range(3):
        for i in range(4):
            bit = packed[(4 * k + i) // 8] >> ((4 * k + i) % 8) & 1
            np.testing.assert_array_equal(bit, probabilities[k] >= (2 * i + 1) / 8)
    planes = {
        name: Counter(" ".join(str(k) for k in range(3) if (part[k] >= 3 / 8).any()) for part in parts)
        for name, parts in (
            ("coronal", [probabilities[:, :, y] for y in range(4)]),
            ("sagittal", [probabilities[..., x] for x in range(5)]),
        )
    }
    assert found.teacher == TeacherSlices({"liver": 1, "spleen": 0, "aorta": 1}, 1, {"0 2": 1}, planes)
    assert replace(found, teacher=None) == entry("a_1")
    scan = decode_scan(added)
    np.testing.assert_array_equal(scan.annotation.masks, annotation.masks)
    np.testing.assert_array_equal(scan.volume.voxels, volume.voxels)


@pytest.fixture
def dataset():
    """Two folds of one patient each; patient a has another scan without annotation, and so has patient c."""
    teacher = TeacherSlices({"large_bowel": 0, "small_bowel": 2, "stomach": 4}, 4, {"2": 2, "1 2": 2}, {})
    shards = (
        Shard("0", 0, 0, "", (entry("a_1", teacher=teacher),)),
        Shard("1", 1, 0, "", (entry("b_1", teacher=teacher),)),
        Shard("u", -1, 0, "", (entry("a_2", False, teacher), entry("c_1", False, teacher))),
    )
    facts = Teacher("cv", 64 * "0", UWMGI.names, ("a", "b"), "unseen")
    return Dataset(Path("data"), {"name": "x", "fingerprint": "y"}, 2, 0, shards, UWMGI, ("image",), teacher=facts)


def ids(dataset, **changes):
    return [scan.id for scan in training_scans(dataset, tiny_config(**changes))[1]]


def test_scans_without_annotation_are_used_unless_their_patient_is_held_out(dataset):
    assert ids(dataset, data__fold=0) == ["b_1", "c_1"]
    assert ids(dataset, data__fold=1) == ["a_1", "a_2", "c_1"]
    assert ids(dataset, data__fold=None) == ["a_1", "b_1", "a_2", "c_1"]
    assert ids(dataset, data__fold=None, data__exclude_scans=["c_1"]) == ["a_1", "b_1", "a_2"]
    folds, scans, excluded = training_scans(dataset, tiny_config(data__fold=0))
    assert folds == [1, -1] and excluded == ("a_2",)
    assert [scan.label_slices["stomach"] for scan in scans] == [5, 4]  # of the annotation, and of the teacher
    assert [scan.empty_slices for scan in scans] == [3, 4]


def test_without_weight_or_teacher_only_annotated_scans_are_used(dataset):
    assert ids(dataset, data__fold=0, training__loss__distillation__weight=0) == ["b_1"]
    assert ids(replace(dataset, teacher=None), data__fold=0) == ["b_1"]


def test_the_teacher_must_segment_the_labels_of_the_experiment(dataset, refusal):
    fewer = replace(dataset, teacher=replace(dataset.teacher, labels=("stomach",)))
    assert "its teacher does not segment large_bowel, small_bowel" in refusal(learns_from_teacher, fewer, tiny_config())
    assert learns_from_teacher(fewer, tiny_config(data__labels=["stomach"]))
