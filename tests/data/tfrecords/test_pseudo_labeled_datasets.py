"""Datasets with pseudo-labels: what is written, what training sees, and that nothing else sees it."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from gitseg_tf.config import load_config
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.data.tfrecords.dataset import load_dataset, read_scans
from gitseg_tf.data.tfrecords.index import PSEUDO, PseudoSource
from gitseg_tf.data.tfrecords.pseudo_labels import write_pseudo_labeled
from gitseg_tf.data.tfrecords.verify import verify_dataset
from gitseg_tf.data.volume import PseudoLabels

LABELS = ("large_bowel", "small_bowel", "stomach")
SOURCE = PseudoSource("folds", "0123456789abcdef", 0.9, ("case2", "case3"))
SIZE = 64
# The patients of the scans without annotation: case1 has another one with an annotation, case7 has none.
UNLABELED = ("case1_day5", "case7_day0")
SLICES = {"case1_day0": 8, "case1_day5": 6, "case2_day0": 8, "case3_day0": 8, "case7_day0": 6}


def write_images(root, slices):
    """Write random scans of SIZE x SIZE pixels, the size of the windows below; return scans for `rows_of`."""
    scans, rng = [], np.random.default_rng(3)
    for scan_id, depth in slices.items():
        folder = root / "train" / scan_id.split("_")[0] / scan_id / "scans"
        folder.mkdir(parents=True)
        for z in range(depth):
            plane = rng.integers(100, 4000, (SIZE, SIZE)).astype(np.uint16)
            assert cv2.imwrite(str(folder / f"slice_{z + 1:04d}_{SIZE}_{SIZE}_1.50_1.50.png"), plane)
        masks = np.zeros((3, depth, SIZE, SIZE), bool)
        masks[0, 1:5, 8:30, 5:20] = masks[1, 3:6, 30:50, 30:60] = masks[2, 0:2, 40:60, 3:25] = True
        scans.append(SimpleNamespace(id=scan_id, masks=masks, numbers=list(range(1, depth + 1))))
    return scans


def predicted_masks(scan):
    """Any masks, which depend on the scan: the bright half of its voxels, moved by a few rows per label."""
    bright = scan.volume.voxels > np.median(scan.volume.voxels)
    return np.stack([np.roll(bright, 3 * k, axis=1) for k in range(3)])


def uncertain_voxels(scan):
    uncertain = np.zeros((3, *scan.volume.shape), bool)
    for k in range(3):
        uncertain[k, :, 5 * k : 5 * k + 8, 10:50] = True
    return uncertain


def label(scan):
    missing = ~scan.annotation.annotated if scan.annotation is not None else np.ones(3, bool)
    if not missing.any():
        return None
    kept = missing[:, None, None, None]
    return PseudoLabels(missing, predicted_masks(scan) & kept, uncertain_voxels(scan) & kept)


@pytest.fixture(scope="module")
def base(rows_of, save_table, tmp_path_factory):
    """Three annotated scans, one of which lacks the stomach, and two without annotation, as a dataset of 3 folds."""
    root = tmp_path_factory.mktemp("few")
    rows = rows_of(write_images(root / "cohort", SLICES))
    rows = [row for row in rows if not row[0].startswith(UNLABELED)]
    rows = [row for row in rows if not (row[0].startswith("case2_day0") and row[1] == "stomach")]
    save_table(root / "cohort", rows)
    return convert(root / "cohort", root / "dataset", folds=3, workers=1)


@pytest.fixture(scope="module")
def labeled(base):
    return write_pseudo_labeled(base, base.root.parent / "pseudo", label, source=SOURCE, labels=LABELS)


def by_id(dataset):
    return {scan.id: scan for scan in read_scans(dataset, range(PSEUDO, dataset.folds))}


def fold_of(dataset, scan_id):
    return next(s.fold for s in dataset.shards if scan_id in [scan.id for scan in s.scans])


def test_annotations_are_kept_and_missing_labels_are_predicted(base, labeled):
    before, after = by_id(base), by_id(labeled)
    assert after.keys() == before.keys() == set(SLICES)
    for scan_id, scan in after.items():
        was = before[scan_id]
        assert np.array_equal(scan.volume.voxels, was.volume.voxels)
        expected = label(was)
        if expected is None:
            assert scan.pseudo is None
        else:
            assert np.array_equal(scan.pseudo.labels, expected.labels)
            assert np.array_equal(scan.pseudo.masks, expected.masks)
            assert np.array_equal(scan.pseudo.uncertain, expected.uncertain)
        if was.annotation is None:
            assert scan.annotation is None
        else:
            assert np.array_equal(scan.annotation.masks, was.annotation.masks)
            assert np.array_equal(scan.annotation.annotated, was.annotation.annotated)
    assert after["case2_day0"].pseudo.labels.tolist() == [False, False, True]


def test_scans_without_annotation_are_in_no_fold(base, labeled):
    assert {scan.id for scan in labeled.scans_of([PSEUDO])} == set(UNLABELED)
    assert {scan.id for scan in labeled.scans_of(range(3))} == {"case1_day0", "case2_day0", "case3_day0"}
    assert labeled.fold_of_case == base.fold_of_case
    own = fold_of(base, "case1_day0")
    for held_out in range(3):
        ids = {scan.id for scan in labeled.training_scans(held_out)}
        # The other scan of a held-out patient must not be seen, even without its annotation.
        assert ("case1_day5" in ids) == (held_out != own) and "case7_day0" in ids
    assert {scan.id for scan in labeled.training_scans(None)} == set(SLICES)


def test_the_dataset_verifies_and_says_what_it_is(base, labeled, monkeypatch, refusal):
    assert verify_dataset(labeled.root).pseudo_labels == SOURCE
    assert labeled.pseudo_line == (
        "3 scans with labels predicted by folds (weights 01234567, confidence 0.9), for training only, never scored"
    )
    tree = json.loads((labeled.root / "dataset.json").read_text())
    assert tree["counts"]["annotated_scans"] == {"large_bowel": 3, "small_bowel": 3, "stomach": 2}
    assert tree["counts"]["pseudo_labeled_scans"] == {"large_bowel": 2, "small_bowel": 2, "stomach": 3}
    assert sum("pseudo" in scan for shard in tree["shards"] for scan in shard["scans"]) == 3
    assert "pseudo" not in (base.root / "dataset.json").read_text()
    message = refusal(write_pseudo_labeled, labeled, labeled.root.parent / "again", label, source=SOURCE, labels=LABELS)
    assert "already has pseudo-labels; start from the dataset without them" in message
    (entry,) = (scan for shard in tree["shards"] for scan in shard["scans"] if scan["id"] == "case2_day0")
    entry["pseudo"]["label_slices"]["stomach"] += 1
    path = labeled.root / "dataset.json"
    original = path.read_bytes()
    try:
        path.write_text(json.dumps(tree))
        assert "case2_day0: the record has the pseudo-labels" in refusal(verify_dataset, labeled.root)
    finally:
        path.write_bytes(original)


def configured(dataset, **changes):
    off = {f"augment.{name}.p": 0 for name in ("flip", "affine", "elastic", "grid", "dropout")}
    settings = off | {
        "data.input_size": [SIZE, SIZE],
        "data.crop": "none",
        "data.window_slices": 1,
        "data.batch_size": 1,
        "data.empty_slice_fraction": 1,
        "training.epochs": 1,
    }
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    return load_config(None, settings).for_dataset(dataset.labels, dataset.channels)


def expected_mask(scan):
    """[D, H, W, L]: 0, 1 or -1, from the annotation and the predictions."""
    annotation, pseudo = scan.annotation, label(scan)
    mask = np.zeros((3, *scan.volume.shape)) if annotation is None else annotation.masks.astype(float)
    if pseudo is not None:
        mask = np.where(pseudo.labels[:, None, None, None], pseudo.masks, mask)
        mask = np.where(pseudo.uncertain, -1, mask)
    return np.moveaxis(mask, 0, -1)


@pytest.mark.parametrize("cache_mib", [0, 1024], ids=["from disk", "in memory"])
def test_training_sees_predictions_and_loses_uncertain_voxels_of_that_label_only(base, labeled, cache_mib):
    from gitseg_tf.data.pipeline.batches import training_batch
    from gitseg_tf.data.pipeline.epochs import steps_per_epoch

    held_out = fold_of(base, "case3_day0")
    config = configured(labeled, data__fold=held_out, data__cache_mib=cache_mib)
    scans = by_id(base)
    steps = steps_per_epoch(labeled, config)
    assert steps == sum(scans[i].volume.shape[0] for i in ("case1_day0", "case2_day0", *UNLABELED))
    batch = configured(labeled, data__fold=held_out, data__cache_mib=cache_mib, data__batch_size=steps)
    ids, _, masks = training_batch(labeled, batch, 0, 0)
    assert ids == ["case1_day0", "case1_day5", "case2_day0", "case7_day0"]
    expected = sorted(plane.tobytes() for i in ids for plane in expected_mask(scans[i]).astype(np.float32))
    assert sorted(mask.tobytes() for mask in masks) == expected


def test_validation_never_sees_predictions(base, labeled):
    from gitseg_tf.data.pipeline.batches import validation_windows

    config = configured(labeled, data__fold=fold_of(base, "case2_day0"))
    masks = np.concatenate([mask for _, mask, _ in validation_windows(labeled, config).as_numpy_iterator()])
    scan = by_id(base)["case2_day0"]
    assert (masks[..., 2] == -1).all()
    assert np.array_equal(np.moveaxis(masks[..., :2], -1, 0), scan.annotation.masks[:2])


@pytest.mark.parametrize("share", [0, 1])
def test_an_epoch_has_as_many_windows_as_counted(base, labeled, share):
    from gitseg_tf.data.pipeline.batches import training_windows
    from gitseg_tf.data.pipeline.epochs import steps_per_epoch

    changes = {"data__empty_slice_fraction": 0, "data__balance_labels": share}
    config = configured(labeled, data__fold=fold_of(base, "case3_day0"), **changes)
    masks = [mask for _, mask in training_windows(labeled, config).as_numpy_iterator()]
    assert len(masks) == steps_per_epoch(labeled, config)
    assert all((mask != 0).any() for mask in masks)


def test_an_interrupted_call_leaves_no_dataset_and_resumes_to_the_same_bytes(base, labeled, tmp_path, refusal):
    calls = []

    def interrupted(scan):
        calls.append(scan.id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return label(scan)

    def write(labeler, **more):
        return write_pseudo_labeled(base, tmp_path / "out", labeler, source=SOURCE, labels=LABELS, **more)

    with pytest.raises(KeyboardInterrupt):
        write(interrupted)
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert "contains no finished dataset" in refusal(load_dataset, tmp_path / "out")
    first, calls[:] = calls[:2], ["", "", "", ""]
    write(interrupted, resume=True)
    assert first == list(UNLABELED) and calls[4:] == ["case2_day0"]
    files = sorted(path.name for path in labeled.root.iterdir())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    assert all((tmp_path / "out" / name).read_bytes() == (labeled.root / name).read_bytes() for name in files)
    assert "already contains a finished dataset" in refusal(write, label)
    assert write(label, resume=True).pseudo_labels == SOURCE


def test_a_cohort_can_be_added(base, tmp_path, refusal):
    from gitseg_tf.data.readers.registry import read_cohort

    write_images(tmp_path / "more", {"case8_day0": 6, "case9_day0": 7})
    cohort = read_cohort(tmp_path / "more")
    added = write_pseudo_labeled(base, tmp_path / "out", label, source=SOURCE, labels=LABELS, more=cohort)
    assert {"case8_day0", "case9_day0", *UNLABELED} == {scan.id for scan in added.scans_of([PSEUDO])}
    assert np.array_equal(by_id(added)["case8_day0"].volume.voxels, cohort.scans[0].read_volume().voxels)
    verify_dataset(added.root)
    write_images(tmp_path / "again", {"case1_day0": 6})
    call = {"source": SOURCE, "labels": LABELS, "more": read_cohort(tmp_path / "again")}
    assert "its scan case1_day0 is already in" in refusal(write_pseudo_labeled, base, tmp_path / "b", label, **call)


def test_a_dataset_with_all_annotations_is_refused(tiny_dataset, tmp_path, refusal):
    message = refusal(write_pseudo_labeled, tiny_dataset, tmp_path / "out", label, source=SOURCE, labels=LABELS)
    assert "all of its scans have annotations of large_bowel, small_bowel, stomach; nothing to predict" in message
