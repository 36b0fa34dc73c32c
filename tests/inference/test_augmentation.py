"""Test-time augmentation: predictions of changed views are mapped back and averaged."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.known_networks import KINDS, noise, normalized, probabilities_by, repeat_middle_slice

from gitseg_tf.config import load_config
from gitseg_tf.inference.predictor import doubtful_augmentation

LARGER = {"data__pixel_mm": 1.5}
FITTING = {"data__pixel_mm": 1.5, "data__input_size": [96, 128]}


def test_each_window_is_predicted_once_per_view():
    calls = []

    def network(windows):
        calls.append(len(windows))
        return repeat_middle_slice(windows)

    probabilities_by(network, noise((4, 32, 64)))
    probabilities_by(network, noise((4, 32, 64)), evaluation__tta__flip=True)
    assert calls == [2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("settings", [LARGER, FITTING])
@pytest.mark.parametrize("kind", KINDS)
def test_a_flip_is_undone_exactly(kind, settings):
    image = noise()
    probabilities = probabilities_by(repeat_middle_slice, image, kind, **settings, evaluation__tta__flip=True)
    np.testing.assert_allclose(probabilities[0], normalized(image), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_flips_are_horizontal_and_averaged(kind):
    """The output of the network rises from 0 on the left to 1 on the right; averaged with its flip it is constant."""

    def ramp(windows):
        given = repeat_middle_slice(windows)
        columns = given.shape[-2]
        return given * tf.reshape(tf.range(columns, dtype=tf.float32) / (columns - 1), [columns, 1])

    image = noise((5, 32, 64))
    once = probabilities_by(ramp, image, kind, data__patch=[4, 32, 64] if kind == "3-D" else None)[1]
    twice = probabilities_by(
        ramp, image, kind, data__patch=[4, 32, 64] if kind == "3-D" else None, evaluation__tta__flip=True
    )[1]
    np.testing.assert_allclose(once, normalized(image) * np.linspace(0, 1, 64), atol=1e-5)
    np.testing.assert_allclose(twice, normalized(image) / 2, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_scales_are_applied_in_plane_and_averaged(kind):
    """The network returns the fraction of its input that is not black, which scales with the square of the size."""
    image = np.full((5, 32, 64), 3000, np.uint16)
    image[:, :2] = 0

    def share(windows):
        axes = list(range(1, windows.shape.rank))
        return tf.ones_like(repeat_middle_slice(windows)) * tf.reduce_mean(
            tf.cast(windows > 0.5, tf.float32), axes, True
        )

    patch = {"data__patch": [4, 32, 64]} if kind == "3-D" else {}
    whole = probabilities_by(share, image, kind, **patch)[0]
    mean = probabilities_by(share, image, kind, **patch, evaluation__tta__scales=[0.5])[0]
    assert whole == pytest.approx(np.full(image.shape, 30 / 32), abs=1e-6)
    assert mean == pytest.approx(np.full(image.shape, (30 / 32 + 15 * 32 / (32 * 64)) / 2), abs=1e-6)


@pytest.mark.parametrize("scale", [0.7, 1.3, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_scaled_predictions_are_mapped_back_in_place(kind, scale):
    z, y, x = np.ogrid[:5, :75, :110]
    disc = ((y - 60) ** 2 + (x - 20) ** 2 < 13**2) & (z >= 0)
    image = np.where(disc, 3000, 100).astype(np.uint16)
    plain = probabilities_by(repeat_middle_slice, image, kind, data__input_size=[64, 64])[0]
    probabilities = (
        2
        * probabilities_by(
            repeat_middle_slice, image, kind, data__input_size=[64, 64], evaluation__tta__scales=[scale]
        )[0]
        - plain
    )
    scaled = probabilities >= 0.5
    assert 2 * (scaled & disc).sum() / (scaled.sum() + disc.sum()) > 0.95


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"evaluation.tta.flip": True, "augment.flip.p": 0}, ["without flips"]),
        ({"evaluation.tta.flip": True}, []),
        ({"evaluation.tta.scales": [0.9, 1.1]}, []),
        ({"evaluation.tta.scales": [0.9, 1.2]}, ["it has not seen scale 1.2"]),
        ({"evaluation.tta.scales": [1.1], "augment.affine.p": 0}, ["it has not seen scale 1.1"]),
    ],
)
def test_augmentation_not_seen_in_training_is_reported(settings, words):
    lines = list(doubtful_augmentation("run", load_config(overrides=settings)))
    assert len(lines) == len(words) and all(word in line for word, line in zip(words, lines, strict=True))


@pytest.mark.parametrize("scales", [[1], [0.9, 0.9], [0.3], [3], [float("nan")]])
def test_invalid_scales_are_refused(scales, refusal):
    message = refusal(load_config, None, {"evaluation.tta.scales": scales})
    assert "evaluation.tta.scales" in message
