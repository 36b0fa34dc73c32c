"""Prediction along other axes, compared with the axial prediction of scans that were transposed with NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.known_networks import labeled, masks_by

from gitseg_tf.data.volume import Volume
from gitseg_tf.export.graph import make_segment
from gitseg_tf.inference.ensemble import Member
from gitseg_tf.inference.predictor import Predictor

ORDER = {"coronal": (1, 0, 2), "sagittal": (2, 0, 1)}
SPACING = (3.0, 1.5, 2.0)
VARIANTS = {
    "fits": {"data.input_size": [64, 64], "data.pixel_mm": 2.5},
    "tiles": {"data.input_size": [32, 32], "data.pixel_mm": 1.0},
    "body, flip and scales": {
        "data.crop": "body", "data.input_size": [64, 96], "data.pixel_mm": 1.3,
        "evaluation.tta.flip": True, "evaluation.tta.scales": [0.8, 1.3],
    },
    "stride in mm": {"data.input_size": [64, 64], "data.pixel_mm": 2.5, "data.window_stride_mm": 4.0},
}  # fmt: skip
BASE = {"data.crop": "none", "data.window_slices": 3, "evaluation.batch_size": 4}


def lopsided(windows):
    """A network that treats slices, rows and columns differently."""
    first, middle, last = (windows[..., k, None] for k in range(3))
    shifted = tf.roll(middle, 2, 2) * 0.5 + tf.roll(middle, 1, 1) * 0.3
    return tf.concat([0.6 * first + 0.4 * shifted, shifted**2, tf.abs(last - shifted)], -1)


def body(shape=(13, 30, 26)):
    image = np.random.default_rng(1).integers(0, 100, shape).astype(np.uint16)
    image[1:12, 5:24, 4:21] += np.random.default_rng(2).integers(800, 3000, (11, 19, 17)).astype(np.uint16)
    return image


def predicted(image, config, spacing, numbers=()):
    return Predictor.of_network(lopsided, config).probabilities(Volume(image, spacing, tuple(numbers)))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
@pytest.mark.parametrize("plane", ORDER)
def test_a_plane_is_predicted_like_the_transposed_scan(plane, variant):
    image, order = body(), ORDER[plane]
    settings = BASE | variant
    ours = predicted(image, labeled(settings | {"data.plane": plane}), SPACING)
    by_hand = predicted(image.transpose(order), labeled(settings), tuple(SPACING[axis] for axis in order))
    back = [1 + axis for axis in np.argsort(order)]
    assert ours.shape == (3, *image.shape) and ours.std() > 0.01
    np.testing.assert_allclose(ours, by_hand.transpose(0, *back), atol=2e-6)


@pytest.mark.parametrize("plane", ORDER)
def test_missing_slices_are_context_but_not_predicted(plane):
    image, numbers = body(), [1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13, 14, 15]
    # Missing are 7, nearest to 6, and 8, nearest to 9.
    complete = image[[0, 1, 2, 3, 4, 5, 5, 6, 6, 7, 8, 9, 10, 11, 12]]
    config = labeled(
        BASE | VARIANTS["fits"] | {"data.plane": plane, "data.intensity": {"kind": "window", "low": 0, "high": 3000}}
    )
    with_gap = predicted(image, config, SPACING, numbers)
    expected = predicted(complete, config, SPACING)
    np.testing.assert_array_equal(with_gap, np.delete(expected, [6, 8 - 1], 1))


def test_planes_are_averaged_on_the_scan_grid():
    image = body()
    configs = [labeled(BASE | VARIANTS["fits"] | {"data.plane": plane}) for plane in ("axial", *ORDER)]
    alone = [predicted(image, config, SPACING) for config in configs]
    members = [Member(config.data.plane, lopsided, config) for config in configs]
    mean = Predictor(members).probabilities(Volume(image, SPACING))
    assert np.abs(alone[0] - alone[1]).max() > 0.05
    np.testing.assert_allclose(mean, np.mean(alone, 0), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [{}, {"postprocess.default.smooth_mm": 3.0}], ids=["sharp", "smoothed"])
@pytest.mark.parametrize("plane", ORDER)
def test_the_exported_graph_predicts_the_same_masks(plane, steps):
    image, numbers = body().astype(np.float32), [1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13, 14, 15]
    settings = BASE | {"data.input_size": [64, 64], "data.plane": plane, "evaluation.threshold": 0.3} | steps
    config = labeled(settings)
    segment = tf.function(make_segment(lopsided, config), input_signature=[
        tf.TensorSpec([None, None, None, 1]), tf.TensorSpec([3]), tf.TensorSpec([None], tf.int64)
    ])  # fmt: skip
    found = np.moveaxis(segment(image[..., None], SPACING, numbers).numpy(), -1, 0)
    expected = masks_by(lopsided, image, config, numbers, SPACING)
    assert expected.any() and (found != expected).mean() < 1e-4


def test_members_have_weights_for_each_label():
    def constant(value):
        return lambda windows: value * tf.ones_like(lopsided(windows))

    settings = BASE | {"data.input_size": [64, 64]}
    planes = ("axial", "axial", "coronal", "sagittal")
    values, weights = (0.9, 0.1, 0.5, 0.7), ((3.0, 1.0, 0.0), (1.0, 1.0, 0.0), (0.0, 2.0, 5.0), (0.0, 0.0, 0.0))
    members = [
        Member(f"{value}", constant(value), labeled(settings | {"data.plane": plane}), weights=of_labels)
        for value, plane, of_labels in zip(values, planes, weights, strict=True)
    ]
    mean = Predictor(members).probabilities(Volume(body(), SPACING))
    expected = np.average(np.repeat([values], 3, 0).T, axis=0, weights=weights)
    assert expected.tolist() == pytest.approx([0.7, 0.5, 0.5])
    np.testing.assert_allclose(mean, np.broadcast_to(expected[:, None, None, None], mean.shape), atol=1e-5)
