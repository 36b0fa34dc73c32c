"""Warnings about scans unlike the training data: alarms where they belong, and none for scans like those."""

import numpy as np
import pytest
from helpers.configs import tiny_config

from gitseg_tf.config import save_config
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.data.tfrecords.dataset import read_scans
from gitseg_tf.data.tfrecords.index import ScanEntry
from gitseg_tf.data.volume import Volume
from gitseg_tf.inference.trust import model_training_data, model_warnings, scan_warnings
from gitseg_tf.phantom.cohort import make_phantom
from gitseg_tf.runs.training_data import summarize_scans, write_training_data

SHAPE, SPACING = (40, 60, 80), (3.0, 1.5, 1.5)


def body(low, high, seed=0, shape=SHAPE, air=0.6):
    """A scan of air (low) around a body up to `high`."""
    random = np.random.default_rng(seed)
    voxels = low + np.abs(random.normal(0, 0.01 * (high - low), shape))
    inside = random.random(shape) > air
    voxels[inside] = random.uniform(low + 0.3 * (high - low), high, inside.sum())
    return voxels.astype(np.int16)


def entry(volume):
    percentiles = tuple(tuple(map(float, channel)) for channel in volume.percentiles)
    return ScanEntry("scan", "case", volume.shape, volume.spacing, {}, 0, (), percentiles)


def trained_on(*volumes):
    return summarize_scans([entry(volume) for volume in volumes], ())


@pytest.fixture(scope="module")
def mr():
    return trained_on(*(Volume(body(2, high, seed), SPACING) for seed, high in enumerate((800, 1000, 1200))))


@pytest.fixture(scope="module")
def ct():
    return trained_on(*(Volume(body(-1013, high, seed), SPACING) for seed, high in enumerate((300, 400))))


def test_ct_through_a_model_of_mr(mr, ct):
    scan = Volume(body(-1013, 350, 9), SPACING)
    low = np.percentile(scan.voxels, 1, method="inverted_cdf")
    assert scan_warnings(scan, mr) == [f"intensities from {low:.0f}, as in CT (training data: from 2, not CT)"]
    assert scan_warnings(scan, ct) == []


def test_mr_through_a_model_of_ct(mr, ct):
    scan = Volume(body(2, 900, 9), SPACING)
    (warning,) = scan_warnings(scan, ct)
    assert warning == "intensities from 2, not as in CT (training data: from -1012, CT)"
    assert scan_warnings(scan, mr) == []


def test_a_model_of_both_takes_both():
    both = trained_on(Volume(body(-1013, 350), SPACING), Volume(body(2, 900), SPACING))
    assert scan_warnings(Volume(body(-1000, 300, 5), SPACING), both) == []
    assert scan_warnings(Volume(body(2, 1000, 5), SPACING), both) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda v: v, None),
        (lambda v: v * 1.5, None),
        (lambda v: v / 2, None),
        (lambda v: v * 10, "intensities span"),
        (lambda v: v / 10, "intensities span"),
        (lambda v: v + 3000, "intensities begin at 30"),
        (lambda v: v - 400, None),
        (lambda v: v.max() - v, "median intensity at"),
        (lambda v: (v - v.mean()) / v.std(), "intensities span"),
    ],
)
def test_intensities_far_from_the_training_data(mr, change, expected):
    warnings = scan_warnings(Volume(change(body(2, 1000, 7).astype(np.float32)), SPACING), mr)
    assert [warning[: len(expected)] for warning in warnings] == [expected] if expected else warnings == []


@pytest.mark.parametrize(
    ("spacing", "alarm"),
    [
        ((3.0, 1.5, 1.5), False),
        ((4.4, 1.5, 1.5), False),
        ((4.6, 1.5, 1.5), True),
        ((3.0, 1.1, 1.1), False),
        ((3.0, 0.9, 0.9), True),
        ((9.0, 4.5, 4.5), True),
    ],
)
def test_spacing_far_from_the_training_data(mr, spacing, alarm):
    warnings = [line for line in scan_warnings(Volume(body(2, 1000, 7), spacing), mr) if line.startswith("spacing")]
    lengths = " x ".join(f"{length:g}" for length in spacing)
    assert warnings == [f"spacing {lengths} mm (training data: 3 x 1.5 x 1.5 mm)"] * alarm


@pytest.mark.parametrize(
    ("shape", "alarm"),
    [
        ((40, 60, 80), False),
        ((30, 60, 80), False),
        ((28, 60, 80), True),
        ((55, 60, 80), False),
        ((57, 60, 80), True),
        ((40, 44, 58), False),
        ((40, 60, 40), True),
        ((40, 30, 80), True),
    ],
)
def test_a_field_of_view_far_from_the_training_data(mr, shape, alarm):
    extents = " x ".join(f"{size * length:g}" for size, length in zip(shape, SPACING, strict=True))
    expected = [f"field of view {extents} mm (training data: 120 x 90 x 120 mm)"] * alarm
    assert scan_warnings(Volume(body(2, 1000, 7, shape), SPACING), mr) == expected


def test_ranges_are_named_from_the_lowest_to_the_highest():
    data = trained_on(Volume(body(2, 900), (3.0, 1.25, 1.25)), Volume(body(2, 900), (3.0, 1.5, 1.63)))
    (spacing, _) = scan_warnings(Volume(body(2, 900), (9.0, 1.5, 1.5)), data)
    assert spacing == "spacing 9 x 1.5 x 1.5 mm (training data: 3 x 1.25-1.5 x 1.25-1.63 mm)"


def test_each_channel_is_compared_with_its_own_range():
    pair = np.stack([body(2, 900), body(2, 9000)], -1)
    data = trained_on(Volume(pair, SPACING))
    assert scan_warnings(Volume(pair, SPACING), data) == []
    swapped = scan_warnings(Volume(pair[..., ::-1], SPACING), data)
    assert [line.split(" (")[0].rsplit(" ", 1)[0] for line in swapped] == [
        "intensities of channel 1 span",
        "intensities of channel 2 span",
    ]


@pytest.fixture
def run(tmp_path):
    """run(epochs, **config) writes the folder of a run with so many finished epochs."""

    def write(epochs, **changes):
        config = tiny_config(**changes)
        save_config(config, tmp_path / "config.yaml")
        patience = config.training.early_stopping_patience
        rows = [f"{epoch},{epoch}" for epoch in range(epochs)] if patience else [f"{epoch}," for epoch in range(epochs)]
        (tmp_path / "history.csv").write_text("\n".join(["epoch,epochs_without_gain", *rows]) + "\n")
        return tmp_path, config

    return write


@pytest.mark.parametrize(
    ("epochs", "patience", "expected"),
    [(3, 0, "3 of its 10 epochs"), (10, 0, None), (3, 9, "3 of its 10 epochs"), (6, 5, None)],
)
def test_an_unfinished_run(run, epochs, patience, expected):
    path, config = run(epochs, training__epochs=10, training__early_stopping_patience=patience)
    assert model_warnings(path, config, None) == ([f"{path} is not fully trained ({expected})"] if expected else [])


def test_a_label_without_a_voxel_in_the_training_data(run):
    path, config = run(1)
    scan = Volume(body(2, 900), SPACING)
    data = summarize_scans([entry(scan)], ("large_bowel", "stomach"))
    write_training_data(path, data)
    assert model_training_data(path) == data
    expected = f"{path} was trained without a single voxel of large_bowel, stomach"
    assert model_warnings(path, config, data) == [expected]


@pytest.mark.parametrize("form", ["saved_model", "versions", "onnx"])
def test_an_export_tells_what_its_run_tells(tmp_path, form):
    folder = {"saved_model": tmp_path, "versions": tmp_path / "2", "onnx": tmp_path}[form]
    assets = folder if form == "onnx" else folder / "assets.extra"
    assets.mkdir(parents=True, exist_ok=True)
    (folder / ("model.onnx" if form == "onnx" else "saved_model.pb")).touch()
    data = summarize_scans([entry(Volume(body(2, 900), SPACING))], ("stomach",))
    write_training_data(assets, data)
    assert model_training_data(tmp_path) == data
    config = tiny_config().model_copy(update={"provenance": {"unfinished": "1 of its 2 epochs"}})
    assert model_warnings(tmp_path, config, data) == [
        f"{tmp_path} is not fully trained (1 of its 2 epochs)",
        f"{tmp_path} was trained without a single voxel of stomach",
    ]
    assert len(model_warnings(tmp_path, tiny_config(), data)) == 1


@pytest.mark.slow
def test_held_out_scans_of_the_phantom_raise_no_alarm(tmp_path):
    make_phantom(tmp_path / "phantom", cases=6, days=1, slices=24)
    dataset = convert(tmp_path / "phantom", tmp_path / "records", folds=3)
    checked = 0
    for fold in range(3):
        data = summarize_scans(dataset.scans_of(dataset.training_folds(fold)), dataset.labels.names)
        for scan in read_scans(dataset, [fold]):
            volume = scan.volume
            _, height, width = volume.shape
            assert scan_warnings(volume, data) == []
            tripled = tuple(3 * length for length in volume.spacing)
            half = volume.voxels[:, height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
            ct = (volume.voxels.astype(np.float32) * 1.5 - 1013).astype(np.int16)
            for changed in (Volume(volume.voxels, tripled), Volume(half, volume.spacing), Volume(ct, volume.spacing)):
                assert scan_warnings(changed, data)
            checked += 1
    assert checked == 6
