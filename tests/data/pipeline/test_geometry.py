from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gitseg_tf.config import load_config, save_config
from gitseg_tf.config.data import DataConfig
from gitseg_tf.config.intensity import STORED_PERCENTILES as STORED
from gitseg_tf.data.pipeline.geometry import (
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
from gitseg_tf.data.volume import PERCENTILES as RECORDED
from gitseg_tf.labels import LabelSet

SIZE = (96, 128)
PERCENTILES = np.array([0, 0, 0, 0, 0, 100, 300, 900, 1000, 1000, 1000], np.float32)


def smooth_image(shape):
    y, x = np.meshgrid(np.linspace(0, 1, shape[0]), np.linspace(0, 1, shape[1]), indexing="ij")
    return (0.5 + 0.2 * np.sin(5 * x + 1) + 0.2 * np.cos(4 * y) * x).astype(np.float32)


def disc(shape, center, radius):
    y, x = np.indices(shape)
    return ((y - center[0]) ** 2 + (x - center[1]) ** 2 <= radius**2).astype(np.float32)


def placed(shape, size=SIZE, spacing=(3, 1.5, 1.5), image=None, **settings):
    image = np.zeros((1, *shape), np.float32) if image is None else image
    return place(image[..., None], PERCENTILES[None], np.float32(spacing), DataConfig(input_size=size, **settings))


def boxed(plane, size=SIZE, **settings):
    return to_model(plane[None], placed(plane.shape, size, **settings), size).numpy()[0]


def back(plane, shape, **settings):
    return from_model(plane[None, ..., None], placed(shape, plane.shape, **settings), shape).numpy()[0, ..., 0]


def offsets(spacing_z=3.0, **settings):
    return window_offsets(np.float32([spacing_z, 1, 1]), DataConfig(**settings))


def indices(numbers, slices, stride=1):
    return (
        window_indices(np.array(numbers, np.int64), offsets(window_slices=slices, window_stride=stride))
        .numpy()
        .tolist()
    )


def body_scan(depth=6, height=120, width=160, seed=0):
    """An ellipse of tissue in noisy air with scattered bright voxels, and the mask of the ellipse."""
    rng = np.random.default_rng(seed)
    image = np.abs(rng.normal(0, 30, (depth, height, width)))
    inside = disc((height, width), (70, 90), 30) > 0
    image[:, inside] = rng.uniform(300, 1000, (depth, inside.sum()))
    image[rng.random(image.shape) < 0.002] = 1000
    return image.astype(np.uint16), inside


def test_the_1st_to_99th_percentiles_map_to_0_to_1():
    percentiles = np.array([0, 5, 100, 150, 200, 300, 400, 450, 500, 600, 700], np.float32)
    image = np.array([[[0, 100, 200, 300, 500, 700]]], np.uint16)
    normal = normalize(image[..., None], {"percentiles": percentiles[None]}, DataConfig())
    assert np.allclose(normal[..., 0], [[[0, 0, 0.25, 0.5, 1, 1]]])


def test_a_constant_scan_becomes_zeros():
    statistics = {"percentiles": np.full((1, 11), 7, np.float32)}
    assert not normalize(np.full((2, 3, 3, 1), 7, np.uint16), statistics, DataConfig()).numpy().any()


@pytest.mark.parametrize(
    ("shape", "size", "fitted"),
    [((266, 266), (128, 128), (128, 128)), ((310, 360), (128, 128), (110, 128)), ((48, 40), (96, 128), (96, 80))],
)
def test_an_image_is_fitted_by_its_longer_side(shape, size, fitted):
    assert tuple(fitted_shape(shape, size).numpy()) == fitted


@settings(deadline=None, max_examples=40)
@given(st.tuples(st.integers(1, 600), st.integers(1, 600)), st.tuples(st.integers(1, 8), st.integers(1, 8)))
def test_a_fitted_image_fills_one_side_and_keeps_its_aspect_ratio(shape, blocks):
    size = (32 * blocks[0], 32 * blocks[1])
    fitted = fitted_shape(shape, size).numpy()
    scale = min(size[0] / shape[0], size[1] / shape[1])
    assert any(fitted == size) and all(1 <= f <= s for f, s in zip(fitted, size, strict=True))
    assert all(abs(f - max(1, n * scale)) <= 0.5 + 1e-6 for f, n in zip(fitted, shape, strict=True))


@pytest.mark.parametrize("shape", [(310, 360), (48, 40), (266, 266)])
def test_the_aspect_ratio_is_preserved(shape):
    radius = min(shape) / 3
    inside = np.argwhere(boxed(disc(shape, (shape[0] / 2, shape[1] / 2), radius)) >= 0.5)
    height, width = inside.max(0) - inside.min(0) + 1
    expected = 2 * radius * min(SIZE[0] / shape[0], SIZE[1] / shape[1])
    assert abs(height - width) <= 2 and abs(height - expected) <= 3


def test_the_padding_is_zero():
    plane = boxed(np.ones((48, 40), np.float32))
    assert np.allclose(plane[:, 24:104], 1) and not plane[:, :24].any() and not plane[:, 104:].any()


def test_an_image_of_the_input_size_is_unchanged():
    plane = smooth_image(SIZE)
    assert np.allclose(boxed(plane), plane, atol=1e-6)


def test_downsampling_is_antialiased():
    stripes = np.tile(np.array([0, 1], np.float32), (288, 192))
    assert np.abs(boxed(stripes)[20:-20, 20:-20] - 0.5).max() < 0.1


@pytest.mark.parametrize("shape", [(310, 360), (48, 40), (266, 266), (47, 131)])
def test_a_smooth_image_round_trips_at_its_original_size(shape):
    plane = smooth_image(shape)
    returned = back(boxed(plane), shape)
    assert returned.shape == shape and np.abs(returned - plane).max() < 0.02


@pytest.mark.parametrize("shape", [(310, 360), (48, 40), (266, 266)])
def test_a_mask_round_trips_almost_unchanged(shape):
    mask = np.zeros(shape, np.uint8)
    cv2.ellipse(mask, (shape[1] // 2, shape[0] // 3), (shape[1] // 4, shape[0] // 6), 25, 0, 360, 1, -1)
    returned = back(boxed(mask.astype(np.float32)), shape) >= 0.5
    assert 2 * (returned & (mask > 0)).sum() / (returned.sum() + mask.sum()) > 0.97


def test_a_point_round_trips_to_its_position():
    plane = cv2.GaussianBlur(disc((310, 360), (70, 300), 6), (0, 0), 6)
    returned = back(boxed(plane), (310, 360))
    centroid = [(grid * returned).sum() / returned.sum() for grid in np.indices(returned.shape)]
    assert np.allclose(centroid, (70, 300), atol=0.3)


def test_windows_at_the_ends_of_a_scan_repeat_the_end_slice():
    assert indices([1, 2, 3, 4], 5) == [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3], [0, 1, 2, 3, 3], [1, 2, 3, 3, 3]]


def test_windows_at_a_gap_repeat_the_slice_next_to_it():
    assert indices([3, 4, 9, 10, 11], 3) == [[0, 0, 1], [0, 1, 1], [2, 2, 3], [2, 3, 4], [3, 4, 4]]


def test_isolated_slices_repeat_themselves():
    assert indices([10, 20, 30], 3) == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]


def test_a_stride_of_two_takes_every_other_slice():
    assert indices([1, 2, 3, 4, 5], 3, stride=2) == [[0, 0, 2], [0, 1, 3], [0, 2, 4], [1, 3, 4], [2, 4, 4]]


def test_a_window_of_one_slice_is_the_slice():
    assert indices([1, 2, 7], 1) == [[0], [1], [2]]


def test_a_scan_of_one_slice_fills_the_window_with_it():
    assert indices([80], 5) == [[0, 0, 0, 0, 0]]


def test_windows_hold_their_slices_as_channels():
    volume = np.arange(4 * 2 * 3).reshape(4, 2, 3)
    windows = stack_windows(volume[..., None], [[0, 0, 1], [2, 3, 3]]).numpy()
    assert windows.shape == (2, 2, 3, 3) and np.array_equal(windows[1, ..., 0], volume[2])
    assert np.array_equal(windows[1, ..., 1], volume[3]) and np.array_equal(windows[0, ..., 2], volume[1])


@pytest.mark.parametrize(
    ("stride_mm", "spacing_z", "expected"),
    [(6, 3, [-4, -2, 0, 2, 4]), (3, 1, [-6, -3, 0, 3, 6]), (4, 3, [-3, -1, 0, 1, 3]), (1, 3, [-2, -1, 0, 1, 2])],
)
def test_a_stride_in_mm_is_rounded_to_whole_slices(stride_mm, spacing_z, expected):
    assert offsets(spacing_z, window_slices=5, window_stride_mm=stride_mm).numpy().tolist() == expected


@pytest.mark.parametrize(("spacing_z", "expected"), [(1.5, [-4, -2, 0, 2]), (3, [-2, -1, 0, 1]), (5, [-1, -1, 0, 1])])
def test_a_patch_covers_the_same_extent_in_mm_at_any_slice_spacing(spacing_z, expected):
    assert offsets(spacing_z, patch=(4, 32, 32), window_stride_mm=3.0).numpy().tolist() == expected


def test_a_patch_at_the_end_of_a_scan_is_shifted_inside():
    steps = offsets(patch=(4, 32, 32))
    assert patch_indices(np.arange(6), steps).numpy().tolist() == [
        [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [2, 3, 4, 5]]  # fmt: skip


def test_a_patch_does_not_cross_a_gap():
    steps = offsets(patch=(3, 32, 32))
    assert patch_indices(np.array([1, 2, 7, 8, 9]), steps).numpy().tolist() == [
        [0, 1, 1], [0, 1, 1], [2, 3, 4], [2, 3, 4], [2, 3, 4]]  # fmt: skip


def test_pixel_mm_gives_an_object_the_same_size_in_every_scan():
    areas = []
    for pixel in (1.0, 1.5, 2.0):
        radius = 30 / pixel
        plane = disc((int(180 / pixel), int(240 / pixel)), (90 / pixel, 120 / pixel), radius)
        areas.append((boxed(plane, spacing=(3, pixel, pixel), pixel_mm=1.5) >= 0.5).sum())
    assert np.allclose(areas, np.pi * 20**2, rtol=0.05)


def test_a_scan_larger_than_the_input_is_center_cropped_and_mapped_back():
    plane = cv2.GaussianBlur(disc((310, 360), (140, 200), 20), (0, 0), 3)
    settings = {"pixel_mm": 1.5, "spacing": (3, 1.5, 1.5)}
    returned = back(boxed(plane, **settings), plane.shape, **settings)
    assert np.abs(returned - plane)[110:190, 130:230].max() < 0.02
    assert not returned[:100].any() and not returned[:, :110].any()


def test_the_body_is_found_in_noise():
    image, inside = body_scan()
    y, x, height, width = body_box(image[..., None], PERCENTILES[None], np.float32([3, 1.0, 1.0])).numpy()
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    # The bounding box plus 10 mm; only the outermost rows of the ellipse, which are too short to count, are missed.
    assert rows[0] - 10 <= y <= rows[0] and rows[-1] <= y + height - 1 <= rows[-1] + 10
    assert columns[0] - 10 <= x <= columns[0] and columns[-1] <= x + width - 1 <= columns[-1] + 10


def test_a_scan_of_air_is_not_cropped():
    box = body_box(np.zeros((2, 50, 60, 1), np.uint16), np.zeros((1, 11), np.float32), np.float32([3, 1.5, 1.5]))
    assert box.numpy().tolist() == [0, 0, 50, 60]


def test_the_body_crop_fills_the_input_and_is_mapped_back():
    image, inside = body_scan()
    settings = {"crop": "body", "image": image, "spacing": (3, 1.0, 1.0)}
    model = boxed(inside.astype(np.float32), **settings)
    whole = boxed(inside.astype(np.float32))
    assert model.sum() > 1.8 * whole.sum()
    returned = back(model, inside.shape, **settings) >= 0.5
    assert 2 * (returned & inside).sum() / (returned.sum() + inside.sum()) > 0.98


VOXELS = np.random.default_rng(5).normal(30, 300, (4, 12, 10, 2)) * [1, 0.001]
STATISTICS = {
    "percentiles": np.percentile(VOXELS, STORED, axis=(0, 1, 2), method="inverted_cdf").T.astype(np.float32),
    "moments": np.stack([VOXELS.mean((0, 1, 2)), VOXELS.std((0, 1, 2))], -1).astype(np.float32),
}


def normalized(intensity, intensities=None):
    config = load_config(None, {"data.intensity": intensity})
    config = config.for_dataset(LabelSet.of("a"), ("ct", "pet"), intensities)
    return normalize(VOXELS, STATISTICS, config.data).numpy()


def between(low, high):
    return np.clip((VOXELS - low) / (np.asarray(high) - low), 0, 1)


def test_stored_percentiles_match_the_records():
    assert STORED == RECORDED


@pytest.mark.parametrize(
    ("intensity", "low", "high"), [(None, 1, 99), ({"kind": "percentiles", "low": 0.5, "high": 99.5}, 0.5, 99.5)]
)
def test_each_channel_is_normalized_by_its_own_percentiles(intensity, low, high):
    ends = (np.percentile(VOXELS, q, axis=(0, 1, 2), method="inverted_cdf") for q in (low, high))
    assert np.allclose(normalized(intensity), between(*ends), atol=1e-5)


@pytest.mark.parametrize("intensity", [{"level": 40, "width": 400}, {"low": -160, "high": 240}])
def test_an_intensity_window_is_in_the_units_of_the_files(intensity):
    assert np.allclose(normalized({"kind": "window"} | intensity), between(-160, 240), atol=1e-6)


def test_zscore_maps_five_deviations_around_the_mean_of_the_scan():
    mean, std = VOXELS.mean((0, 1, 2)), VOXELS.std((0, 1, 2))
    assert np.allclose(normalized({"kind": "zscore"}), between(mean - 5 * std, mean + 5 * std), atol=1e-5)


def test_dataset_intensities_are_filled_in_from_the_dataset():
    known = [SimpleNamespace(mean=20.0, std=100.0), SimpleNamespace(mean=0.1, std=0.2)]
    expected = between(np.array([-480, -0.9]), np.array([520, 1.1]))
    assert np.allclose(normalized({"kind": "dataset"}, known), expected, atol=1e-5)


def test_dataset_intensities_without_a_dataset_are_refused(refusal):
    assert "config.for_dataset(dataset.labels" in refusal(normalized, {"kind": "dataset"})


def test_each_channel_can_have_its_own_normalization():
    mixed = normalized([{"kind": "window", "low": 0, "high": 100}, {"kind": "percentiles"}])
    assert np.array_equal(mixed[..., 0], normalized({"kind": "window", "low": 0, "high": 100})[..., 0])
    assert np.array_equal(mixed[..., 1], normalized(None)[..., 1])


def test_a_resolved_config_can_be_saved_and_resolved_again(tmp_path):
    known = [SimpleNamespace(mean=20.0, std=100.0), SimpleNamespace(mean=0.1, std=0.2)]
    config = load_config(None, {"data.intensity": {"kind": "dataset"}, "data.labels": ["b"]})
    resolved = config.for_dataset(LabelSet.of("a", "b"), ("ct", "pet"), known)
    save_config(resolved, tmp_path / "config.yaml")
    read = load_config(tmp_path / "config.yaml")
    assert read == resolved == read.for_dataset(LabelSet.of("a", "b"), ("ct", "pet"), known[::-1])


def test_a_wrong_number_of_intensity_entries_is_refused(refusal):
    message = refusal(normalized, [{"kind": "zscore"}] * 3)
    assert "data.intensity has 3 entries, but the dataset has 2 channels (ct, pet)" in message


@pytest.mark.parametrize(
    ("intensity", "expected"),
    [
        ({"kind": "windw"}, "kinds percentiles, window, zscore, dataset, got 'windw'"),
        ([{"kind": "zscore"}, {"kind": "window", "level": 1}], "at [1]: a window needs either level and width"),
        ({"kind": "window", "low": 3, "high": 3}, "low must be below high"),
        ({"kind": "window", "lo": 3}, "unknown key 'lo'; allowed are kind, level, width, low, high"),
        ({"kind": "percentiles", "low": 2}, "must be one of the stored percentiles 0, 0.5, 1"),
        ({"kind": "dataset", "mean": 2}, "mean and std must be given together"),
        ([], "one mapping per channel"),
    ],
)
def test_invalid_intensity_settings_are_refused(refusal, intensity, expected):
    message = refusal(load_config, None, {"data.intensity": intensity})
    assert message.startswith("config: data.intensity") and expected in message


def test_a_float_image_with_a_small_range_is_stretched_to_0_to_1():
    image = np.linspace(0, 0.01, 101, dtype=np.float32)[None, None, :, None]
    statistics = {"percentiles": np.float32([[0, 0, 0, 0, 0, 0, 0, 0, 0.01, 0.01, 0.01]])}
    assert np.allclose(normalize(image, statistics, DataConfig())[0, 0, :, 0], np.linspace(0, 1, 101), atol=1e-5)


@pytest.mark.parametrize("padding", [-1024, -3024])
def test_the_body_is_found_in_a_ct_with_any_padding_value(padding):
    image, inside = body_scan()
    ct = np.where(inside, image / 10.0, -1000).astype(np.float32)
    ct[:, :8] = ct[:, -8:] = ct[..., :8] = padding
    percentiles = np.percentile(ct, STORED, method="inverted_cdf").astype(np.float32)
    y, x, height, width = body_box(ct[..., None], percentiles[None], np.float32([3, 1.0, 1.0])).numpy()
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert rows[0] - 10 <= y <= rows[0] and rows[-1] <= y + height - 1 <= rows[-1] + 10
    assert columns[0] - 10 <= x <= columns[0] and columns[-1] <= x + width - 1 <= columns[-1] + 10


def test_the_body_is_found_in_the_first_channel_of_scaled_floats():
    image, _ = body_scan()
    scaled = np.stack([image / 500.0 - 1.5, np.ones(image.shape)], -1).astype(np.float32)
    percentiles = np.stack([PERCENTILES / 500 - 1.5, np.ones(11, np.float32)])
    spacing = np.float32([3, 1.0, 1.0])
    assert np.array_equal(
        body_box(scaled, percentiles, spacing), body_box(image[..., None], PERCENTILES[None], spacing)
    )


def test_all_channels_are_placed_identically():
    planes = np.stack([smooth_image((48, 40)), smooth_image((48, 40))[::-1]], -1)
    both = to_model(planes[None], placed((48, 40)), SIZE).numpy()
    assert both.shape == (1, *SIZE, 2)
    assert all(np.array_equal(both[0, ..., c], boxed(planes[..., c])) for c in (0, 1))


def test_window_channels_are_grouped_by_slice():
    volume = np.arange(4 * 2 * 3 * 2).reshape(4, 2, 3, 2)
    (window,) = stack_windows(volume, [[0, 2, 3]]).numpy()
    assert np.array_equal(window, np.concatenate([volume[0], volume[2], volume[3]], -1))
