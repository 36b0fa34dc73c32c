"""Every drawn slice shows its own number in the middle, so that a batch tells which slices it holds."""

import shutil
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from gitseg_tf.config import load_config
from gitseg_tf.data.convert import convert
from gitseg_tf.data.dataset import load_dataset
from gitseg_tf.data.pipeline import steps_per_epoch, training_windows, validation_steps, validation_windows

HELD_OUT, BATCH = 1, 8


def configured(**changes):
    overrides = {
        "data.size": [64, 64],
        "data.crop": "none",
        "data.slices": 3,
        "data.fold": HELD_OUT,
        "data.batch_size": BATCH,
        "data.empty_slices": 0.5,
        "training.epochs": 1,
    }
    return load_config(None, overrides | {key.replace("__", "."): value for key, value in changes.items()})


def drained(batches):
    return [tuple(part.numpy() for part in batch) for batch in batches]


@pytest.fixture(scope="module")
def train(drawn_dataset):
    """train(first_epoch=0, **changes) is the list of training batches; what was asked before is kept."""
    kept = {}

    def batches(first_epoch=0, **changes):
        changes = {"seed": 0} | changes
        key = (first_epoch, repr(sorted(changes.items())))
        if key not in kept:
            kept[key] = drained(training_windows(drawn_dataset, configured(**changes), first_epoch))
        return kept[key]

    return batches


@pytest.fixture(scope="module")
def plain(train):
    """The batches of an epoch without augmentation, all slices shown, one window a batch so that none is dropped."""
    return train(**unflipped(data__empty_slices=1, data__batch_size=1))


@pytest.fixture(scope="module")
def validated(drawn_dataset):
    return drained(validation_windows(drawn_dataset, configured()))


@pytest.fixture(scope="module")
def training_cases(drawn_dataset):
    return {scan.case for scan in drawn_dataset.scans_of(drawn_dataset.training_folds(HELD_OUT))}


@pytest.fixture(scope="module")
def held_out_cases(drawn_dataset):
    return {scan.case for scan in drawn_dataset.scans_of([HELD_OUT])}


def marks(cohort, batches):
    """The slices in the middle of the windows, in order."""
    return np.concatenate([cohort.marks_in(batch[0])[:, 1] for batch in batches]).tolist()


def same(one, other):
    return len(one) == len(other) and all(
        np.array_equal(a, b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True)
    )


def windows_in(batches):
    return {window.tobytes() for image, _ in batches for window in image}


def unflipped(**changes):
    off = {f"augment__{name}__p": 0 for name in ("flip", "affine", "elastic", "grid", "dropout")}
    return off | changes


TWO_PLAIN_EPOCHS = unflipped(data__empty_slices=1, training__epochs=2)


def test_training_shapes_are_known_beforehand(drawn_dataset):
    image, mask = training_windows(drawn_dataset, configured()).element_spec
    assert image.shape == (BATCH, 64, 64, 3) and mask.shape == (BATCH, 64, 64, 3)
    assert image.dtype == mask.dtype == "float32"


def test_validation_shapes_are_known_beforehand(drawn_dataset):
    image, mask, weight = validation_windows(drawn_dataset, configured(data__slices=5)).element_spec
    assert image.shape == (BATCH, 64, 64, 5) and mask.shape == (BATCH, 64, 64, 3) and weight.shape == (BATCH,)


def test_every_held_out_slice_is_validated_exactly_once(drawn, validated, held_out_cases):
    shown = [mark for image, _, weight in validated for mark in drawn.marks_in(image[weight == 1])[:, 1]]
    assert Counter(shown) == Counter(drawn.all_marks(held_out_cases))


def test_validation_weights_count_the_slices_and_fill_the_last_batch(drawn, drawn_dataset, validated, held_out_cases):
    weights = np.concatenate([weight for _, _, weight in validated])
    assert weights.sum() == len(drawn.all_marks(held_out_cases)) and set(weights) <= {0, 1}
    assert len(validated) == validation_steps(drawn_dataset, configured()) and weights.size == len(validated) * BATCH


def test_filled_up_samples_are_blank(validated):
    image, mask, weight = validated[-1]
    assert (weight == 0).any() and not image[weight == 0].any() and not mask[weight == 0].any()


def test_a_validation_mask_is_that_of_its_slice(drawn, validated):
    for image, mask, weight in validated:
        for mark, shown in zip(drawn.marks_in(image[weight == 1])[:, 1], mask[weight == 1], strict=True):
            scan = drawn.scan_of(mark)
            if scan.image.shape[1:] == (40, 64):  # not resized, only padded
                truth = np.moveaxis(scan.masks[:, mark - scan.first_mark], 0, -1)
                assert np.array_equal(shown[12:52], truth) and not shown[:12].any() and not shown[52:].any()


def test_intensities_are_0_to_1(validated):
    assert all(image.min() >= 0 and image.max() <= 1 for image, _, _ in validated)


def test_windows_repeat_slices_at_the_ends_and_before_gaps(drawn, plain):
    windows = {window[1]: window for image, _ in plain for window in drawn.marks_in(image).tolist()}
    for scan in drawn.scans:
        for z, (mark, number) in enumerate(zip(scan.marks, scan.numbers, strict=True)):
            if mark in windows:
                before = mark - 1 if z and scan.numbers[z - 1] == number - 1 else mark
                after = mark + 1 if z + 1 < len(scan.numbers) and scan.numbers[z + 1] == number + 1 else mark
                assert windows[mark] == [before, mark, after]


def test_an_epoch_shows_every_training_slice_once_when_all_empty_ones_are_asked(drawn, plain, training_cases):
    assert Counter(marks(drawn, plain)) == Counter(drawn.all_marks(training_cases))


def test_a_training_mask_is_that_of_its_slice(drawn, plain):
    for image, mask in plain:
        ((_, mark, _),) = drawn.marks_in(image)
        scan = drawn.scan_of(mark)
        truth = scan.masks[:, mark - scan.first_mark]
        assert np.array_equal(mask[0].any((0, 1)), truth.any((1, 2)))


def test_without_empty_slices_an_epoch_is_the_slices_with_organ(drawn, train, training_cases):
    batches = train(**unflipped(data__empty_slices=0, data__batch_size=1))
    assert Counter(marks(drawn, batches)) == Counter(drawn.filled_marks(training_cases))


def test_half_of_the_empty_slices_of_each_scan_are_shown_when_asked(drawn, train, training_cases):
    shown = Counter(marks(drawn, train(**unflipped(data__empty_slices=0.5, data__batch_size=1))))
    filled = drawn.filled_marks(training_cases)
    assert filled <= set(shown) and max(shown.values()) == 1
    for scan in drawn.scans:
        if scan.case in training_cases:
            empty = set(scan.marks) - filled
            assert len(empty & set(shown)) == np.floor(len(empty) / 2 + 0.5)


def test_windows_that_fill_no_batch_are_left_out(drawn, drawn_dataset, train, plain):
    batches = train(**unflipped(data__empty_slices=1, data__batch_size=7))
    assert len(plain) % 7 and len(batches) == len(plain) // 7
    assert all(image.shape[0] == 7 for image, _ in batches)
    assert len(set(marks(drawn, batches))) == 7 * len(batches)


def test_steps_are_the_batches_that_come(drawn_dataset, train):
    assert len(train(training__epochs=3)) == 3 * steps_per_epoch(drawn_dataset, configured())


def test_an_organ_too_small_for_the_models_size_still_counts(drawn, drawn_dataset):
    fold = next(shard.fold for shard in drawn_dataset.shards if any(s.id == "case4_day0" for s in shard.scans))
    changes = {"data__fold": (fold + 1) % 3, "data__size": [32, 32], "data__empty_slices": 0, "data__batch_size": 1}
    config = configured(**unflipped(**changes))
    batches = drained(training_windows(drawn_dataset, config))
    assert len(batches) == steps_per_epoch(drawn_dataset, config)
    assert drawn["case4_day0"].marks[1] in marks(drawn, batches)


def test_held_out_patients_are_never_trained_on(drawn, train, held_out_cases):
    batches = train(**TWO_PLAIN_EPOCHS)
    shown = {mark for image, _ in batches for mark in drawn.marks_in(image).ravel()}
    assert shown and not shown & drawn.all_marks(held_out_cases)


def test_the_same_seed_gives_the_same_batches(drawn_dataset, train):
    assert same(drained(training_windows(drawn_dataset, configured(training__epochs=3))), train(training__epochs=3))


def test_another_seed_flips_other_windows(train):
    # The bright bar is on the left of a slice that is not flipped.
    one, other = (
        [window[:, :32].sum() > window[:, 32:].sum() for image, _ in batches for window in image]
        for batches in (train(training__epochs=3), train(training__epochs=1, seed=1))
    )
    assert any(other) and not all(other) and one[: len(other)] != other


def test_another_seed_gives_another_order(drawn, train):
    one = marks(drawn, train(**TWO_PLAIN_EPOCHS))
    other = marks(drawn, train(**TWO_PLAIN_EPOCHS | {"seed": 1, "training__epochs": 1}))
    assert one[: len(other)] != other


def test_epochs_differ_in_order(drawn, train):
    batches = train(**TWO_PLAIN_EPOCHS)
    half = len(batches) // 2
    assert marks(drawn, batches[:half]) != marks(drawn, batches[half:])


def test_epochs_differ_in_their_random_changes(train, drawn_dataset):
    batches, steps = train(training__epochs=3), steps_per_epoch(drawn_dataset, configured())
    first, second = windows_in(batches[:steps]), windows_in(batches[steps:])
    assert len(first & second) < 0.2 * len(first)


@pytest.mark.parametrize("cache_mib", [0, 1024], ids=["from disk", "in memory"])
@pytest.mark.parametrize("first_epoch", [1, 2])
def test_a_later_first_epoch_yields_what_the_undisturbed_stream_yields_there(
    train, drawn_dataset, cache_mib, first_epoch
):
    steps = steps_per_epoch(drawn_dataset, configured())
    whole = train(training__epochs=3, data__cache_mib=cache_mib)
    later = train(first_epoch, training__epochs=3, data__cache_mib=cache_mib)
    assert same(later, whole[first_epoch * steps :])


def test_an_epoch_from_disk_shows_every_slice_once_too(drawn, train, training_cases):
    batches = train(**unflipped(data__empty_slices=1, data__batch_size=1, data__cache_mib=0))
    assert Counter(marks(drawn, batches)) == Counter(drawn.all_marks(training_cases))


def test_scans_in_memory_are_read_once(drawn, drawn_dataset, tmp_path):
    root = shutil.copytree(drawn_dataset.root, tmp_path / "dataset")
    config = configured(**unflipped(training__epochs=3))
    batches = iter(training_windows(load_dataset(root), config))
    steps = steps_per_epoch(drawn_dataset, config)
    seen = [next(batches) for _ in range(steps)]
    for path in root.glob("*.tfrecord"):
        path.unlink()
    seen += list(batches)
    assert len(seen) == 3 * steps


def test_a_batch_mixes_scans(drawn, train):
    batches = train(**TWO_PLAIN_EPOCHS)
    scans = [{drawn.scan_of(mark).id for mark in drawn.marks_in(image)[:, 1]} for image, _ in batches]
    assert np.mean([len(ids) for ids in scans]) >= 3


def test_scans_do_not_take_turns(drawn, train):
    first_ones = [drawn.scan_of(mark).id for mark in marks(drawn, train(**TWO_PLAIN_EPOCHS))[:24]]
    assert any(one == after for one, after in pairwise(first_ones))


def test_augmented_masks_stay_zero_or_one(train):
    assert all(set(np.unique(mask)) <= {0, 1} for _, mask in train(training__epochs=3))


def test_fewer_windows_than_a_batch_are_repeated_until_they_fill_it(drawn, drawn_dataset):
    config = configured(**unflipped(data__batch_size=100, training__epochs=1))
    batches = list(training_windows(drawn_dataset, config))
    assert len(batches) == steps_per_epoch(drawn_dataset, config) == 1
    marks = Counter(drawn.marks_in(batches[0][0])[:, config.data.slices // 2].tolist())
    assert sum(marks.values()) == 100
    assert max(marks.values()) - min(marks.values()) <= 1


def test_no_window_to_train_on_is_refused(draw, tmp_path, refusal):
    cohort = draw(tmp_path / "cohort")
    (cohort.root / "train.csv").write_text("id,class,segmentation\n")
    dataset = convert(cohort.root, tmp_path / "records", folds=2)
    assert "nothing to train on" in refusal(training_windows, dataset, configured(data__empty_slices=0))


@pytest.mark.parametrize("windows", [training_windows, validation_windows, steps_per_epoch, validation_steps])
def test_a_fold_that_is_not_there_is_refused(drawn_dataset, refusal, windows):
    assert "folds 0 to 2, not 3" in refusal(windows, drawn_dataset, configured(data__fold=3))


@pytest.mark.parametrize("windows", [training_windows, validation_windows])
def test_scans_without_contours_are_refused(draw, tmp_path, refusal, windows):
    draw(tmp_path / "cohort", [("case1_day0", (40, 64), range(1, 5))], labelled=False)
    dataset = convert(tmp_path / "cohort", tmp_path / "out")
    assert "no contours" in refusal(windows, dataset, configured(data__fold=0))


def test_scans_that_are_excluded_are_never_shown(drawn, drawn_dataset, train, training_cases):
    scan = next(scan for scan in drawn.scans if scan.case in training_cases)
    changes = unflipped(data__empty_slices=1, data__batch_size=1, data__exclude_scans=[scan.id])
    shown = set(marks(drawn, train(**changes)))
    assert shown == drawn.all_marks(training_cases) - set(scan.marks)
    assert steps_per_epoch(drawn_dataset, configured(**changes)) == len(shown)


def test_a_scan_that_is_excluded_is_not_validated(drawn, drawn_dataset, held_out_cases):
    scan = next(scan for scan in drawn.scans if scan.case in held_out_cases)
    config = configured(data__exclude_scans=[scan.id])
    batches = drained(validation_windows(drawn_dataset, config))
    shown = {mark for image, _, weight in batches for mark in drawn.marks_in(image[weight == 1])[:, 1]}
    assert shown == drawn.all_marks(held_out_cases) - set(scan.marks)
    assert len(batches) == validation_steps(drawn_dataset, config)


def organ_counts(batches):
    return sum(mask.any((1, 2)).sum(0) for _, mask in batches)


def test_a_balanced_epoch_shows_rarer_organs_more_often(drawn_dataset, train):
    plain, balanced = (
        train(**unflipped(data__empty_slices=0, data__batch_size=1, data__balance_organs=share)) for share in (0, 1)
    )
    before, after = organ_counts(plain), organ_counts(balanced)
    assert before.min() < 0.5 * before.max() and after.min() / after.max() > 1.6 * before.min() / before.max()
    config = configured(data__empty_slices=0, data__batch_size=1, data__balance_organs=1)
    assert len(balanced) == steps_per_epoch(drawn_dataset, config)


def test_left_to_the_accelerator_windows_are_not_changed(train, plain):
    changes = {"augment__on": "accelerator", "data__empty_slices": 1, "data__batch_size": 1}
    assert same(train(**changes), plain)


@pytest.mark.parametrize("cache_mib", [0, 1024], ids=["from disk", "in memory"])
def test_patches_are_crops_of_neighbouring_slices_with_the_mask_of_each(drawn, drawn_dataset, train, cache_mib):
    changes = {"data__patch": [4, 32, 48], "data__size": [96, 96], "data__cache_mib": cache_mib}
    changes |= {"model__architecture": "unet3d", "data__empty_slices": 1, "data__batch_size": 1, "training__epochs": 3}
    batches = train(**unflipped(**changes))
    crops = [(image, mask) for images, masks in batches for image, mask in zip(images, masks, strict=True)]
    assert all(image.shape == (4, 32, 48, 1) and mask.shape == (4, 32, 48, 3) for image, mask in crops)
    scans = drawn_dataset.scans_of(drawn_dataset.training_folds(HELD_OUT))
    assert len(crops) == 3 * sum(-(-scan.shape[0] // 4) for scan in scans)  # each slice about once an epoch
    assert np.mean([mask.any() for _, mask in crops]) > 0.5
    wide = {mark for scan in drawn.scans if scan.image.shape[1:] == (40, 64) for mark in scan.marks}
    seen = 0
    for image, mask in crops:
        # The mark is in the middle third of the slice; a crop that shows enough of it tells which slices it holds.
        levels = [np.median(plane[plane > 0.2 * (plane < 0.9)]) if (plane > 0.2).any() else 0 for plane in image]
        shown = np.rint((np.array(levels) * 4000 - 1000) / 20).astype(int)
        if set(shown) <= wide and len(set(np.diff(shown))) == 1 and np.diff(shown)[0] == 1:
            scan = drawn.scan_of(shown[0])
            for plane, mark in zip(mask, shown, strict=True):
                truth = scan.masks[:, mark - scan.first_mark]
                assert not plane.any((0, 1))[~truth.any((1, 2))].any()
            seen += 1
    assert seen >= 5


def test_a_window_of_slices_at_a_distance_in_mm(drawn, train):
    batches = train(**unflipped(data__empty_slices=1, data__batch_size=1, data__stride_mm=6.0))
    windows = [window for image, _ in batches for window in drawn.marks_in(image).tolist()]
    inner = [w for w in windows if len(set(w)) == 3]
    assert inner and all(w[1] - w[0] in (1, 2) and w[2] - w[1] in (1, 2) for w in inner)
    assert any(w[1] - w[0] == 2 and w[2] - w[1] == 2 for w in inner)


@pytest.mark.parametrize("settings", [{"data__crop": "body"}, {"data__pixel_mm": 2.0}])
def test_training_and_validation_see_a_scan_in_the_same_place(drawn_dataset, settings):
    changes = unflipped(data__empty_slices=1, data__batch_size=1, data__slices=1, **settings)
    shown = []
    for fold, windows in ((1, training_windows), (2, validation_windows)):
        batches = drained(windows(drawn_dataset, configured(**changes | {"data__fold": fold})))
        shown.append({image.tobytes() for image, *_ in batches})
    assert shown[1] <= shown[0]
