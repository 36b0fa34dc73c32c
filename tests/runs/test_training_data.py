"""The ranges of the training data: computed by hand from known scans, kept in the run, and checked when read."""

import json
from dataclasses import replace

import numpy as np
import pytest

from gitseg_tf.data.tfrecords.dataset import INDEX, load_dataset, save_index
from gitseg_tf.errors import RunError
from gitseg_tf.runs.training_data import (
    TRAINING_DATA,
    merge_training_data,
    read_training_data,
    summarize_scans,
    write_training_data,
)

LABELS = ("large_bowel", "small_bowel", "stomach")


@pytest.fixture
def summary(tiny_dataset):
    return summarize_scans(tiny_dataset.scans_of([0, 1, 2]), LABELS)


def test_the_dataset_stores_the_percentiles_of_each_scan(tiny_dataset, tiny_cohort):
    for entry in tiny_dataset.scans_of([0, 1, 2]):
        image = tiny_cohort[entry.id].image
        expected = np.percentile(image, [0, 0.5, 1, 5, 25, 50, 75, 95, 99, 99.5, 100], method="inverted_cdf")
        assert entry.percentiles == (tuple(expected.tolist()),)


def test_the_ranges_are_those_of_all_scans(summary, tiny_cohort):
    scans = tiny_cohort.scans
    assert summary.scans == len(scans) == 9
    for axis in range(3):
        spacing = [scan.spacing[axis] for scan in scans]
        extents = [scan.spacing[axis] * scan.image.shape[axis] for scan in scans]
        assert summary.spacing_mm[axis] == pytest.approx((min(spacing), max(spacing)))
        assert summary.field_of_view_mm[axis] == pytest.approx((min(extents), max(extents)))
    low, median, high = np.transpose([np.percentile(scan.image, [1, 50, 99], method="inverted_cdf") for scan in scans])
    (channel,) = summary.channels
    middle = (median - low) / (high - low)
    assert channel.low == (low.min(), low.max()) and channel.width == ((high - low).min(), (high - low).max())
    assert channel.middle == pytest.approx((middle.min(), middle.max()))
    assert summary.label_scans == {
        name: sum(bool(scan.masks[k].any()) for scan in scans) for k, name in enumerate(LABELS)
    }


def test_a_label_without_a_voxel_is_missing(tiny_dataset):
    scans = [replace(scan, label_slices=scan.label_slices | {"stomach": 0}) for scan in tiny_dataset.scans_of([0])]
    del scans[0].label_slices["small_bowel"]  # unannotated there, but present in the other scans
    assert summarize_scans(scans, LABELS).missing_labels == ["stomach"]
    assert summarize_scans(scans, (*LABELS, "liver")).missing_labels == ["stomach", "liver"]


def test_the_ranges_of_an_ensemble_are_those_of_all_networks(tiny_dataset, summary):
    parts = [summarize_scans(tiny_dataset.scans_of([fold]), LABELS) for fold in range(3)]
    merged = merge_training_data(parts)
    ranges = (merged.spacing_mm, merged.field_of_view_mm, merged.channels)
    assert ranges == (summary.spacing_mm, summary.field_of_view_mm, summary.channels)
    assert merged.scans == min(part.scans for part in parts)
    blind = replace(parts[0], label_scans=parts[0].label_scans | {"stomach": 0}, channels=None)
    assert merge_training_data([*parts, blind]).missing_labels == ["stomach"]
    assert merge_training_data([*parts, blind]).channels is None


def test_the_file_gives_back_what_was_written(summary, tmp_path):
    assert read_training_data(tmp_path) is None
    write_training_data(tmp_path, summary)
    assert read_training_data(tmp_path) == summary
    assert [path.name for path in tmp_path.iterdir()] == [TRAINING_DATA]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:40],
        lambda text: text.replace('"scans"', '"scan"'),
        lambda text: text.replace('"version": 1', '"version": 2'),
        lambda text: "[]",
    ],
)
def test_a_damaged_file_is_refused_in_one_line(summary, tmp_path, damage):
    write_training_data(tmp_path, summary)
    path = tmp_path / TRAINING_DATA
    path.write_text(damage(path.read_text()))
    with pytest.raises(RunError, match="is damaged") as caught:
        read_training_data(tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_dataset_without_percentiles_still_loads(tiny_dataset, tmp_path):
    """Older conversions lack them: the file is written here without them, by hand."""
    for shard in tiny_dataset.shards:
        (tmp_path / shard.file).symlink_to(tiny_dataset.root / shard.file)
    save_index(replace(tiny_dataset, root=tmp_path))
    tree = json.loads((tmp_path / INDEX).read_text())
    for shard in tree["shards"]:
        for scan in shard["scans"]:
            assert scan.pop("percentiles")
    (tmp_path / INDEX).write_text(json.dumps(tree))
    summary = summarize_scans(load_dataset(tmp_path).scans_of([0, 1, 2]), LABELS)
    assert summary.channels is None and summary.scans == 9
