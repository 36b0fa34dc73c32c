import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gitseg_tf.data.readers.contours import contours_to_mask

SHAPE = (24, 30)


def blobs(seed):
    """A mask with several parts and holes, none at the border."""
    noise = np.random.default_rng(seed).normal(size=SHAPE)
    mask = cv2.GaussianBlur(noise, (0, 0), 1.6) > 0.05
    mask[[0, -1]] = mask[:, [0, -1]] = False
    # Without parts that are a line of voxels, whose outline encloses nothing.
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8)).astype(bool)


def through_centers(mask):
    """The outlines through the centers of the outermost voxels, and for holes through those around them, by OpenCV."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return [line[:, 0].astype(float) for line in outlines]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.floats(-0.004, 0.004))
def test_masks_come_back_from_contours_through_the_centers_of_their_voxels(seed, backwards, error):
    mask = blobs(seed)
    contours = [line[:: -1 if backwards else 1] + error for line in through_centers(mask)]
    assert np.array_equal(contours_to_mask(contours, SHAPE), mask)


@pytest.mark.parametrize("offset", [0.02, -0.02])
def test_centers_further_from_a_contour_are_in_or_out(offset):
    corners = np.array([(5 - offset, 5 - offset), (9 + offset, 5 - offset), (9 + offset, 9 + offset)])
    corners = np.concatenate([corners, [(5 - offset, 9 + offset)]])
    expected = np.zeros(SHAPE, bool)
    expected[5:10, 5:10] = True
    if offset < 0:
        expected[:] = False
        expected[6:9, 6:9] = True
    assert np.array_equal(contours_to_mask([corners], SHAPE), expected)


def test_centers_on_sloping_edges_are_inside():
    triangle = np.array([(2, 2), (20, 8), (8, 20)])
    mask = contours_to_mask([triangle], SHAPE)
    on = [(2, 2), (5, 3), (8, 4), (11, 5), (14, 6), (17, 7), (20, 8), (3, 5), (4, 8), (14, 14), (19, 9), (8, 20)]
    assert all(mask[y, x] for x, y in on)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 50), st.booleans())
def test_a_contour_that_is_listed_twice_counts_once(seed, first, backwards):
    contours = through_centers(blobs(seed))
    copies = [np.roll(line[:: -1 if backwards else 1], first, 0) for line in contours]
    closed = [np.concatenate([line, line[:1]]) for line in contours]
    once = contours_to_mask(contours, SHAPE)
    assert np.array_equal(contours_to_mask([*contours, *copies], SHAPE), once)
    assert np.array_equal(contours_to_mask([*contours, *closed], SHAPE), once)
    assert np.array_equal(once, blobs(seed))


def test_contours_beyond_the_image_are_cut_off():
    square = np.array([(-4.0, -4.0), (3, -4), (3, 3), (-4, 3)])
    expected = np.zeros(SHAPE, bool)
    expected[:4, :4] = True
    assert np.array_equal(contours_to_mask([square], SHAPE), expected)
    assert not contours_to_mask([square - 50], SHAPE).any()
