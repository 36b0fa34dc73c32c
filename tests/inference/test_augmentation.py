"""Test-time augmentation: what is changed is changed back, and the mean is taken."""

import numpy as np
import pytest
import tensorflow as tf
from known_networks import KINDS, found_by, middle_thrice, noise, normalised

from gitseg_tf.config import load_config
from gitseg_tf.inference.predictor import doubtful_augmentation

LARGER = {"data__pixel_mm": 1.5}
OF_ITS_SIZE = {"data__pixel_mm": 1.5, "data__size": [96, 128]}


def test_without_it_a_window_is_predicted_once():
    calls = []

    def network(windows):
        calls.append(len(windows))
        return middle_thrice(windows)

    found_by(network, noise((4, 32, 64)))
    found_by(network, noise((4, 32, 64)), evaluation__tta__flip=True)
    assert calls == [2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("settings", [LARGER, OF_ITS_SIZE])
@pytest.mark.parametrize("kind", KINDS)
def test_a_flip_is_undone_to_the_voxel(kind, settings):
    image = noise()
    found = found_by(middle_thrice, image, kind, **settings, evaluation__tta__flip=True)
    np.testing.assert_allclose(found[0], normalised(image), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_left_and_right_are_what_is_flipped_and_the_mean_is_taken(kind):
    """The network's answer is brighter to the right: 0 to 1. Mirrored it is brighter to the left; the mean is even."""

    def ramp(windows):
        given = middle_thrice(windows)
        columns = given.shape[-2]
        return given * tf.reshape(tf.range(columns, dtype=tf.float32) / (columns - 1), [columns, 1])

    image = noise((5, 32, 64))
    once = found_by(ramp, image, kind, data__patch=[4, 32, 64] if kind == "3-D" else None)[1]
    twice = found_by(ramp, image, kind, data__patch=[4, 32, 64] if kind == "3-D" else None, evaluation__tta__flip=True)[
        1
    ]
    np.testing.assert_allclose(once, normalised(image) * np.linspace(0, 1, 64), atol=1e-5)
    np.testing.assert_allclose(twice, normalised(image) / 2, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_made_in_the_plane_and_the_mean_is_taken(kind):
    """The network answers with the share of its input that is not black, which the size changes by its square."""
    image = np.full((5, 32, 64), 3000, np.uint16)
    image[:, :2] = 0

    def share(windows):
        axes = list(range(1, windows.shape.rank))
        return tf.ones_like(middle_thrice(windows)) * tf.reduce_mean(tf.cast(windows > 0.5, tf.float32), axes, True)

    patch = {"data__patch": [4, 32, 64]} if kind == "3-D" else {}
    whole = found_by(share, image, kind, **patch)[0]
    mean = found_by(share, image, kind, **patch, evaluation__tta__scales=[0.5])[0]
    assert whole == pytest.approx(np.full(image.shape, 30 / 32), abs=1e-6)
    assert mean == pytest.approx(np.full(image.shape, (30 / 32 + 15 * 32 / (32 * 64)) / 2), abs=1e-6)


@pytest.mark.parametrize("scale", [0.7, 1.3, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_all_sizes_come_back_to_their_place(kind, scale):
    z, y, x = np.ogrid[:5, :75, :110]
    disc = ((y - 60) ** 2 + (x - 20) ** 2 < 13**2) & (z >= 0)
    image = np.where(disc, 3000, 100).astype(np.uint16)
    plain = found_by(middle_thrice, image, kind, data__size=[64, 64])[0]
    found = 2 * found_by(middle_thrice, image, kind, data__size=[64, 64], evaluation__tta__scales=[scale])[0] - plain
    scaled = found >= 0.5
    assert 2 * (scaled & disc).sum() / (scaled.sum() + disc.sum()) > 0.95


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"evaluation.tta.flip": True, "augment.flip.p": 0}, ["without flips"]),
        ({"evaluation.tta.flip": True}, []),
        ({"evaluation.tta.scales": [0.9, 1.1]}, []),
        ({"evaluation.tta.scales": [0.9, 1.2]}, ["1.2 is new to it"]),
        ({"evaluation.tta.scales": [1.1], "augment.affine.p": 0}, ["1.1 is new to it"]),
    ],
)
def test_changes_that_training_did_not_make_are_said(settings, words):
    lines = list(doubtful_augmentation("run", load_config(overrides=settings)))
    assert len(lines) == len(words) and all(word in line for word, line in zip(words, lines, strict=True))


@pytest.mark.parametrize("scales", [[1], [0.9, 0.9], [0.3], [3], [float("nan")]])
def test_sizes_that_make_no_sense_are_refused(scales, refusal):
    said = refusal(load_config, None, {"evaluation.tta.scales": scales})
    assert "evaluation.tta.scales" in said
