"""Scans larger than the network input: nothing is cropped, and every voxel is mapped back in place."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.known_networks import KINDS, noise, normalized, probabilities_by, repeat_middle_slice

from gitseg_tf.inference.sliding_window.blend import blend_tiles


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
def test_an_identity_network_reproduces_the_scan(kind, overlap):
    image = noise()
    settings = {"data__pixel_mm": 1.5, "evaluation__overlap": overlap}
    probabilities = probabilities_by(repeat_middle_slice, image, kind, **settings)
    assert probabilities.shape == (3, *image.shape)
    for label in probabilities:
        np.testing.assert_allclose(label, normalized(image), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(5, 75, 40), (5, 20, 110), (5, 20, 40)])
def test_a_scan_can_be_larger_in_one_direction_and_smaller_in_the_other(kind, shape):
    image = noise(shape)
    probabilities = probabilities_by(repeat_middle_slice, image, kind, data__pixel_mm=1.5)
    np.testing.assert_allclose(probabilities[1], normalized(image), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_anisotropic_pixels_are_mapped_back_in_place(kind):
    # Rows of 1.5 mm and columns of 1.25 mm; a disc in a corner, which a center crop would lose.
    z, y, x = np.ogrid[:6, :90, :130]
    disc = (((y - 14) * 1.5) ** 2 + ((x - 112) * 1.25) ** 2 < 15**2) & (z >= 0)
    probabilities = probabilities_by(
        repeat_middle_slice, np.where(disc, 3000, 100).astype(np.uint16), kind, (3.0, 1.5, 1.25), data__pixel_mm=1.5
    )
    inside = probabilities[2] >= 0.5
    assert 2 * (inside & disc).sum() / (inside.sum() + disc.sum()) > 0.97


def test_no_label_is_found_outside_the_body():
    image = np.zeros((4, 120, 150), np.uint16)
    image[:, 20:110, 30:130] = 2000 + noise((4, 90, 100)) // 5
    image[0, 0, 0] = 1
    spacing = (3.0, 2.0, 2.0)  # the 10 mm margin around the body is 5 pixels
    actual = probabilities_by(
        lambda windows: tf.ones_like(repeat_middle_slice(windows)), image, "2-D", spacing, **BODY
    )[0]
    expected = np.zeros(image.shape)
    expected[:, 15:115, 25:135] = 1
    np.testing.assert_allclose(actual, expected, atol=1e-6)


BODY = {"data__pixel_mm": 2.0, "data__crop": "body"}


def test_overlapping_tiles_are_averaged_with_gaussian_weights():
    # Tiles of 4 pixels at 0 and 2; the network returns the number of the tile.
    answers = iter([1.0, 2.0])

    def network(windows):
        return np.full((*windows.shape[:3], 1), next(answers), np.float32)

    probabilities = blend_tiles(network, tf.zeros([2, 1, 6, 5]), (1, 4), 0.5)
    far, near = np.exp(-4.5), np.exp(-0.5)  # the standard deviation is half a pixel
    third, fourth = (near * 1 + far * 2) / (near + far), (far * 1 + near * 2) / (near + far)
    for window in probabilities:
        assert window[0, :, 0] == pytest.approx([1, 1, third, fourth, 2, 2], abs=1e-6)


def test_tile_borders_leave_no_seams():
    # Each pixel is the mean of its 3 x 3 neighbors in the tile; away from the border no seams are visible.
    def blurred(windows):
        return tf.repeat(tf.nn.avg_pool2d(windows[..., 1:2], 3, 1, "SAME"), 3, -1)

    image = noise()
    probabilities = probabilities_by(blurred, image, "2.5-D", data__pixel_mm=1.5)[0]
    padded = np.pad(normalized(image), ((0, 0), (1, 1), (1, 1)))
    mean = sum(padded[:, y : y + 75, x : x + 110] for y in range(3) for x in range(3)) / 9
    assert np.abs(probabilities - mean)[:, 8:-8, 16:-16].max() < 0.02


def test_a_scan_of_the_network_size_is_one_tile():
    calls = []

    def network(windows):
        calls.append(windows.shape)
        return repeat_middle_slice(windows)

    probabilities_by(network, noise((5, 32, 64)), "2.5-D")
    assert calls == [(2, 32, 64, 3), (2, 32, 64, 3), (1, 32, 64, 3)]
