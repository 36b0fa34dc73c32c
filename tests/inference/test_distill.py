"""`distill`: who predicts which scan, what is stored, and what training sees of it."""

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from helpers.configs import tiny_config
from helpers.folds import random_cross_validation

from gitseg_tf.cli import main
from gitseg_tf.data.pipeline.batches import training_windows, validation_windows
from gitseg_tf.data.pipeline.epochs import steps_per_epoch
from gitseg_tf.data.tfrecords.codec import decode_example
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.data.tfrecords.dataset import load_dataset, read_scans
from gitseg_tf.data.tfrecords.index import PseudoSource
from gitseg_tf.data.tfrecords.pseudo_labels import write_pseudo_labeled
from gitseg_tf.data.tfrecords.teacher import training_scans
from gitseg_tf.data.tfrecords.verify import verify_dataset
from gitseg_tf.export.savedmodel import export
from gitseg_tf.inference.distill import distill
from gitseg_tf.inference.predictor import load_predictor
from gitseg_tf.runs.run import load_run
from gitseg_tf.training.trainer import train

pytestmark = pytest.mark.slow

THRESHOLDS = np.array([0.125, 0.375, 0.625, 0.875], np.float32)
OFF = {f"augment__{name}__p": 0 for name in ("flip", "affine", "elastic", "grid", "dropout")}


@pytest.fixture(scope="module")
def teacher(tiny_dataset, tmp_path_factory):
    return random_cross_validation(tmp_path_factory.mktemp("teacher") / "cv", tiny_dataset)


@pytest.fixture(scope="module")
def distilled(tiny_dataset, teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("distilled") / "dataset"
    assert main(["distill", str(teacher), str(tiny_dataset.root), str(out)]) == 0
    return load_dataset(out)


def records_of(dataset):
    for shard in dataset.shards:
        records = tf.data.TFRecordDataset(str(dataset.root / shard.file)).as_numpy_iterator()
        yield from (
            (shard.fold, entry, decode_example(record)) for entry, record in zip(shard.scans, records, strict=True)
        )


def levels_of(features, labels=3):
    """The stored bits, bool [L, 4, D, H, W]."""
    shape = tuple(features["scan/shape"])
    packed = np.frombuffer(zlib.decompress(features["teacher/bits"]), np.uint8).reshape(-1, 1, *shape)
    bits = np.unpackbits(packed, axis=1, bitorder="little").reshape(-1, *shape)
    assert not bits[4 * labels :].any()
    return bits[: 4 * labels].reshape(labels, 4, *shape).astype(bool)


def test_each_scan_is_predicted_by_the_network_that_was_not_trained_on_its_patient(distilled, tiny_dataset, teacher):
    predictors = [load_predictor(teacher / f"fold{fold}") for fold in range(3)]
    volumes = {scan.id: scan.volume for scan in read_scans(tiny_dataset, range(-1, 3))}
    everyone, seen_folds = load_predictor(teacher), set()
    for fold, entry, features in records_of(distilled):
        # Unlabeled scans of unseen patients are predicted by the ensemble.
        expected = (everyone if fold < 0 else predictors[fold]).probabilities(volumes[entry.id])
        levels = levels_of(features)
        np.testing.assert_array_equal(levels, expected[:, None] >= THRESHOLDS[:, None, None, None])
        assert np.abs(levels.mean(1) - expected).max() <= 0.126 and levels.any()
        shown = (expected >= THRESHOLDS[1]).any((2, 3))
        assert entry.teacher.label_slices == dict(zip(tiny_dataset.labels.names, shown.sum(1).tolist(), strict=True))
        assert entry.teacher.empty_slices == (~shown.any(0)).sum()
        seen_folds.add(fold)
    assert seen_folds >= {0, 1, 2}


def test_the_copy_has_the_same_scans_and_names_the_teacher(distilled, tiny_dataset, teacher):
    for (_, entry, features), (_, before, original) in zip(
        records_of(distilled), records_of(tiny_dataset), strict=True
    ):
        del features["teacher/bits"]
        assert replace(entry, teacher=None) == before and features.keys() == original.keys()
        assert all(np.array_equal(features[name], original[name]) for name in original)
    assert distilled.source == tiny_dataset.source and distilled.folds == 3
    facts = json.loads((distilled.root / "dataset.json").read_text())["teacher"]
    assert facts["labels"] == list(tiny_dataset.labels.names) and facts["members"] == "unseen" and not facts["seen"]
    assert facts["trained_on"] == sorted(tiny_dataset.fold_of_case) and len(facts["weights"]) == 64
    assert verify_dataset(distilled.root).teacher == distilled.teacher
    assert "teacher" not in (tiny_dataset.root / "dataset.json").read_text()


def test_an_ensemble_teaches_as_the_cross_validation_in_it(distilled, tiny_dataset, teacher, tmp_path):
    folds = [str(teacher / f"fold{fold}") for fold in range(3)]
    assert main(["ensemble", *folds, "--out", str(tmp_path / "ensemble")]) == 0
    copy = distill(tmp_path / "ensemble", tiny_dataset, tmp_path / "copy")
    for (_, _, features), (_, _, expected) in zip(records_of(copy), records_of(distilled), strict=True):
        assert (levels_of(features) != levels_of(expected)).mean() < 1e-4  # rounding at the thresholds
    assert copy.teacher.trained_on == distilled.teacher.trained_on and not copy.teacher.seen


def test_pseudo_labels_and_teachers_exclude_each_other(distilled, tiny_dataset, teacher, tmp_path, refusal):
    source = PseudoSource("cv", 64 * "0", 0.9, ())
    pseudo = replace(tiny_dataset, pseudo_labels=source)
    assert "has pseudo-labels" in refusal(distill, teacher, pseudo, tmp_path / "out")
    expected = "has the probabilities of a teacher"
    options = {"source": source, "labels": distilled.labels.names}
    assert expected in refusal(write_pseudo_labeled, distilled, tmp_path / "out", None, **options)
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_was_trained_on_the_patients_is_reported(tiny_dataset, teacher, tmp_path, caplog):
    copy = distill(teacher / "fold0", tiny_dataset, tmp_path / "one")
    seen = [scan.id for shard in tiny_dataset.shards if shard.fold in (1, 2) for scan in shard.scans]
    assert sorted(copy.teacher.seen) == sorted(seen)
    assert f"{len(seen)} scans of patients that the teacher was trained on" in caplog.text


def test_what_exists_is_not_overwritten(distilled, tiny_dataset, teacher, refusal):
    assert "already exists" in refusal(distill, teacher, tiny_dataset, distilled.root)
    assert "is the dataset itself" in refusal(distill, teacher, tiny_dataset, tiny_dataset.root, force=True)


@pytest.mark.parametrize("backend", ["opencv", "tensorflow"])
@pytest.mark.parametrize("kind", ["2.5-D", "3-D"])
def test_training_gets_the_annotation_and_the_mean_of_the_bits(distilled, tiny_dataset, backend, kind):
    """Without augmentation, the first L channels are those of the dataset itself; the others are its bits, resized."""
    volumes = {"data__patch": [4, 32, 32], "model__architecture": "unet3d"} if kind == "3-D" else {}
    config = tiny_config(distilled.labels, distilled.channels, augment__backend=backend, **OFF, **volumes)
    plain = tiny_config(distilled.labels, distilled.channels, training__loss__distillation__weight=0, **OFF, **volumes)
    exact = [batch for batch in training_windows(tiny_dataset, plain).as_numpy_iterator()]
    for same in (training_windows(distilled, plain), training_windows(tiny_dataset, config)):
        for (image, mask), (image_before, mask_before) in zip(same.as_numpy_iterator(), exact, strict=True):
            np.testing.assert_array_equal(mask, mask_before)
            np.testing.assert_array_equal(image, image_before)
    unlabeled = [scan for shard in distilled.shards if shard.fold == -1 for scan in shard.scans]
    named = config.model_copy(
        update={"data": config.data.model_copy(update={"exclude_scans": tuple(s.id for s in unlabeled)})}
    )
    softs = 0
    for (image, mask), (image_before, mask_before) in zip(
        training_windows(distilled, named).as_numpy_iterator(), exact, strict=True
    ):
        np.testing.assert_array_equal(image, image_before)
        np.testing.assert_array_equal(mask[..., :3], mask_before)
        assert set(np.unique(mask[..., 3:])) <= {0, 0.25, 0.5, 0.75, 1}
        softs += (mask[..., 3:] % 1 > 0).sum()
    assert softs > 100
    held_out = next(iter(validation_windows(distilled, config)))
    assert held_out[1].shape[-1] == 3


def test_scans_without_annotation_are_trained_on_with_the_teacher_alone(make_cohort, rows_of, save_table, tmp_path):
    root = tmp_path
    cohort = make_cohort(root / "cohort", labeled=False)
    cases = sorted({scan.case for scan in cohort.scans})
    save_table(cohort.root, rows_of([scan for scan in cohort.scans if scan.case in cases[:3]]))
    dataset = convert(cohort.root, root / "data", folds=3, workers=1)
    unlabeled = [scan for shard in dataset.shards if shard.fold == -1 for scan in shard.scans]
    assert unlabeled
    cv = random_cross_validation(root / "cv", dataset)
    copy = distill(cv, dataset, root / "copy")
    config = tiny_config(copy.labels, copy.channels, data__empty_slice_fraction=0, data__batch_size=1, **OFF)
    folds, scans, _ = training_scans(copy, config)
    assert -1 in folds and {scan.id for scan in unlabeled} <= {scan.id for scan in scans}
    batches = list(training_windows(copy, config).as_numpy_iterator())
    assert len(batches) == steps_per_epoch(copy, config)
    without = [mask for _, mask in batches if (mask[..., :3] == -1).all()]
    found = {scan.id: scan.teacher for shard in copy.shards for scan in shard.scans}
    expected = sum(scan.shape[0] - found[scan.id].empty_slices for scan in unlabeled)
    assert len(without) == expected and all((mask[..., 3:] >= 0).all() for mask in without)


def test_a_student_is_an_ordinary_run_that_names_its_teacher(distilled, tiny_dataset, tmp_path, caplog, refusal):
    caplog.set_level("INFO")
    config = tiny_config(distilled.labels, distilled.channels)
    run = train(config, distilled, tmp_path / "student")
    assert run.config.provenance["teacher"]["weights"] == distilled.teacher.weights
    assert "weight 0.5 in the loss" in caplog.text
    assert "the teacher was trained on" in caplog.text and "of the held-out fold" in caplog.text
    assert load_predictor(run.path).predict(next(read_scans(tiny_dataset, [0])).volume).masks.shape[0] == 3
    card = (export(run, force=True) / "assets.extra/model_card.md").read_text()
    assert f"weights `{distilled.teacher.weights}`" in card
    assert "another teacher" in refusal(train, config, tiny_dataset, run.path, resume=True)
    assert load_run(run.path).config.provenance["dataset"] == tiny_dataset.source["fingerprint"]


def test_a_label_that_the_teacher_does_not_segment_is_refused(tiny_dataset, tmp_path, refusal):
    cv = random_cross_validation(tmp_path / "cv", tiny_dataset)
    copy = distill(cv, tiny_dataset, tmp_path / "copy")
    partial = replace(copy, teacher=replace(copy.teacher, labels=("stomach", "small_bowel")))
    message = refusal(training_windows, partial, tiny_config())
    assert "its teacher does not segment large_bowel" in message
