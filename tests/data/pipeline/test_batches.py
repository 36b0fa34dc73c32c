"""Every synthetic slice has a unique gray value in the middle, its mark, which identifies the slices of a batch."""

import shutil
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from helpers.configs import tiny_config

from gitseg_tf.data.pipeline.batches import training_windows, validation_steps, validation_windows
from gitseg_tf.data.pipeline.epochs import steps_per_epoch
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.data.tfrecords.dataset import load_dataset

HELD_OUT, BATCH = 1, 8


def configured(**changes):
    overrides = {
        "data.input_size": [64, 64],
        "data.crop": "none",
        "data.window_slices": 3,
        "data.fold": HELD_OUT,
        "data.batch_size": BATCH,
        "data.empty_slice_fraction": 0.5,
        "training.epochs": 1,
    }
    return tiny_config(**overrides | {key.replace("__", "."): value for key, value in changes.items()})


def as_arrays(batches):
    return [tuple(part.numpy() for part in batch) for batch in batches]


@pytest.fixture(scope="module")
def train(tiny_dataset):
    """train(first_epoch=0, **changes) is the list of training batches; results are cached."""
    kept = {}

    def batches(first_epoch=0, **changes):
        changes = {"seed": 0} | changes
        key = (first_epoch, repr(sorted(changes.items())))
        if key not in kept:
            kept[key] = as_arrays(training_windows(tiny_dataset, configured(**changes), first_epoch))
        return kept[key]

    return batches


@pytest.fixture(scope="module")
def plain(train):
    """The batches of an epoch without augmentation, with all slices; one window per batch, so that none is dropped."""
    return train(**unflipped(data__empty_slice_fraction=1, data__batch_size=1))


@pytest.fixture(scope="module")
def validated(tiny_dataset):
    return as_arrays(validation_windows(tiny_dataset, configured()))


@pytest.fixture(scope="module")
def training_cases(tiny_dataset):
    return {scan.case for scan in tiny_dataset.scans_of(tiny_dataset.training_folds(HELD_OUT))}


@pytest.fixture(scope="module")
def held_out_cases(tiny_dataset):
    return {scan.case for scan in tiny_dataset.scans_of([HELD_OUT])}


def marks(cohort, batches):
    """The marks of the middle slices of the windows, in order."""
    return np.concatenate([cohort.marks_in(batch[0])[:, 1] for batch in batches]).tolist()


def same_batches(one, other):
    return len(one) == len(other) and all(
        np.array_equal(a, b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True)
    )


def windows_in(batches):
    return {window.tobytes() for image, _ in batches for window in image}


def unflipped(**changes):
    off = {f"augment__{name}__p": 0 for name in ("flip", "affine", "elastic", "grid", "dropout")}
    return off | changes


TWO_PLAIN_EPOCHS = unflipped(data__empty_slice_fraction=1, training__epochs=2)


def test_training_windows_have_static_shapes(tiny_dataset):
    image, mask = training_windows(tiny_dataset, configured()).element_spec
    assert image.shape == (BATCH, 64, 64, 3) and mask.shape == (BATCH, 64, 64, 3)
    assert image.dtype == mask.dtype == "float32"


def test_validation_windows_have_static_shapes(tiny_dataset):
    image, mask, weight = validation_windows(tiny_dataset, configured(data__window_slices=5)).element_spec
    assert image.shape == (BATCH, 64, 64, 5) and mask.shape == (BATCH, 64, 64, 3) and weight.shape == (BATCH,)


def test_every_held_out_slice_is_validated_exactly_once(tiny_cohort, validated, held_out_cases):
    shown = [mark for image, _, weight in validated for mark in tiny_cohort.marks_in(image[weight == 1])[:, 1]]
    assert Counter(shown) == Counter(tiny_cohort.all_marks(held_out_cases))


def test_validation_weights_mark_the_padding_of_the_last_batch(tiny_cohort, tiny_dataset, validated, held_out_cases):
    weights = np.concatenate([weight for _, _, weight in validated])
    assert weights.sum() == len(tiny_cohort.all_marks(held_out_cases)) and set(weights) <= {0, 1}
    assert len(validated) == validation_steps(tiny_dataset, configured()) and weights.size == len(validated) * BATCH


def test_padding_samples_are_blank(validated):
    image, mask, weight = validated[-1]
    assert (weight == 0).any() and not image[weight == 0].any() and not mask[weight == 0].any()


def test_validation_masks_match_their_slices(tiny_cohort, validated):
    for image, mask, weight in validated:
        for mark, shown in zip(tiny_cohort.marks_in(image[weight == 1])[:, 1], mask[weight == 1], strict=True):
            scan = tiny_cohort.scan_of(mark)
            if scan.image.shape[1:] == (40, 64):  # not resized, only padded
                truth = np.moveaxis(scan.masks[:, mark - scan.first_mark], 0, -1)
                assert np.array_equal(shown[12:52], truth) and not shown[:12].any() and not shown[52:].any()


def test_intensities_are_normalized_to_0_to_1(validated):
    assert all(image.min() >= 0 and image.max() <= 1 for image, _, _ in validated)


def test_windows_repeat_slices_at_the_ends_and_before_gaps(tiny_cohort, plain):
    windows = {window[1]: window for image, _ in plain for window in tiny_cohort.marks_in(image).tolist()}
    for scan in tiny_cohort.scans:
        for z, (mark, number) in enumerate(zip(scan.marks, scan.numbers, strict=True)):
            if mark in windows:
                before = mark - 1 if z and scan.numbers[z - 1] == number - 1 else mark
                after = mark + 1 if z + 1 < len(scan.numbers) and scan.numbers[z + 1] == number + 1 else mark
                assert windows[mark] == [before, mark, after]


def test_an_epoch_with_all_empty_slices_shows_every_training_slice_once(tiny_cohort, plain, training_cases):
    assert Counter(marks(tiny_cohort, plain)) == Counter(tiny_cohort.all_marks(training_cases))


def test_training_masks_match_their_slices(tiny_cohort, plain):
    for image, mask in plain:
        ((_, mark, _),) = tiny_cohort.marks_in(image)
        scan = tiny_cohort.scan_of(mark)
        truth = scan.masks[:, mark - scan.first_mark]
        assert np.array_equal(mask[0].any((0, 1)), truth.any((1, 2)))


def test_an_epoch_without_empty_slices_shows_each_labeled_slice_once(tiny_cohort, train, training_cases):
    batches = train(**unflipped(data__empty_slice_fraction=0, data__batch_size=1))
    assert Counter(marks(tiny_cohort, batches)) == Counter(tiny_cohort.filled_marks(training_cases))


def test_empty_slice_fraction_applies_to_each_scan(tiny_cohort, train, training_cases):
    shown = Counter(marks(tiny_cohort, train(**unflipped(data__empty_slice_fraction=0.5, data__batch_size=1))))
    filled = tiny_cohort.filled_marks(training_cases)
    assert filled <= set(shown) and max(shown.values()) == 1
    for scan in tiny_cohort.scans:
        if scan.case in training_cases:
            empty = set(scan.marks) - filled
            assert len(empty & set(shown)) == np.floor(len(empty) / 2 + 0.5)


def test_an_incomplete_last_batch_is_dropped(tiny_cohort, tiny_dataset, train, plain):
    batches = train(**unflipped(data__empty_slice_fraction=1, data__batch_size=7))
    assert len(plain) % 7 and len(batches) == len(plain) // 7
    assert all(image.shape[0] == 7 for image, _ in batches)
    assert len(set(marks(tiny_cohort, batches))) == 7 * len(batches)


def test_steps_per_epoch_is_the_number_of_batches(tiny_dataset, train):
    assert len(train(training__epochs=3)) == 3 * steps_per_epoch(tiny_dataset, configured())


def test_a_label_lost_by_downsampling_still_makes_its_slice_nonempty(tiny_cohort, tiny_dataset):
    fold = next(shard.fold for shard in tiny_dataset.shards if any(s.id == "case4_day0" for s in shard.scans))
    changes = {
        "data__fold": (fold + 1) % 3,
        "data__input_size": [32, 32],
        "data__empty_slice_fraction": 0,
        "data__batch_size": 1,
    }
    config = configured(**unflipped(**changes))
    batches = as_arrays(training_windows(tiny_dataset, config))
    assert len(batches) == steps_per_epoch(tiny_dataset, config)
    assert tiny_cohort["case4_day0"].marks[1] in marks(tiny_cohort, batches)


def test_held_out_patients_are_never_trained_on(tiny_cohort, train, held_out_cases):
    batches = train(**TWO_PLAIN_EPOCHS)
    shown = {mark for image, _ in batches for mark in tiny_cohort.marks_in(image).ravel()}
    assert shown and not shown & tiny_cohort.all_marks(held_out_cases)


def test_the_same_seed_gives_the_same_batches(tiny_dataset, train):
    assert same_batches(
        as_arrays(training_windows(tiny_dataset, configured(training__epochs=3))), train(training__epochs=3)
    )


def test_a_different_seed_flips_different_windows(train):
    # The bright bar is on the left of unflipped slices.
    one, other = (
        [window[:, :32].sum() > window[:, 32:].sum() for image, _ in batches for window in image]
        for batches in (train(training__epochs=3), train(training__epochs=1, seed=1))
    )
    assert any(other) and not all(other) and one[: len(other)] != other


def test_a_different_seed_gives_a_different_order(tiny_cohort, train):
    one = marks(tiny_cohort, train(**TWO_PLAIN_EPOCHS))
    other = marks(tiny_cohort, train(**TWO_PLAIN_EPOCHS | {"seed": 1, "training__epochs": 1}))
    assert one[: len(other)] != other


def test_epochs_differ_in_order(tiny_cohort, train):
    batches = train(**TWO_PLAIN_EPOCHS)
    half = len(batches) // 2
    assert marks(tiny_cohort, batches[:half]) != marks(tiny_cohort, batches[half:])


def test_epochs_differ_in_augmentation(train, tiny_dataset):
    batches, steps = train(training__epochs=3), steps_per_epoch(tiny_dataset, configured())
    first, second = windows_in(batches[:steps]), windows_in(batches[steps:])
    assert len(first & second) < 0.2 * len(first)


@pytest.mark.parametrize("cache_mib", [0, 1024], ids=["from disk", "in memory"])
@pytest.mark.parametrize("first_epoch", [1, 2])
def test_starting_at_a_later_epoch_continues_the_same_stream(train, tiny_dataset, cache_mib, first_epoch):
    steps = steps_per_epoch(tiny_dataset, configured())
    whole = train(training__epochs=3, data__cache_mib=cache_mib)
    later = train(first_epoch, training__epochs=3, data__cache_mib=cache_mib)
    assert same_batches(later, whole[first_epoch * steps :])


def test_an_uncached_epoch_shows_every_slice_once(tiny_cohort, train, training_cases):
    batches = train(**unflipped(data__empty_slice_fraction=1, data__batch_size=1, data__cache_mib=0))
    assert Counter(marks(tiny_cohort, batches)) == Counter(tiny_cohort.all_marks(training_cases))


def test_cached_scans_are_read_once(tiny_cohort, tiny_dataset, tmp_path):
    root = shutil.copytree(tiny_dataset.root, tmp_path / "dataset")
    config = configured(**unflipped(training__epochs=3))
    batches = iter(training_windows(load_dataset(root), config))
    steps = steps_per_epoch(tiny_dataset, config)
    seen = [next(batches) for _ in range(steps)]
    for path in root.glob("*.tfrecord"):
        path.unlink()
    seen += list(batches)
    assert len(seen) == 3 * steps


def test_a_batch_mixes_scans(tiny_cohort, train):
    batches = train(**TWO_PLAIN_EPOCHS)
    scans = [{tiny_cohort.scan_of(mark).id for mark in tiny_cohort.marks_in(image)[:, 1]} for image, _ in batches]
    assert np.mean([len(ids) for ids in scans]) >= 3


def test_windows_do_not_cycle_through_the_scans(tiny_cohort, train):
    first_ones = [tiny_cohort.scan_of(mark).id for mark in marks(tiny_cohort, train(**TWO_PLAIN_EPOCHS))[:24]]
    assert any(one == after for one, after in pairwise(first_ones))


def test_augmented_masks_stay_binary(train):
    assert all(set(np.unique(mask)) <= {0, 1} for _, mask in train(training__epochs=3))


def test_fewer_windows_than_a_batch_are_repeated_to_fill_it(tiny_cohort, tiny_dataset):
    config = configured(**unflipped(data__batch_size=100, training__epochs=1))
    batches = list(training_windows(tiny_dataset, config))
    assert len(batches) == steps_per_epoch(tiny_dataset, config) == 1
    marks = Counter(tiny_cohort.marks_in(batches[0][0])[:, config.data.window_slices // 2].tolist())
    assert sum(marks.values()) == 100
    assert max(marks.values()) - min(marks.values()) <= 1


def test_an_empty_training_set_is_refused(make_cohort, rows_of, save_table, tmp_path, refusal):
    cohort = make_cohort(tmp_path / "cohort")
    rows = [(slice_id, label, "") for slice_id, label, _ in rows_of(cohort.scans)]
    save_table(cohort.root, rows)
    dataset = convert(cohort.root, tmp_path / "records", folds=2)
    assert "nothing to train on" in refusal(training_windows, dataset, configured(data__empty_slice_fraction=0))


@pytest.mark.parametrize("windows", [training_windows, validation_windows, steps_per_epoch, validation_steps])
def test_an_unknown_fold_is_refused(tiny_dataset, refusal, windows):
    assert "folds 0 to 2, not 3" in refusal(windows, tiny_dataset, configured(data__fold=3))


@pytest.mark.parametrize("windows", [training_windows, validation_windows])
def test_unannotated_scans_are_refused(make_cohort, tmp_path, refusal, windows):
    make_cohort(tmp_path / "cohort", [("case1_day0", (40, 64), range(1, 5))], labeled=False)
    dataset = convert(tmp_path / "cohort", tmp_path / "out")
    assert "no scan is annotated" in refusal(windows, dataset, configured(data__fold=0))


def test_excluded_scans_are_never_trained_on(tiny_cohort, tiny_dataset, train, training_cases):
    scan = next(scan for scan in tiny_cohort.scans if scan.case in training_cases)
    changes = unflipped(data__empty_slice_fraction=1, data__batch_size=1, data__exclude_scans=[scan.id])
    shown = set(marks(tiny_cohort, train(**changes)))
    assert shown == tiny_cohort.all_marks(training_cases) - set(scan.marks)
    assert steps_per_epoch(tiny_dataset, configured(**changes)) == len(shown)


def test_excluded_scans_are_not_validated(tiny_cohort, tiny_dataset, held_out_cases):
    scan = next(scan for scan in tiny_cohort.scans if scan.case in held_out_cases)
    config = configured(data__exclude_scans=[scan.id])
    batches = as_arrays(validation_windows(tiny_dataset, config))
    shown = {mark for image, _, weight in batches for mark in tiny_cohort.marks_in(image[weight == 1])[:, 1]}
    assert shown == tiny_cohort.all_marks(held_out_cases) - set(scan.marks)
    assert len(batches) == validation_steps(tiny_dataset, config)


def label_counts(batches):
    return sum(mask.any((1, 2)).sum(0) for _, mask in batches)


def test_a_balanced_epoch_shows_rarer_labels_more_often(tiny_dataset, train):
    plain, balanced = (
        train(**unflipped(data__empty_slice_fraction=0, data__batch_size=1, data__balance_labels=share))
        for share in (0, 1)
    )
    before, after = label_counts(plain), label_counts(balanced)
    assert before.min() < 0.5 * before.max() and after.min() / after.max() > 1.6 * before.min() / before.max()
    config = configured(data__empty_slice_fraction=0, data__batch_size=1, data__balance_labels=1)
    assert len(balanced) == steps_per_epoch(tiny_dataset, config)


def test_the_tensorflow_backend_leaves_the_pipeline_unaugmented(train, plain):
    changes = {"augment__backend": "tensorflow", "data__empty_slice_fraction": 1, "data__batch_size": 1}
    assert same_batches(train(**changes), plain)


@pytest.mark.parametrize("cache_mib", [0, 1024], ids=["from disk", "in memory"])
def test_patches_are_crops_of_adjacent_slices_with_their_masks(tiny_cohort, tiny_dataset, train, cache_mib):
    changes = {"data__patch": [4, 32, 48], "data__input_size": [96, 96], "data__cache_mib": cache_mib}
    changes |= {
        "model__architecture": "unet3d",
        "data__empty_slice_fraction": 1,
        "data__batch_size": 1,
        "training__epochs": 3,
    }
    batches = train(**unflipped(**changes))
    crops = [(image, mask) for images, masks in batches for image, mask in zip(images, masks, strict=True)]
    assert all(image.shape == (4, 32, 48, 1) and mask.shape == (4, 32, 48, 3) for image, mask in crops)
    scans = tiny_dataset.scans_of(tiny_dataset.training_folds(HELD_OUT))
    assert len(crops) == 3 * sum(-(-scan.shape[0] // 4) for scan in scans)  # each slice about once per epoch
    assert np.mean([mask.any() for _, mask in crops]) > 0.5
    wide = {mark for scan in tiny_cohort.scans if scan.image.shape[1:] == (40, 64) for mark in scan.marks}
    seen = 0
    for image, mask in crops:
        # The mark is in the middle third of the slice; a crop that contains enough of it identifies its slices.
        levels = [np.median(plane[plane > 0.2 * (plane < 0.9)]) if (plane > 0.2).any() else 0 for plane in image]
        shown = np.rint((np.array(levels) * 4000 - 1000) / 20).astype(int)
        if set(shown) <= wide and len(set(np.diff(shown))) == 1 and np.diff(shown)[0] == 1:
            scan = tiny_cohort.scan_of(shown[0])
            for plane, mark in zip(mask, shown, strict=True):
                truth = scan.masks[:, mark - scan.first_mark]
                assert not plane.any((0, 1))[~truth.any((1, 2))].any()
            seen += 1
    assert seen >= 5


def test_window_stride_mm_spaces_the_slices_of_a_window(tiny_cohort, train):
    batches = train(**unflipped(data__empty_slice_fraction=1, data__batch_size=1, data__window_stride_mm=6.0))
    windows = [window for image, _ in batches for window in tiny_cohort.marks_in(image).tolist()]
    inner = [w for w in windows if len(set(w)) == 3]
    assert inner and all(w[1] - w[0] in (1, 2) and w[2] - w[1] in (1, 2) for w in inner)
    assert any(w[1] - w[0] == 2 and w[2] - w[1] == 2 for w in inner)


@pytest.mark.parametrize("settings", [{"data__crop": "body"}, {"data__pixel_mm": 2.0}])
def test_training_and_validation_crop_a_scan_identically(tiny_dataset, settings):
    changes = unflipped(data__empty_slice_fraction=1, data__batch_size=1, data__window_slices=1, **settings)
    shown = []
    for fold, windows in ((1, training_windows), (2, validation_windows)):
        batches = as_arrays(windows(tiny_dataset, configured(**changes | {"data__fold": fold})))
        shown.append({image.tobytes() for image, *_ in batches})
    assert shown[1] <= shown[0]
