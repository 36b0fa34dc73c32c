import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gitseg_tf.data.geometry import (
    body_box,
    fitted_shape,
    from_model,
    normalize,
    patch_indices,
    place,
    stack_windows,
    to_model,
    window_indices,
    window_offsets,
)
from gitseg_tf.sections.data import DataConfig

SIZE = (96, 128)
PERCENTILES = np.array([0, 0, 0, 0, 0, 100, 300, 900, 1000, 1000, 1000], np.float32)


def smooth_image(shape):
    y, x = np.meshgrid(np.linspace(0, 1, shape[0]), np.linspace(0, 1, shape[1]), indexing="ij")
    return (0.5 + 0.2 * np.sin(5 * x + 1) + 0.2 * np.cos(4 * y) * x).astype(np.float32)


def disc(shape, centre, radius):
    y, x = np.indices(shape)
    return ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2).astype(np.float32)


def placed(shape, size=SIZE, spacing=(3, 1.5, 1.5), image=None, **settings):
    image = np.zeros((1, *shape), np.float32) if image is None else image
    return place(image, PERCENTILES, np.float32(spacing), DataConfig(size=size, **settings))


def boxed(plane, size=SIZE, **settings):
    return to_model(plane[None], placed(plane.shape, size, **settings), size).numpy()[0]


def back(plane, shape, **settings):
    return from_model(plane[None, ..., None], placed(shape, plane.shape, **settings), shape).numpy()[0, ..., 0]


def offsets(spacing_z=3.0, **settings):
    return window_offsets(np.float32([spacing_z, 1, 1]), DataConfig(**settings))


def indices(numbers, slices, stride=1):
    return window_indices(np.array(numbers, np.int64), offsets(slices=slices, stride=stride)).numpy().tolist()


def body_scan(depth=6, height=120, width=160, seed=0):
    """An ellipse of tissue in noisy air, with bright single voxels here and there, and where the ellipse is."""
    rng = np.random.default_rng(seed)
    image = np.abs(rng.normal(0, 30, (depth, height, width)))
    inside = disc((height, width), (70, 90), 30) > 0
    image[:, inside] = rng.uniform(300, 1000, (depth, inside.sum()))
    image[rng.random(image.shape) < 0.002] = 1000
    return image.astype(np.uint16), inside


def test_intensities_from_the_1st_to_the_99th_percentile_become_0_to_1():
    percentiles = np.array([0, 5, 100, 150, 200, 300, 400, 450, 500, 600, 700], np.float32)
    image = np.array([[[0, 100, 200, 300, 500, 700]]], np.uint16)
    assert np.allclose(normalize(image, percentiles), [[[0, 0, 0.25, 0.5, 1, 1]]])


def test_a_scan_of_one_intensity_becomes_zeros():
    assert not normalize(np.full((2, 3, 3), 7, np.uint16), np.full(11, 7, np.float32)).numpy().any()


@pytest.mark.parametrize(
    ("shape", "size", "fitted"),
    [((266, 266), (128, 128), (128, 128)), ((310, 360), (128, 128), (110, 128)), ((48, 40), (96, 128), (96, 80))],
)
def test_an_image_is_fitted_by_its_longer_side(shape, size, fitted):
    assert tuple(fitted_shape(shape, size).numpy()) == fitted


@settings(deadline=None, max_examples=40)
@given(st.tuples(st.integers(1, 600), st.integers(1, 600)), st.tuples(st.integers(1, 8), st.integers(1, 8)))
def test_a_fitted_image_touches_the_frame_and_is_off_by_less_than_a_pixel(shape, blocks):
    size = (32 * blocks[0], 32 * blocks[1])
    fitted = fitted_shape(shape, size).numpy()
    scale = min(size[0] / shape[0], size[1] / shape[1])
    assert any(fitted == size) and all(1 <= f <= s for f, s in zip(fitted, size, strict=True))
    assert all(abs(f - max(1, n * scale)) <= 0.5 + 1e-6 for f, n in zip(fitted, shape, strict=True))


@pytest.mark.parametrize("shape", [(310, 360), (48, 40), (266, 266)])
def test_a_disc_stays_a_disc(shape):
    radius = min(shape) / 3
    inside = np.argwhere(boxed(disc(shape, (shape[0] / 2, shape[1] / 2), radius)) >= 0.5)
    height, width = inside.max(0) - inside.min(0) + 1
    wanted = 2 * radius * min(SIZE[0] / shape[0], SIZE[1] / shape[1])
    assert abs(height - width) <= 2 and abs(height - wanted) <= 3


def test_what_is_around_the_image_is_zero():
    plane = boxed(np.ones((48, 40), np.float32))
    assert np.allclose(plane[:, 24:104], 1) and not plane[:, :24].any() and not plane[:, 104:].any()


def test_an_image_of_the_models_size_is_left_as_it_is():
    plane = smooth_image(SIZE)
    assert np.allclose(boxed(plane), plane, atol=1e-6)


def test_an_image_is_smoothed_before_it_is_made_smaller():
    stripes = np.tile(np.array([0, 1], np.float32), (288, 192))
    assert np.abs(boxed(stripes)[20:-20, 20:-20] - 0.5).max() < 0.1


@pytest.mark.parametrize("shape", [(310, 360), (48, 40), (266, 266), (47, 131)])
def test_a_smooth_image_comes_back_at_its_own_size(shape):
    plane = smooth_image(shape)
    returned = back(boxed(plane), shape)
    assert returned.shape == shape and np.abs(returned - plane).max() < 0.02


@pytest.mark.parametrize("shape", [(310, 360), (48, 40), (266, 266)])
def test_a_mask_comes_back_almost_whole(shape):
    mask = np.zeros(shape, np.uint8)
    cv2.ellipse(mask, (shape[1] // 2, shape[0] // 3), (shape[1] // 4, shape[0] // 6), 25, 0, 360, 1, -1)
    returned = back(boxed(mask.astype(np.float32)), shape) >= 0.5
    assert 2 * (returned & (mask > 0)).sum() / (returned.sum() + mask.sum()) > 0.97


def test_a_point_comes_back_to_its_place():
    plane = cv2.GaussianBlur(disc((310, 360), (70, 300), 6), (0, 0), 6)
    returned = back(boxed(plane), (310, 360))
    centroid = [(grid * returned).sum() / returned.sum() for grid in np.indices(returned.shape)]
    assert np.allclose(centroid, (70, 300), atol=0.3)


def test_slices_beyond_the_ends_of_a_scan_repeat_the_last_one():
    assert indices([1, 2, 3, 4], 5) == [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3], [0, 1, 2, 3, 3], [1, 2, 3, 3, 3]]


def test_slices_behind_a_gap_repeat_the_last_one_before_it():
    assert indices([3, 4, 9, 10, 11], 3) == [[0, 0, 1], [0, 1, 1], [2, 2, 3], [2, 3, 4], [3, 4, 4]]


def test_slices_that_are_all_apart_repeat_themselves():
    assert indices([10, 20, 30], 3) == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]


def test_a_stride_of_two_takes_every_other_slice():
    assert indices([1, 2, 3, 4, 5], 3, stride=2) == [[0, 0, 2], [0, 1, 3], [0, 2, 4], [1, 3, 4], [2, 4, 4]]


def test_a_window_of_one_slice_is_the_slice():
    assert indices([1, 2, 7], 1) == [[0], [1], [2]]


def test_a_scan_of_one_slice_fills_the_window_with_it():
    assert indices([80], 5) == [[0, 0, 0, 0, 0]]


def test_windows_hold_their_slices_as_channels():
    volume = np.arange(4 * 2 * 3).reshape(4, 2, 3)
    windows = stack_windows(volume, [[0, 0, 1], [2, 3, 3]]).numpy()
    assert windows.shape == (2, 2, 3, 3) and np.array_equal(windows[1, ..., 0], volume[2])
    assert np.array_equal(windows[1, ..., 1], volume[3]) and np.array_equal(windows[0, ..., 2], volume[1])


@pytest.mark.parametrize(
    ("stride_mm", "spacing_z", "wanted"),
    [(6, 3, [-4, -2, 0, 2, 4]), (3, 1, [-6, -3, 0, 3, 6]), (4, 3, [-3, -1, 0, 1, 3]), (1, 3, [-2, -1, 0, 1, 2])],
)
def test_a_distance_in_mm_becomes_whole_slices_of_the_scan(stride_mm, spacing_z, wanted):
    assert offsets(spacing_z, slices=5, stride_mm=stride_mm).numpy().tolist() == wanted


@pytest.mark.parametrize(("spacing_z", "wanted"), [(1.5, [-4, -2, 0, 2]), (3, [-2, -1, 0, 1]), (5, [-1, -1, 0, 1])])
def test_a_volume_has_its_extent_in_mm_whatever_the_thickness_of_slices(spacing_z, wanted):
    assert offsets(spacing_z, patch=(4, 32, 32), stride_mm=3.0).numpy().tolist() == wanted


def test_a_volume_is_moved_to_where_its_slices_are():
    steps = offsets(patch=(4, 32, 32))
    assert patch_indices(np.arange(6), steps).numpy().tolist() == [
        [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [2, 3, 4, 5]]  # fmt: skip


def test_a_volume_does_not_reach_over_a_gap():
    steps = offsets(patch=(3, 32, 32))
    assert patch_indices(np.array([1, 2, 7, 8, 9]), steps).numpy().tolist() == [
        [0, 1, 1], [0, 1, 1], [2, 3, 4], [2, 3, 4], [2, 3, 4]]  # fmt: skip


def test_pixels_of_a_common_size_make_a_disc_as_large_in_every_scan():
    areas = []
    for pixel in (1.0, 1.5, 2.0):
        radius = 30 / pixel
        plane = disc((int(180 / pixel), int(240 / pixel)), (90 / pixel, 120 / pixel), radius)
        areas.append((boxed(plane, spacing=(3, pixel, pixel), pixel_mm=1.5) >= 0.5).sum())
    assert np.allclose(areas, np.pi * 20**2, rtol=0.05)


def test_a_scan_larger_than_the_input_is_cut_about_its_middle_and_comes_back_in_place():
    plane = cv2.GaussianBlur(disc((310, 360), (140, 200), 20), (0, 0), 3)
    settings = {"pixel_mm": 1.5, "spacing": (3, 1.5, 1.5)}
    returned = back(boxed(plane, **settings), plane.shape, **settings)
    assert np.abs(returned - plane)[110:190, 130:230].max() < 0.02
    assert not returned[:100].any() and not returned[:, :110].any()


def test_the_body_is_found_in_noise():
    image, inside = body_scan()
    y, x, height, width = body_box(image, PERCENTILES, np.float32([3, 1.0, 1.0])).numpy()
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    # A bounding box and 10 mm; the outermost rows of an ellipse are too short to count, but not by more than those.
    assert rows[0] - 10 <= y <= rows[0] and rows[-1] <= y + height - 1 <= rows[-1] + 10
    assert columns[0] - 10 <= x <= columns[0] and columns[-1] <= x + width - 1 <= columns[-1] + 10


def test_a_scan_of_air_is_taken_whole():
    box = body_box(np.zeros((2, 50, 60), np.uint16), np.zeros(11, np.float32), np.float32([3, 1.5, 1.5]))
    assert box.numpy().tolist() == [0, 0, 50, 60]


def test_the_body_fills_the_input_and_comes_back_in_place():
    image, inside = body_scan()
    settings = {"crop": "body", "image": image, "spacing": (3, 1.0, 1.0)}
    model = boxed(inside.astype(np.float32), **settings)
    whole = boxed(inside.astype(np.float32))
    assert model.sum() > 1.8 * whole.sum()
    returned = back(model, inside.shape, **settings) >= 0.5
    assert 2 * (returned & inside).sum() / (returned.sum() + inside.sum()) > 0.98
