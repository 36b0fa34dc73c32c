"""Which patches cover a scan. The mark of every synthetic slice identifies the slices of a patch."""

from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from helpers.configs import tiny_config

from gitseg_tf.data.pipeline.batches import validation_steps, validation_windows
from gitseg_tf.data.pipeline.tiles import tile_slices, tile_starts
from gitseg_tf.data.tfrecords.dataset import read_scans

HELD_OUT = 1


def configured(**changes):
    settings = {
        "data.input_size": [64, 96],
        "data.patch": [4, 48, 64],
        "data.crop": "none",
        "data.fold": HELD_OUT,
        "data.batch_size": 3,
        "model.architecture": "unet3d",
        "training.epochs": 1,
    }
    return tiny_config(**settings | {key.replace("__", "."): value for key, value in changes.items()})


@pytest.mark.parametrize(
    ("extent", "size", "overlap", "starts"),
    [
        (10, 10, 0.5, [0]),
        (10, 4, 0, [0, 4, 6]),
        (12, 4, 0, [0, 4, 8]),
        (10, 4, 0.5, [0, 2, 4, 6]),
        (9, 4, 0.5, [0, 2, 4, 5]),
        (5, 4, 0.9, [0, 1]),
    ],
)
def test_tiles_cover_an_axis_and_the_last_one_fits(extent, size, overlap, starts):
    assert tile_starts(extent, size, overlap) == starts


def slices_of(numbers, offsets, overlap=0.0):
    return tile_slices(tf.constant(numbers, tf.int64), tf.constant(offsets, tf.int32), overlap).numpy().tolist()


def test_slice_tiles_have_the_given_overlap_and_the_last_one_fits():
    assert slices_of(range(9), [-2, -1, 0, 1], 0.5) == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [5, 6, 7, 8]]
    assert slices_of(range(9), [-2, -1, 0, 1], 0) == [[0, 1, 2, 3], [4, 5, 6, 7], [5, 6, 7, 8]]


def test_no_tile_crosses_a_gap_and_short_runs_repeat_their_last_slice():
    assert slices_of([1, 2, 7, 8, 9, 10], [-2, -1, 0, 1]) == [[0, 1, 1, 1], [2, 3, 4, 5]]


def test_slices_skipped_by_a_strided_tile_are_in_another_tile():
    assert slices_of(range(8), [-4, -2, 0, 2]) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert slices_of(range(3), [-4, -2, 0, 2]) == [[0, 2, 2, 2], [1, 2, 2, 2]]


@pytest.mark.parametrize("overlap", [0, 0.5])
@pytest.mark.parametrize("offsets", [[0], [-1, 0, 1], [-6, -3, 0, 3], [-3, -1, 0, 1, 3], [-1, -1, 0, 0, 1, 1]])
@pytest.mark.parametrize("runs", [[1], [2, 1], [7], [23], [5, 40, 3], [11, 12, 13]])
def test_every_slice_is_in_a_tile_and_no_tile_crosses_runs(runs, offsets, overlap):
    numbers = np.concatenate([100 * k + np.arange(length) for k, length in enumerate(runs)])
    rows = slices_of(numbers, offsets, overlap)
    assert {index for row in rows for index in row} == set(range(len(numbers)))
    assert all(len(set(numbers[row] // 100)) == 1 for row in rows)


@pytest.fixture(scope="module")
def validated(tiny_dataset):
    """validated(**changes) is the list of validation batches (image, mask, weight); results are cached."""
    kept = {}

    def batches(**changes):
        key = repr(sorted(changes.items()))
        if key not in kept:
            windows = validation_windows(tiny_dataset, configured(**changes))
            kept[key] = [tuple(part.numpy() for part in batch) for batch in windows]
        return kept[key]

    return batches


@pytest.mark.parametrize("changes", [{}, {"data__window_stride": 2}])
def test_every_voxel_of_the_held_out_scans_is_counted_once(tiny_dataset, validated, changes):
    scans = tiny_dataset.scans_of([HELD_OUT])
    counted = sum((mask[weight == 1] >= 0).sum() for _, mask, weight in validated(**changes))
    assert counted == sum(scan.shape[0] for scan in scans) * 64 * 96 * 3
    assert any((mask < 0).any() for _, mask, _ in validated(**changes))
    assert not any((mask[weight == 0] > 0).any() for _, mask, weight in validated(**changes))


def test_the_counted_voxels_of_a_label_add_up_to_its_volume(tiny_cohort, tiny_dataset, validated):
    # Scans of 40 x 64 are enlarged by 1.5, those of 48 x 40 by 4 / 3; labels keep their fraction of the volume.
    truth = np.zeros(3)
    for scan in read_scans(tiny_dataset, [HELD_OUT]):
        height, width = scan.volume.shape[1:]
        truth += scan.annotation.masks.sum((1, 2, 3)) * min(64 / height, 96 / width) ** 2
    found = sum(np.where(mask > 0, mask, 0).sum((0, 1, 2, 3)) for _, mask, _ in validated())
    assert found == pytest.approx(truth, rel=0.03)


def test_each_slice_is_counted_once_and_shown_with_its_neighbors(tiny_cohort, tiny_dataset, validated):
    shown = Counter()
    for image, mask, weight in validated(data__patch=[4, 64, 96]):
        for tile, of_tile in zip(image[weight == 1], mask[weight == 1], strict=True):
            marks = tiny_cohort.marks_in(tile)[:, 0]
            assert (np.diff(marks) == 1).all()
            shown.update(marks[(of_tile >= 0).all((1, 2, 3))].tolist())
    assert shown == Counter(tiny_cohort.all_marks({scan.case for scan in tiny_dataset.scans_of([HELD_OUT])}))


def test_validation_steps_is_the_number_of_batches(tiny_dataset, validated):
    for changes in ({}, {"data__window_stride": 2}):
        batches = validated(**changes)
        assert len(batches) == validation_steps(tiny_dataset, configured(**changes))
        assert {image.shape for image, _, _ in batches} == {(3, 4, 48, 64, 1)}
        assert (batches[-1][2] == 0).any() or sum(weight.sum() for _, _, weight in batches) % 3 == 0
