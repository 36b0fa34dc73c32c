import numpy as np
import pytest
import tensorflow as tf

from gitseg_tf.config import load_config, with_overrides
from gitseg_tf.data.records import intensity_percentiles
from gitseg_tf.inference.predictor import checked_overrides, make_predictor

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


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 33, 200)])
def test_any_shape_of_scan_is_taken(shape):
    assert predict(np.full(shape, 7, np.uint16)).shape == (3, *shape)


def test_a_file_of_tuned_settings_brings_its_augmentation_and_the_command_line_comes_last(tmp_path):
    tuned = tmp_path / "postprocess.yaml"
    tuned.write_text("postprocess: {stomach: {gap_mm: 9}}\nevaluation: {tta: {flip: true, scales: [0.9]}}\n")
    config = with_overrides(load_config(), checked_overrides({"evaluation.tta.flip": False}, tuned), "model")
    assert config.postprocess.stomach.gap_mm == 9
    assert config.evaluation.tta.scales == (0.9,) and not config.evaluation.tta.flip
    tuned.write_text("postprocess: {stomach: {gap_mm: 9}}\n")
    own = load_config(None, {"evaluation.tta.flip": True})
    assert with_overrides(own, checked_overrides({}, tuned), "model").evaluation == own.evaluation
