"""Many labels, several channels, unannotated labels and ignored voxels, compared with numpy.

Each scan has the input size, and its second channel is constant per slice, so that it identifies the slice.
"""

from collections import Counter
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from gitseg_tf.config import load_config
from gitseg_tf.data.pipeline import windows as windows_module
from gitseg_tf.data.pipeline.batches import training_windows, validation_steps, validation_windows
from gitseg_tf.data.pipeline.epochs import steps_per_epoch
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.data.tfrecords.index import Shard, count_label_sets
from gitseg_tf.errors import ConfigError
from gitseg_tf.labels import LabelSet

DEPTH, SIZE = 6, 64
WINDOWS = [{"kind": "window", "low": -160, "high": 240}, {"kind": "window", "level": 50, "width": 100}]
OFF = {f"augment.{name}.p": 0 for name in ("flip", "affine", "elastic", "grid", "dropout")}


class Cohort:
    """Scans in memory; a TFRecord contains only the number of a scan, which `parse` reads."""

    def __init__(self, root, labels, scans=4, folds=2, seed=0):
        rng = np.random.default_rng(seed)
        self.labels = LabelSet.of(*(f"label{k}" for k in range(labels)))
        self.image = rng.uniform(-1000, 1000, (scans, DEPTH, SIZE, SIZE, 2)).astype(np.float32)
        self.image[..., 1] = np.arange(scans * DEPTH).reshape(scans, DEPTH, 1, 1)
        self.masks = np.zeros((scans, labels, DEPTH, SIZE, SIZE), bool)
        for mask in self.masks.reshape(-1, SIZE, SIZE):
            if rng.random() < 0.4:
                y, x = rng.integers(0, SIZE - 20, 2)
                mask[y : y + rng.integers(1, 20), x : x + rng.integers(1, 20)] = True
        self.annotated = np.ones((scans, labels), bool)
        self.ignore = np.zeros((scans, DEPTH, SIZE, SIZE), bool)
        self.root, self.folds = root, folds

    def parse(self, record):
        number = tf.strings.to_number(record, tf.int32)
        bits = np.moveaxis(np.packbits(self.masks, 1, bitorder="little"), 1, -1)
        moments = np.stack([self.image.mean((1, 2, 3)), self.image.std((1, 2, 3))], -1)
        percentiles = np.repeat(np.linspace(-1000, 1000, 11, dtype=np.float32)[None], 2, 0)
        return {
            "id": tf.strings.join(["case", record]),
            "case": tf.strings.join(["case", record]),
            "numbers": tf.range(DEPTH, dtype=tf.int64),
            "spacing": tf.constant([3.0, 1.0, 1.0]),
            "image": tf.gather(self.image, number),
            "percentiles": tf.constant(percentiles),
            "moments": tf.gather(moments.astype(np.float32), number),
            "bits": tf.gather(bits, number),
            "annotated": tf.gather(self.annotated, number),
            "ignore": tf.gather(self.ignore, number),
        }

    def dataset(self):
        shards = []
        for fold in range(self.folds):
            numbers = range(fold, len(self.image), self.folds)
            with tf.io.TFRecordWriter(str(self.root / f"{fold}.tfrecord")) as file:
                for number in numbers:
                    file.write(str(number))
            shards.append(Shard(f"{fold}.tfrecord", fold, 0, "", tuple(map(self.entry, numbers))))
        return Dataset(self.root, {}, self.folds, 0, tuple(shards), self.labels, ("ct", "pet"))

    def entry(self, number):
        shown = self.known(number).any((2, 3))
        slices = {name: int(shown[k].sum()) for k, name in enumerate(self.labels.names) if self.annotated[number, k]}
        return SimpleNamespace(
            id=f"case{number}",
            case=f"case{number}",
            shape=(DEPTH, SIZE, SIZE),
            spacing=(3.0, 1.0, 1.0),
            label_slices=slices,
            empty_slices=int((~shown.any(0)).sum()),
            label_sets=count_label_sets(shown),
        )

    def known(self, number):
        return self.masks[number] & self.annotated[number][:, None, None, None]

    def normal(self, number):
        """[D, H, W, 2] in [0, 1]."""
        low, high = np.array([-160, 0]), np.array([240, 100])
        return np.clip((self.image[number] - low) / (high - low), 0, 1)

    def mask(self, number, labels=None):
        """[D, H, W, L] of 0, 1 and -1."""
        order = [self.labels.index(name) for name in labels or self.labels.names]
        counts = self.annotated[number][:, None, None, None] & ~self.ignore[number]
        return np.moveaxis(np.where(counts, self.masks[number].astype(float), -1), 0, -1)[..., order]


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    """cohort(labels) is a `Cohort` that the pipeline can read."""

    def make(labels=12, **settings):
        cohort = Cohort(tmp_path, labels, **settings)
        monkeypatch.setattr(windows_module, "parse_scan", cohort.parse)
        return cohort

    return make


@pytest.fixture
def partial(cohort):
    """12 labels, two of them unannotated in each of scans 0 and 1, and ignored voxels in scans 1 and 2."""
    cohort = cohort()
    cohort.annotated[0, [3, 9]] = cohort.annotated[1, [0, 11]] = False
    cohort.ignore[1, 2:4, 10:30, 5:50] = cohort.ignore[2, :, :7] = True
    return cohort


def configured(cohort, **changes):
    settings = {
        "data.input_size": [SIZE, SIZE],
        "data.crop": "none",
        "data.window_slices": 3,
        "data.fold": 1,
        "data.batch_size": 1,
        "data.empty_slice_fraction": 1,
        "data.intensity": WINDOWS,
        "training.epochs": 1,
    }
    settings |= OFF | {key.replace("__", "."): value for key, value in changes.items()}
    return load_config(None, settings).for_dataset(cohort.labels, ("ct", "pet"))


def as_arrays(batches):
    return [tuple(part.numpy() for part in batch) for batch in batches]


def slices_in(image):
    """The slices that planes [..., H, W, C] of the second channel show, as (scan, slice)."""
    marks = np.rint(image[..., SIZE // 2, SIZE // 2, 1::2] * 100).astype(int)
    return np.stack(np.divmod(marks, DEPTH), -1)


def check_windows(cohort, batches, labels=None):
    """Compare windows of three slices with numpy; return the (scan, slice) in the middle of each."""
    middles = []
    for images, masks, *_ in batches:
        for image, mask in zip(images, masks, strict=True):
            shown = slices_in(image)
            planes = [cohort.normal(scan)[z] for scan, z in shown]
            assert np.abs(image - np.concatenate(planes, -1)).max() < 1e-4
            scan, z = shown[1]
            assert np.array_equal(mask, cohort.mask(scan, labels)[z])
            middles.append((int(scan), int(z)))
    return middles


def test_training_windows_hold_all_channels_of_each_slice_and_the_mask_of_each_label(partial):
    dataset, config = partial.dataset(), configured(partial)
    batches = as_arrays(training_windows(dataset, config))
    assert batches[0][0].shape == (1, SIZE, SIZE, 6) and batches[0][1].shape == (1, SIZE, SIZE, 12)
    shown = check_windows(partial, batches)
    assert Counter(shown) == Counter((scan, z) for scan in (0, 2) for z in range(DEPTH))


def test_validation_windows_hold_all_channels_of_each_slice_and_the_mask_of_each_label(partial):
    dataset, config = partial.dataset(), configured(partial, data__batch_size=5)
    batches = as_arrays(validation_windows(dataset, config))
    assert len(batches) == validation_steps(dataset, config)
    counted = [(image[weight == 1], mask[weight == 1]) for image, mask, weight in batches]
    assert check_windows(partial, counted) == [(scan, z) for scan in (1, 3) for z in range(DEPTH)]
    assert not any(mask[weight == 0].any() for _, mask, weight in batches)


@pytest.mark.parametrize("windows", [training_windows, validation_windows])
def test_patches_have_channels_last_and_ignored_voxels_are_negative(partial, windows):
    changes = {"data__patch": [4, SIZE, SIZE], "model__architecture": "unet3d"}
    batches = as_arrays(windows(partial.dataset(), configured(partial, **changes)))
    counted = Counter()
    for (image,), (mask,), *_ in batches:
        assert image.shape == (4, SIZE, SIZE, 2) and mask.shape == (4, SIZE, SIZE, 12)
        for plane, of_plane in zip(image, mask, strict=True):
            scan, z = map(int, slices_in(plane)[0])
            assert np.abs(plane - partial.normal(scan)[z]).max() < 1e-4
            expected = partial.mask(scan)[z]
            if windows is training_windows or (of_plane >= 0).any():
                assert np.array_equal(of_plane, expected)
                counted[scan, z] += 1
    if windows is validation_windows:
        assert counted == Counter({(scan, z): 1 for scan in (1, 3) for z in range(DEPTH)})


def test_labels_can_be_dropped_and_reordered(partial):
    names = ("label9", "label1", "label11")
    config = configured(partial, data__labels=names)
    assert config.label_set.names == names
    batches = as_arrays(training_windows(partial.dataset(), config))
    assert batches[0][1].shape == (1, SIZE, SIZE, 3)
    assert {scan for scan, _ in check_windows(partial, batches, names)} == {0, 2}


@pytest.mark.parametrize("names", [("label3",), ("label3", "label5")])
def test_unannotated_labels_do_not_make_a_slice_nonempty(partial, names):
    # The records contain voxels of label3 in scan 0, where it is unannotated; they must not count.
    config = configured(partial, data__labels=names, data__empty_slice_fraction=0)
    dataset = partial.dataset()
    order = [partial.labels.index(name) for name in names]
    filled = {(scan, z) for scan in (0, 2) for z in range(DEPTH) if partial.known(scan)[order, z].any()}
    batches = as_arrays(training_windows(dataset, config))
    assert len(batches) == steps_per_epoch(dataset, config)
    assert set(check_windows(partial, batches, names)) == filled


def test_balancing_counts_annotated_labels_and_shows_rare_ones_more_often(cohort):
    cohort = cohort(3)
    cohort.masks[:] = False
    cohort.masks[:, 0, :, 5:9] = cohort.masks[:, 1, 2, 20:30] = cohort.masks[0, 2, :, 40:44] = True
    cohort.annotated[0, 2] = False
    dataset = cohort.dataset()
    plain, balanced = (configured(cohort, data__balance_labels=share) for share in (0, 1))
    counts = [Counter(check_windows(cohort, as_arrays(training_windows(dataset, c)))) for c in (plain, balanced)]
    assert counts[0] == Counter((scan, z) for scan in (0, 2) for z in range(DEPTH))
    # Label 1 is in one slice of six; label 2 is annotated only in scan 2, where it is absent.
    assert counts[1] == counts[0] + Counter({(0, 2): 5, (2, 2): 5})
    assert steps_per_epoch(dataset, balanced) == counts[1].total()


def test_balancing_does_not_make_the_second_label_rarer(cohort):
    # Label 0 is in all 12 slices, label 1 in 6 of them, label 2 in one that does not show label 1.
    cohort = cohort(3)
    cohort.masks[:] = False
    cohort.masks[:, 0, :, 5:9] = cohort.masks[[0, 2], 1, :3, 20:30] = cohort.masks[2, 2, 5, 40:44] = True
    dataset, config = cohort.dataset(), configured(cohort, data__balance_labels=1)
    shown = check_windows(cohort, as_arrays(training_windows(dataset, config)))
    assert len(shown) == steps_per_epoch(dataset, config) == 28
    # 16 extra windows: 6 more slices would make label 1 and 10 more label 2 as frequent as label 0 was. Label 1 stays
    # in half of the windows, so it gets 8 of them.
    windows = [sum(cohort.masks[scan, k, z].any() for scan, z in shown) for k in range(3)]
    assert windows == [28, 14, 9]
    assert set(shown) == {(scan, z) for scan in (0, 2) for z in range(DEPTH)}


def mean_distance(cohort, **changes):
    """Between two windows of a scan, as a fraction of the epoch."""
    wide = [WINDOWS[0], {"kind": "window", "low": 0, "high": 1000}]  # 480 slices have a mark of their own
    config = configured(cohort, data__window_slices=1, data__intensity=wide, **changes)
    batches = training_windows(cohort.dataset(), config).as_numpy_iterator()
    scans = np.array([round(float(image[0, 0, 0, 1]) * 1000) // DEPTH for image, _ in batches])
    assert Counter(scans.tolist()) == Counter({scan: DEPTH for scan in range(0, 80, 2)})
    places = [np.flatnonzero(scans == scan) for scan in set(scans.tolist())]
    distances = [abs(a - b) for at in places for a, b in combinations(at.tolist(), 2)]
    return np.mean(distances) / len(scans)


@pytest.mark.slow
def test_scans_in_memory_are_shuffled_over_the_whole_epoch(cohort):
    # Two positions of a random permutation of n differ by n / 3 on average; the 600 pairs here vary by less than 0.03.
    cohort = cohort(1, scans=80)
    assert abs(mean_distance(cohort) - 1 / 3) < 0.05
    assert mean_distance(cohort, data__shuffle_buffer=8, data__cache_mib=0) < 0.25


@pytest.mark.parametrize("cache_mib", [0, 1024], ids=["from disk", "in memory"])
@pytest.mark.parametrize("balance", [0, 1])
def test_starting_within_an_epoch_continues_the_same_stream(partial, cache_mib, balance):
    changes = {"data__cache_mib": cache_mib, "data__balance_labels": balance, "training__epochs": 3}
    dataset, config = partial.dataset(), configured(partial, data__batch_size=2, **changes)
    whole, steps = as_arrays(training_windows(dataset, config)), steps_per_epoch(dataset, config)
    later = as_arrays(training_windows(dataset, config, first_epoch=1, first_step=2))
    assert len(whole) == 3 * steps and len(later) == 2 * steps - 2
    for batch, other in zip(whole[steps + 2 :], later, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(batch, other, strict=True))


def test_a_scan_without_annotated_labels_is_not_trained_on(partial):
    partial.annotated[2] = False
    dataset, config = partial.dataset(), configured(partial)
    batches = as_arrays(training_windows(dataset, config))
    assert {scan for scan, _ in check_windows(partial, batches)} == {0}
    assert len(batches) == steps_per_epoch(dataset, config) == DEPTH


@pytest.mark.parametrize("cache_mib", [0, 1024], ids=["from disk", "in memory"])
def test_slices_that_may_show_an_unannotated_label_are_not_taken_for_empty(cohort, cache_mib):
    # Label 0 is in slices 0 and 1, label 1 in slices 1 to 3. Scans 0 to 6 are complete, scan 8 lacks label 1.
    cohort = cohort(2, scans=10)
    cohort.masks[:] = False
    cohort.masks[:, 0, :2, 5:9] = cohort.masks[:, 1, 1:4, 20:30] = True
    cohort.annotated[8, 1] = False
    config = configured(cohort, data__empty_slice_fraction=0.5, data__cache_mib=cache_mib)
    dataset = cohort.dataset()
    shown = Counter(scan for scan, _ in check_windows(cohort, as_arrays(training_windows(dataset, config))))
    # Of the 4 slices without label 0, the complete scans show label 1 in 2. So 2 + 0.5 * 2 of them are used.
    assert shown == {0: 5, 2: 5, 4: 5, 6: 5, 8: 5}
    assert steps_per_epoch(dataset, config) == shown.total()
    none = configured(cohort, data__empty_slice_fraction=0, data__cache_mib=cache_mib)
    assert steps_per_epoch(dataset, none) == 4 * 4 + 2


def test_training_folds_without_any_annotation_of_the_labels_are_refused(partial, refusal):
    partial.annotated[:, 3] = False
    config = configured(partial, data__labels=["label3"])
    assert "nothing to train on, because no scan of the training folds has an annotation of label3;" in refusal(
        training_windows, partial.dataset(), config
    )


def test_a_validation_scan_without_annotation_is_ignored(partial):
    partial.annotated[3] = False
    masks = np.concatenate(
        [mask for _, mask, _ in as_arrays(validation_windows(partial.dataset(), configured(partial)))]
    )
    assert (masks[DEPTH:] == -1).all() and (masks[:DEPTH] >= 0).any()


@pytest.mark.parametrize("labels", [1, 7, 8, 255])
def test_windows_are_correct_for_any_number_of_labels(cohort, labels):
    cohort = cohort(labels, scans=2)
    cohort.annotated[:, -1] = labels == 1
    cohort.ignore[:, :, 3:9, 3:9] = True
    dataset, config = cohort.dataset(), configured(cohort)
    assert len(check_windows(cohort, as_arrays(training_windows(dataset, config)))) == steps_per_epoch(dataset, config)


def test_masks_are_resized_like_an_image_and_thresholded_at_one_half(cohort):
    cohort = cohort(9)
    cohort.ignore[0, :, 20:40, 20:40] = True
    batches = as_arrays(training_windows(cohort.dataset(), configured(cohort, data__input_size=[32, 32])))
    by_mark = {round(float(image[16, 16, 3]) * 100): mask for (image,), (mask,) in batches}
    assert len(by_mark) == 2 * DEPTH
    for mark, mask in by_mark.items():
        scan, z = divmod(mark, DEPTH)
        planes = np.moveaxis(cohort.masks[scan, :, z], 0, -1).astype(np.float32)
        expected = (tf.image.resize(planes, [32, 32], antialias=True).numpy() >= 0.5).astype(float)
        if scan == 0:
            expected[10:20, 10:20] = -1
        assert np.array_equal(mask, expected)


def test_a_dataset_without_a_label_or_with_other_channels_is_refused(partial, refusal):
    dataset = partial.dataset()
    other = configured(partial).for_dataset(LabelSet.of("label1", "spleen"), ("ct", "pet"))
    assert "unknown label 'spleen'" in refusal(training_windows, dataset, other)
    other = load_config().for_dataset(partial.labels, ("t1",))
    message = refusal(validation_windows, dataset, other)
    assert "has the channels ct, pet, but the config is for t1" in message


def test_an_unknown_label_of_the_config_is_refused(partial):
    config = load_config(None, {"data.labels": ["label1", "labl2"]})
    with pytest.raises(ConfigError, match=r"data.labels: unknown label 'labl2'; did you mean 'label2'\?"):
        config.for_dataset(partial.labels, ("ct", "pet"))


@pytest.mark.parametrize("labels", [["a", "b", "a"], []])
def test_duplicate_labels_and_an_empty_label_list_are_refused(refusal, labels):
    assert "data.labels" in refusal(load_config, None, {"data.labels": labels})
