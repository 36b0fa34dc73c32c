"""Windows along other axes, compared with axial windows of scans that were transposed with NumPy."""

import json
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from helpers.configs import tiny_config

from gitseg_tf.data.pipeline.batches import training_windows, validation_samples, validation_windows
from gitseg_tf.data.pipeline.epochs import steps_per_epoch
from gitseg_tf.data.pipeline.geometry import place
from gitseg_tf.data.pipeline.planes import MOST_MISSING, fill_gaps, from_plane, scan_in_plane, to_plane
from gitseg_tf.data.pipeline.windows import Layout, _prepare
from gitseg_tf.data.tfrecords.dataset import load_dataset
from gitseg_tf.data.tfrecords.example import parse_scan, serialize_scan
from gitseg_tf.data.tfrecords.verify import verify_dataset
from gitseg_tf.data.volume import PERCENTILES, Annotation, Volume
from gitseg_tf.labels import UWMGI

ORDER = {"coronal": (1, 0, 2), "sagittal": (2, 0, 1)}
AXIS = {"coronal": 1, "sagittal": 2}
SPACING = (3.0, 1.5, 2.0)


def stored(image, masks, spacing, numbers=(), ignore=None):
    """A scan as it is read from a record."""
    annotation = Annotation(masks, np.ones(3, bool), None if ignore is None else np.ascontiguousarray(ignore))
    record = serialize_scan(
        "case1_day0", "case1", volume=Volume(image, spacing, tuple(numbers)), annotation=annotation, labels=UWMGI
    )
    scan = parse_scan(tf.constant(record))
    shapes = {"image": [None, None, None, 1], "bits": [None, None, None, 1]}
    return scan | {name: tf.ensure_shape(scan[name], shape) for name, shape in shapes.items()}


def blocks(shape=(14, 22, 18)):
    image = np.random.default_rng(0).integers(0, 4000, shape).astype(np.uint16)
    masks = np.zeros((3, *shape), bool)
    masks[0, 2:9, 3:14, 1:12] = masks[1, 5:6, 20:, 4:9] = masks[2, :, 6:9, 15:] = True
    ignore = np.zeros(shape, bool)
    ignore[3:6, 2:9, 10:14] = True
    return image, masks, ignore


@pytest.mark.parametrize("pixel_mm", [None, 1.7])
@pytest.mark.parametrize("plane", ORDER)
def test_a_view_is_prepared_like_the_transposed_scan(plane, pixel_mm):
    image, masks, ignore = blocks()
    order = ORDER[plane]
    # Without pixel_mm, only isotropic axial pixels are square.
    spacing = SPACING if pixel_mm else (2.0, 2.0, 2.0)
    changes = {"data__pixel_mm": pixel_mm, "data__window_stride_mm": 4.0, "data__input_size": [32, 64]}
    layout = Layout(1, (0, 1, 2), 1)
    view = _prepare(
        stored(image, masks, spacing, ignore=ignore), layout, tiny_config(data__plane=plane, **changes).data
    )
    by_hand = stored(
        image.transpose(order), masks.transpose(0, *(1 + axis for axis in order)),
        tuple(spacing[axis] for axis in order), ignore=ignore.transpose(order),
    )  # fmt: skip
    expected = _prepare(by_hand, layout, tiny_config(**changes).data)
    assert view["shown"].numpy().any() and view["image"].shape[0] == image.shape[order[0]]
    for name in expected:
        np.testing.assert_array_equal(view[name].numpy(), expected[name].numpy(), err_msg=name)


def test_pixels_of_a_view_become_square():
    # 20 slices of 3 mm, 40 rows of 1.5 mm: 60 x 60 mm seen from the side. As pixels, it would be half as tall as wide.
    scan = scan_in_plane(
        stored(np.zeros((20, 40, 4), np.uint16), np.zeros((3, 20, 40, 4), bool), (3, 1.5, 1)), "sagittal"
    )
    data = tiny_config(data__plane="sagittal", data__crop="none", data__input_size=[64, 64]).data
    percentiles = np.zeros((1, len(PERCENTILES)), np.float32)
    placement = place(scan["image"], percentiles, scan["spacing"], data)
    assert scan["image"].shape == (4, 20, 40, 1) and scan["spacing"].numpy().tolist() == [1, 3, 1.5]
    assert placement["fitted"].numpy().tolist() == [64, 64]


def test_missing_slices_are_filled_with_the_nearest_one_and_ignored():
    numbers = (4, 5, 8, 10)
    image = np.arange(4 * 2 * 3, dtype=np.uint16).reshape(4, 2, 3)
    masks = np.zeros((3, 4, 2, 3), bool)
    masks[0, 1] = True
    view = scan_in_plane(stored(image, masks, SPACING, numbers), "coronal")
    # Rows 4 to 10; of two equally near slices, the later one.
    filled = image[[0, 1, 1, 2, 2, 3, 3]]
    np.testing.assert_array_equal(view["image"].numpy()[..., 0], filled.transpose(1, 0, 2))
    assert view["ignore"].numpy()[0, :, 0].tolist() == [False, False, True, True, False, True, False]
    assert view["numbers"].numpy().tolist() == [1, 2] and view["spacing"].numpy().tolist() == [1.5, 3, 2]


def test_wide_gaps_are_shortened_and_views_can_be_undone():
    numbers = tf.constant([1, 2, 10**12], tf.int64)
    index, rows = fill_gaps(numbers)
    assert len(index) == 3 + MOST_MISSING and rows.numpy().tolist() == [0, 1, 2 + MOST_MISSING]
    voxels = np.random.default_rng(0).random((3, 4, 5, 2), np.float32)
    for plane in ORDER:
        view = to_plane(tf.constant(voxels), index, plane)
        np.testing.assert_array_equal(from_plane(view, rows, plane), voxels)
    assert [part.numpy().tolist() for part in fill_gaps(tf.constant([7], tf.int64))] == [[0], [0]]


def shown_slices(cohort, dataset, folds, plane):
    """Per scan, bool [L, slices]: which slices of a plane show each label."""
    others = {"coronal": (1, 3), "sagittal": (1, 2)}[plane]
    return {scan.id: np.any(cohort[scan.id].masks, axis=others) for scan in dataset.scans_of(folds)}


@pytest.mark.slow
@pytest.mark.parametrize("plane", ORDER)
def test_epochs_and_validations_count_the_slices_of_the_plane(plane, tiny_cohort, tiny_dataset):
    off = {f"augment__{name}__p": 0 for name in ("flip", "affine", "elastic", "grid", "dropout")}
    config = tiny_config(data__plane=plane, data__fold=1, data__batch_size=1, data__empty_slice_fraction=0.5, **off)
    training = shown_slices(tiny_cohort, tiny_dataset, [0, 2], plane)
    expected = sum(int(shown.any(0).sum()) + int(0.5 * (~shown.any(0)).sum() + 0.5) for shown in training.values())
    assert steps_per_epoch(tiny_dataset, config) == expected
    windows = list(training_windows(tiny_dataset, config).as_numpy_iterator())
    assert len(windows) == expected
    held_out = shown_slices(tiny_cohort, tiny_dataset, [1], plane)
    assert validation_samples(tiny_dataset, config) == sum(shown.shape[1] for shown in held_out.values())
    names = Counter()
    for _, _, weight, ids in validation_windows(tiny_dataset, config, named=True).as_numpy_iterator():
        names.update(name.decode() for name in ids[weight > 0])
    assert names == {scan: shown.shape[1] for scan, shown in held_out.items()}


@pytest.mark.slow
def test_balanced_labels_repeat_slices_of_the_plane(tiny_dataset):
    config = tiny_config(data__plane="coronal", data__fold=1, data__batch_size=1, data__balance_labels=1.0)
    plain = steps_per_epoch(tiny_dataset, tiny_config(data__plane="coronal", data__fold=1, data__batch_size=1))
    steps = steps_per_epoch(tiny_dataset, config)
    assert steps > plain and len(list(training_windows(tiny_dataset, config))) == steps


def test_a_dataset_without_counts_of_other_planes_is_refused(edited, refusal):
    def without(tree):
        for shard in tree["shards"]:
            for scan in shard["scans"]:
                del scan["plane_sets"]

    dataset = load_dataset(edited(without))
    line = refusal(steps_per_epoch, dataset, tiny_config(data__plane="sagittal"))
    assert "does not list which labels the sagittal slices of" in line and "convert again" in line
    assert steps_per_epoch(dataset, tiny_config()) > 0
    verify_dataset(dataset.root)


def test_a_wrong_count_is_found_by_verification(edited, refusal):
    def change(tree):
        tree["shards"][0]["scans"][0]["plane_sets"]["coronal"] = {"0": 1}

    assert "label sets of planes" in refusal(verify_dataset, edited(change))


def test_counts_of_the_planes_match_the_masks(tiny_cohort, tiny_dataset):
    tree = json.loads((tiny_dataset.root / "dataset.json").read_text())
    for entry in (scan for shard in tree["shards"] for scan in shard["scans"]):
        for plane, axis in AXIS.items():
            slices = np.moveaxis(tiny_cohort[entry["id"]].masks, 1 + axis, 0)
            sets = Counter(" ".join(str(k) for k in range(3) if of_slice[k].any()) for of_slice in slices)
            del sets[""]
            assert entry["plane_sets"][plane] == sets


def test_patches_have_no_plane(refusal):
    line = refusal(tiny_config, data__patch=[4, 32, 32], data__plane="coronal")
    assert "a 3-D model sees all axes" in line
