"""The body's bounding box in scans with bright marks, noise, several parts, and without any tissue."""

import numpy as np
import pytest

from gitseg_tf.config.intensity import STORED_PERCENTILES
from gitseg_tf.data.pipeline.body import body_box

SPACING = np.float32([3, 1, 1])
MARGIN = 10


def ellipse(shape, center, radii):
    y, x = np.indices(shape)
    return ((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 <= 1


def scan(*parts, shape=(200, 240), depth=8, noise=10, seed=0):
    """Noisy air, and tissue of 200 to 800 in the parts: uint16 [D, H, W], and the union of the parts."""
    rng = np.random.default_rng(seed)
    inside = np.any([ellipse(shape, *part) for part in parts], 0)
    image = np.abs(rng.normal(0, noise, (depth, *shape)))
    image[:, inside] = rng.uniform(200, 800, (depth, inside.sum()))
    return image.astype(np.uint16), inside


def box_of(image):
    percentiles = np.percentile(image, STORED_PERCENTILES, method="inverted_cdf").astype(np.float32)
    return body_box(image[..., None], percentiles[None], SPACING).numpy().tolist()


def expected(inside):
    """The bounding box of the rows and columns of which 3% are inside, and the margin."""
    ends = []
    for axis in (1, 0):
        index = np.flatnonzero(inside.mean(axis) >= 0.03)
        first, last = max(index[0] - MARGIN, 0), min(index[-1] + MARGIN, inside.shape[1 - axis] - 1)
        ends.append((int(first), int(last - first + 1)))
    (y, height), (x, width) = ends
    return [y, x, height, width]


TRUNK = ((110, 130), (50, 80))
SMALL_TRUNK = ((110, 130), (40, 60))


@pytest.mark.parametrize("part", [TRUNK, SMALL_TRUNK])
@pytest.mark.parametrize("value", [1500, 65535])
@pytest.mark.parametrize("side", [12, 30, 50])
def test_a_saturated_corner_does_not_decide(part, value, side):
    image, inside = scan(part)
    image[:, :side, :side] = value
    assert box_of(image) == expected(inside)


@pytest.mark.parametrize("slices", [slice(None), slice(3, 6)], ids=["in all slices", "in some"])
def test_a_burnt_in_mark_does_not_decide(slices):
    image, inside = scan(TRUNK)
    image[slices, 4:16, 170:176] = image[slices, 4:16, 184:190] = image[slices, 10:13, 176:184] = 4095  # the letter H
    assert box_of(image) == expected(inside)


def test_marks_in_noise_do_not_decide():
    image, inside = scan(TRUNK, noise=40)
    image[np.random.default_rng(1).random(image.shape) < 0.005] = 65535
    image[:, :20, :20] = 65535
    assert box_of(image) == expected(inside)


@pytest.mark.parametrize(
    "parts",
    [
        [((100, 70), (40, 30)), ((100, 170), (40, 30))],  # legs
        [((100, 60), (22, 16)), ((100, 180), (22, 16))],  # thin legs in a large field of view
        [((100, 120), (50, 70)), ((100, 20), (16, 12)), ((100, 220), (16, 12))],  # arms next to the trunk
    ],
)
@pytest.mark.parametrize("corner", [0, 20])
def test_all_parts_of_the_body_count(parts, corner):
    image, inside = scan(*parts)
    image[:, :corner, :corner] = 65535
    assert box_of(image) == expected(inside)


@pytest.mark.parametrize("padding", [-1000, -1024, -3024])
@pytest.mark.parametrize("corner", [0, 25])
def test_the_body_is_found_in_a_ct_with_a_saturated_corner(padding, corner):
    rng = np.random.default_rng(2)
    _, inside = scan(TRUNK)
    image = np.where(inside, rng.normal(40, 60, (8, *inside.shape)), -1000).astype(np.int16)
    image[:, :5] = image[..., -5:] = padding
    image[:, :corner, :corner] = 30000
    assert box_of(image) == expected(inside)


@pytest.mark.parametrize("corner", [0, 20])
def test_empty_slices_do_not_change_the_box(corner):
    image, inside = scan(TRUNK, depth=12)
    image[[0, 1, 10, 11]] = 0
    image[:, :corner, :corner] = 65535
    box, whole = box_of(image), expected(inside)
    # A third of the slices is missing, so a row needs 4.5% of tissue in the others.
    assert all(abs(a - b) <= 6 for a, b in zip(box, whole, strict=True))


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_scan_is_not_cropped(value):
    assert box_of(np.full((3, 50, 60), value, np.uint16)) == [0, 0, 50, 60]


def test_a_field_of_view_within_the_body_is_not_cropped():
    image = np.random.default_rng(3).uniform(200, 800, (4, 64, 96)).astype(np.uint16)
    assert box_of(image) == [0, 0, 64, 96]
