import cv2
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from gitseg_tf.config import load_config
from gitseg_tf.data.records import intensity_percentiles
from gitseg_tf.data.scans import read_cohort
from gitseg_tf.inference.outputs import submission_rows, write_overlays, write_submission
from gitseg_tf.inference.predictor import make_predictor

SIZE = [64, 64]


def ball_scan(depth=9, height=70, width=110):
    z, y, x = np.ogrid[:depth, :height, :width]
    inside = (z - 4) ** 2 / 9 + (y - 30) ** 2 / 225 + (x - 60) ** 2 / 400 < 1
    return np.where(inside, 3000, 100).astype(np.uint16), inside


def brightness(windows):
    """A network that calls bright pixels of the middle slice stomach, and nothing else anything."""
    middle = windows[..., windows.shape[-1] // 2]
    return tf.stack([tf.zeros_like(middle), tf.zeros_like(middle), middle], -1)


def predict(image, numbers=None, probabilities=brightness, **overrides):
    config = load_config(overrides={"data.size": SIZE} | {k.replace("__", "."): v for k, v in overrides.items()})
    numbers = np.arange(1, len(image) + 1) if numbers is None else numbers
    predictor = make_predictor(probabilities, config)
    return predictor(image, numbers, intensity_percentiles(image), (3.0, 1.5, 1.5))


@pytest.mark.parametrize("settings", [{}, {"data__crop": "body"}, {"data__pixel_mm": 2.0}])
def test_masks_come_back_at_the_scans_own_size_and_place(settings):
    image, inside = ball_scan()
    masks = predict(image, **settings)
    assert masks.shape == (3, *image.shape) and masks.dtype == bool
    assert not masks[:2].any()
    assert 2 * (masks[2] & inside).sum() / (masks[2].sum() + inside.sum()) > 0.95


def test_the_batch_size_does_not_change_the_masks():
    image, _ = ball_scan()
    np.testing.assert_array_equal(predict(image, evaluation__batch_size=2), predict(image, evaluation__batch_size=16))


def test_the_threshold_is_the_configs():
    image, _ = ball_scan()
    low, high = (predict(image, evaluation__threshold=t)[2].sum() for t in (0.1, 0.9))
    assert low > high > 0


@pytest.mark.parametrize("smooth_mm", [0, 1e-3])
def test_masks_are_cleaned_as_the_config_says(smooth_mm):
    image, _ = ball_scan()
    image[0, 24:34, 55:65] = 3000
    plain = predict(image)
    settings = {"postprocess__stomach__largest_only": True, "postprocess__stomach__smooth_mm": smooth_mm}
    cleaned = predict(image, **settings)
    assert plain[2, 0].any() and not cleaned[2, 0].any()
    np.testing.assert_array_equal(cleaned[2, 1:], plain[2, 1:])


def test_a_window_does_not_reach_over_a_gap_in_the_slice_numbers():
    image = np.full((4, 64, 64), 100, np.uint16)
    image[:2, 10:50, 10:50] = 3000

    def last_slice(windows):
        return tf.repeat(windows[..., -1:], 3, axis=-1)

    joined = predict(image, np.array([1, 2, 3, 4]), last_slice, data__slices=3)
    apart = predict(image, np.array([1, 2, 7, 8]), last_slice, data__slices=3)
    assert joined[0].any((1, 2)).tolist() == [True, False, False, False]
    assert apart[0].any((1, 2)).tolist() == [True, True, False, False]


def test_rows_of_a_submission_are_all_slices_and_organs_with_one_based_runs(drawn, tmp_path):
    scan = read_cohort(drawn.root).scans[0]
    masks = np.zeros((3, *scan.shape), bool)
    masks[2, 0, 0, :3] = True
    masks[2, 0, 1, 1] = True
    write_submission(tmp_path / "submission.csv", submission_rows(scan, masks))
    table = pd.read_csv(tmp_path / "submission.csv", keep_default_na=False)
    assert list(table) == ["id", "class", "predicted"]
    assert len(table) == 3 * scan.shape[0]
    filled = table[table.predicted != ""]
    assert filled["id"].tolist() == [f"{scan.id}_slice_0001"]
    assert filled["class"].tolist() == ["stomach"]
    assert filled["predicted"].tolist() == [f"1 3 {scan.shape[2] + 2} 1"]


def test_overlays_are_a_picture_a_slice_with_coloured_contours(drawn, tmp_path):
    scan = read_cohort(drawn.root).scans[0]
    masks = np.zeros((3, *scan.shape), bool)
    masks[0, 1, 5:20, 5:20] = True
    write_overlays(tmp_path, scan, drawn[scan.id].image, masks)
    pictures = {path.stem: cv2.imread(str(path)).astype(int) for path in tmp_path.glob("*.png")}
    assert sorted(pictures) == scan.slice_ids
    coloured = [bool((picture.max(-1) - picture.min(-1) > 20).any()) for _, picture in sorted(pictures.items())]
    assert coloured == [z == 1 for z in range(scan.shape[0])]


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 33, 200)])
def test_any_shape_of_scan_is_taken(shape):
    assert predict(np.full(shape, 7, np.uint16)).shape == (3, *shape)
