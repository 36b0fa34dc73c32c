import numpy as np
import pytest
import tensorflow as tf
from helpers.known_networks import labeled, masks_by, noise

from gitseg_tf.config import load_config, with_overrides
from gitseg_tf.data.volume import Volume
from gitseg_tf.errors import DataError
from gitseg_tf.inference.predictor import Predictor, checked_overrides
from gitseg_tf.labels import LabelSet

SIZE = [64, 64]


def ball_scan(depth=9, height=70, width=110):
    z, y, x = np.ogrid[:depth, :height, :width]
    inside = (z - 4) ** 2 / 9 + (y - 30) ** 2 / 225 + (x - 60) ** 2 / 400 < 1
    return np.where(inside, 3000, 100).astype(np.uint16), inside


def brightness(windows):
    """A network that predicts bright pixels of the middle slice as stomach, and no other labels."""
    middle = windows[..., windows.shape[-1] // 2]
    return tf.stack([tf.zeros_like(middle), tf.zeros_like(middle), middle], -1)


def predict(image, numbers=None, probabilities=brightness, **overrides):
    config = labeled({"data.input_size": SIZE} | {k.replace("__", "."): v for k, v in overrides.items()})
    return masks_by(probabilities, image, config, () if numbers is None else numbers)


@pytest.mark.parametrize("settings", [{}, {"data__crop": "body"}, {"data__pixel_mm": 2.0}])
def test_masks_have_the_size_and_position_of_the_scan(settings):
    image, inside = ball_scan()
    masks = predict(image, **settings)
    assert masks.shape == (3, *image.shape) and masks.dtype == bool
    assert not masks[:2].any()
    assert 2 * (masks[2] & inside).sum() / (masks[2].sum() + inside.sum()) > 0.95


def test_the_batch_size_does_not_change_the_masks():
    image, _ = ball_scan()
    np.testing.assert_array_equal(predict(image, evaluation__batch_size=2), predict(image, evaluation__batch_size=16))


def test_the_threshold_comes_from_the_config():
    image, _ = ball_scan()
    low, high = (predict(image, evaluation__threshold=t)[2].sum() for t in (0.1, 0.9))
    assert low > high > 0


@pytest.mark.parametrize("smooth_mm", [0, 1e-3])
def test_masks_are_postprocessed_as_configured(smooth_mm):
    image, _ = ball_scan()
    image[0, 24:34, 55:65] = 3000
    plain = predict(image)
    settings = {"postprocess__stomach__keep_largest_component": True, "postprocess__stomach__smooth_mm": smooth_mm}
    cleaned = predict(image, **settings)
    assert plain[2, 0].any() and not cleaned[2, 0].any()
    np.testing.assert_array_equal(cleaned[2, 1:], plain[2, 1:])


def test_a_window_does_not_cross_a_gap_in_the_slice_numbers():
    image = np.full((4, 64, 64), 100, np.uint16)
    image[:2, 10:50, 10:50] = 3000

    def last_slice(windows):
        return tf.repeat(windows[..., -1:], 3, axis=-1)

    joined = predict(image, np.array([1, 2, 3, 4]), last_slice, data__window_slices=3)
    apart = predict(image, np.array([1, 2, 7, 8]), last_slice, data__window_slices=3)
    assert joined[0].any((1, 2)).tolist() == [True, False, False, False]
    assert apart[0].any((1, 2)).tolist() == [True, True, False, False]


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 33, 200)])
def test_a_scan_of_any_shape_is_predicted(shape):
    assert predict(np.full(shape, 7, np.uint16)).shape == (3, *shape)


def test_tuned_settings_include_augmentation_and_overrides_take_precedence(tmp_path):
    tuned = tmp_path / "postprocess.yaml"
    tuned.write_text("postprocess: {stomach: {max_gap_mm: 9}}\nevaluation: {tta: {flip: true, scales: [0.9]}}\n")
    config = with_overrides(load_config(), checked_overrides({"evaluation.tta.flip": False}, tuned), "model")
    assert config.postprocess.stomach.max_gap_mm == 9
    assert config.evaluation.tta.scales == (0.9,) and not config.evaluation.tta.flip
    tuned.write_text("postprocess: {stomach: {max_gap_mm: 9}}\n")
    original = load_config(None, {"evaluation.tta.flip": True})
    assert with_overrides(original, checked_overrides({}, tuned), "model").evaluation == original.evaluation


TWELVE = LabelSet.of(*(f"label_{k}" for k in range(12)))


def twelve_levels(windows):
    """A network of two channels: label k is where the mean of the channels in the middle slice exceeds k / 12."""
    middle = windows.shape[-1] // 4 * 2
    mean = tf.reduce_mean(windows[..., middle : middle + 2], -1, keepdims=True)
    return tf.sigmoid(100 * (mean - tf.range(12, dtype=tf.float32) / 12 - 0.02))


def two_channels(shape=(5, 64, 64)):
    """Channels of very different ranges, one of them with negative, CT-like values."""
    first = noise(shape)
    second = (np.roll(first, 7, 1).astype(np.int32) - 3000).astype(np.float32) / 10
    return np.stack([first.astype(np.float32), second], -1)


def test_twelve_labels_and_two_channels_are_predicted():
    image = two_channels()
    predictor = Predictor.of_network(
        twelve_levels, labeled({"data.input_size": SIZE, "data.crop": "none"}, TWELVE, ("t1", "ct"))
    )
    assert predictor.labels == TWELVE and predictor.channels == ("t1", "ct")
    found = predictor.predict(image, spacing=(3.0, 1.5, 1.5), probabilities=True)
    assert found.masks.shape == found.probabilities.shape == (12, *image.shape[:3])
    np.testing.assert_array_equal(found.masks, found.probabilities >= 0.5)
    normal = [
        np.clip((c - p[0]) / (p[1] - p[0]), 0, 1)
        for c in np.moveaxis(image, -1, 0)
        for p in [np.percentile(c, [1, 99], method="inverted_cdf")]
    ]
    mean = np.mean(normal, 0)
    for k, mask in enumerate(found.masks):
        sure = np.abs(mean - k / 12 - 0.02) > 1e-4
        np.testing.assert_array_equal(mask[sure], mean[sure] > k / 12 + 0.02)
    levels = predictor.predict_levels(Volume(image, (3.0, 1.5, 1.5)))
    np.testing.assert_array_equal(levels.masks, found.masks)
    np.testing.assert_array_equal(levels.levels, np.minimum(found.probabilities * 100, 99).astype(np.uint8))


def test_volumes_with_other_channels_and_arrays_without_spacing_are_refused(refusal):
    predictor = Predictor.of_network(twelve_levels, labeled({"data.input_size": SIZE}, TWELVE, ("t1", "ct")))
    assert refusal(predictor.predict, noise(), spacing=(3, 1, 1)) == (
        "the volume has 1 channel, but the model takes 2 (t1, ct)"
    )
    with pytest.raises(DataError, match="spacing is missing"):
        predictor.predict(two_channels())
    image = two_channels()
    image[1, 2, 3, 0] = np.nan
    assert "NaN or infinite values" in refusal(predictor.predict, image, spacing=(3, 1, 1))


def test_postprocessing_of_an_unknown_label_is_refused_with_a_suggestion(refusal):
    config = labeled(None, TWELVE)
    config = with_overrides(config, {"postprocess.label_13.threshold": 0.4}, "model")
    line = refusal(Predictor.of_network, twelve_levels, config)
    assert "postprocess.label_13: unknown label; did you mean label_" in line


def test_a_label_falls_back_to_the_default_settings():
    image, _ = ball_scan()
    image[0, 24:34, 55:65] = 3000
    default = {"postprocess__default__keep_largest_component": True}
    assert not predict(image, **default)[2, 0].any()
    overridden = default | {"postprocess__stomach__keep_largest_component": False}
    assert predict(image, **overridden)[2, 0].any()
