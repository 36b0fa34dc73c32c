"""Scans larger than the network: nothing is cut, and everything comes back where it was."""

import numpy as np
import pytest
import tensorflow as tf
from known_networks import KINDS, found_by, middle_thrice, noise, normalised

from gitseg_tf.inference.planes import blend_tiles


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
def test_a_network_that_gives_its_input_back_gives_the_scan_back_to_the_voxel(kind, overlap):
    image = noise()
    settings = {"data__pixel_mm": 1.5, "evaluation__overlap": overlap}
    found = found_by(middle_thrice, image, kind, **settings)
    assert found.shape == (3, *image.shape)
    for organ in found:
        np.testing.assert_allclose(organ, normalised(image), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(5, 75, 40), (5, 20, 110), (5, 20, 40)])
def test_a_scan_may_be_larger_in_one_direction_and_smaller_in_the_other(kind, shape):
    image = noise(shape)
    found = found_by(middle_thrice, image, kind, data__pixel_mm=1.5)
    np.testing.assert_allclose(found[1], normalised(image), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_that_are_no_squares_come_back_to_their_place(kind):
    # Rows of 1.5 mm and columns of 1.25 mm; a disc in a corner that a cut about the middle would lose.
    z, y, x = np.ogrid[:6, :90, :130]
    disc = (((y - 14) * 1.5) ** 2 + ((x - 112) * 1.25) ** 2 < 15**2) & (z >= 0)
    found = found_by(
        middle_thrice, np.where(disc, 3000, 100).astype(np.uint16), kind, (3.0, 1.5, 1.25), data__pixel_mm=1.5
    )
    inside = found[2] >= 0.5
    assert 2 * (inside & disc).sum() / (inside.sum() + disc.sum()) > 0.97


def test_outside_of_the_body_no_organ_is_found():
    image = np.zeros((4, 120, 150), np.uint16)
    image[:, 20:110, 30:130] = 2000 + noise((4, 90, 100)) // 5
    image[0, 0, 0] = 1
    spacing = (3.0, 2.0, 2.0)  # 10 mm about the body are 5 pixels
    found = found_by(lambda windows: tf.ones_like(middle_thrice(windows)), image, "2-D", spacing, **BODY)[0]
    expected = np.zeros(image.shape)
    expected[:, 15:115, 25:135] = 1
    np.testing.assert_allclose(found, expected, atol=1e-6)


BODY = {"data__pixel_mm": 2.0, "data__crop": "body"}


def test_two_tiles_are_averaged_by_their_gaussians():
    # Tiles of 4 pixels at 0 and 2; the network answers with the number of the tile.
    answers = iter([1.0, 2.0])

    def network(windows):
        return np.full((*windows.shape[:3], 1), next(answers), np.float32)

    found = blend_tiles(network, tf.zeros([2, 1, 6, 5]), (1, 4), 0.5)
    far, near = np.exp(-4.5), np.exp(-0.5)  # half a pixel is the standard deviation
    third, fourth = (near * 1 + far * 2) / (near + far), (far * 1 + near * 2) / (near + far)
    for window in found:
        assert window[0, :, 0] == pytest.approx([1, 1, third, fourth, 2, 2], abs=1e-6)


def test_a_tile_sees_what_is_around_it_in_the_scan():
    # Each pixel is the mean of its 3 x 3 neighbours in the tile; away from the border no seam is seen.
    def blurred(windows):
        return tf.repeat(tf.nn.avg_pool2d(windows[..., 1:2], 3, 1, "SAME"), 3, -1)

    image = noise()
    found = found_by(blurred, image, "2.5-D", data__pixel_mm=1.5)[0]
    padded = np.pad(normalised(image), ((0, 0), (1, 1), (1, 1)))
    mean = sum(padded[:, y : y + 75, x : x + 110] for y in range(3) for x in range(3)) / 9
    assert np.abs(found - mean)[:, 8:-8, 16:-16].max() < 0.02


def test_a_scan_of_the_networks_size_is_one_tile():
    calls = []

    def network(windows):
        calls.append(windows.shape)
        return middle_thrice(windows)

    found_by(network, noise((5, 32, 64)), "2.5-D")
    assert calls == [(2, 32, 64, 3), (2, 32, 64, 3), (1, 32, 64, 3)]
