"""The graph of an exported model, without its network, against NumPy, SciPy, OpenCV and inference."""

import cv2
import numpy as np
import pytest
import tensorflow as tf
from helpers.known_networks import KINDS, labeled, masks_by
from hypothesis import given, settings, strategies
from scipy import ndimage

from gitseg_tf.client.client import read_masks
from gitseg_tf.config.postprocess import LabelPostprocess
from gitseg_tf.data.pipeline.tiles import tile_starts
from gitseg_tf.data.volume import PERCENTILES, Volume, intensity_statistics
from gitseg_tf.export import postprocess as graph_postprocess
from gitseg_tf.export.components import components
from gitseg_tf.export.graph import _starts, encode_masks, intensity_moments, intensity_percentiles, make_segment
from gitseg_tf.export.inputs import decode_slices
from gitseg_tf.inference import postprocess
from gitseg_tf.labels import LabelSet

SPACING = (3.0, 1.5, 1.63)
SHAPES = [(14, 33, 41), (1, 5, 7), (6, 1, 9), (3, 8, 1)]


def noise(seed, shape=(14, 33, 41), sigma=(1, 2, 2)):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return ((field - field.min()) / (field.max() - field.min())).astype(np.float32)


def snake(depth=5, height=31, width=29):
    """A single component one voxel wide that winds through the whole volume, a worst case for connected components."""
    mask = np.zeros((depth, height, width), bool)
    for z in range(0, depth, 2):
        mask[z, ::2] = True
        for turn, y in enumerate(range(1, height - 1, 2)):
            mask[z, y, 0 if turn % 2 else -1] = True
    for turn, z in enumerate(range(1, depth - 1, 2)):
        mask[z, 0 if turn % 2 else -1, -1] = True
    return mask


@pytest.mark.parametrize("mask", [noise(s, shape) > 0.55 for s in range(4) for shape in SHAPES] + [snake()])
def test_components_match_scipy(mask):
    actual = components(mask)
    expected, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(expected.ravel())[1:]
    assert actual.sizes().numpy()[np.unique(actual.roots)].tolist() == sizes.tolist()  # in the order of first voxels
    for number, root in enumerate(np.unique(actual.roots)[:5], 1):
        np.testing.assert_array_equal(actual.keep(actual.roots == root), expected == number)


def test_voxels_that_share_a_face_edge_or_corner_are_connected():
    for z, y, x in np.argwhere(np.ones((3, 3, 3))) - 1:
        mask = np.zeros((5, 5, 5), bool)
        mask[2, 2, 2] = mask[2 + z, 2 + y, 2 + x] = mask[4, 4, 0] = True
        assert np.count_nonzero(components(mask).sizes()) == ndimage.label(mask, np.ones((3, 3, 3)))[1]


def test_an_empty_mask_has_no_components_and_stays_empty():
    for shape in ((3, 4, 5), (0, 0, 0)):
        found = components(np.zeros(shape, bool))
        assert found.roots.shape == (0,) and found.keep(found.roots == 0).numpy().sum() == 0


@pytest.mark.parametrize("seed", range(4))
def test_fill_holes_matches_scipy_slice_by_slice(seed):
    mask = noise(seed) > 0.45
    expected = np.stack([ndimage.binary_fill_holes(plane) for plane in mask])
    assert (expected != mask).any()
    np.testing.assert_array_equal(graph_postprocess.fill_holes(mask), expected)


STEPS = [
    {"fill_holes": True},
    {"min_component_ml": 0.5},
    {"keep_largest_component": True},
    {"max_gap_mm": 3.0},
    {"max_gap_mm": 6.0, "keep_largest_component": True, "fill_holes": True},
    {"smooth_mm": 4.0},
    {"fill_single_gaps": True},
    {"min_adjacent_slices": 3},
    {"fill_single_gaps": True, "min_adjacent_slices": 4, "fill_holes": True},
    {"smooth_mm": 3.0, "fill_holes": True, "min_component_ml": 0.2, "max_gap_mm": 6.0},
]


@pytest.mark.parametrize("steps", STEPS, ids=lambda steps: "-".join(steps))
def test_each_postprocessing_step_matches_predict(steps):
    changed = 0
    for seed, shape in enumerate(SHAPES * 2):
        actual = noise(seed, shape)
        actual[3::4] = 0
        numbers = np.arange(shape[0]) + 3 * (np.arange(shape[0]) > 5)
        steps_on = LabelPostprocess(threshold=0.55, **steps)
        expected = postprocess.label_mask(actual, steps_on, numbers, SPACING)
        ours = graph_postprocess.label_mask(tf.constant(actual), steps_on, tf.constant(numbers), tf.constant(SPACING))
        np.testing.assert_array_equal(ours, expected)
        changed += (expected != (actual >= 0.55)).any()
    assert changed


def test_the_first_of_equally_large_components_is_kept():
    mask = np.zeros((9, 6, 6), bool)
    mask[0, :2, :2] = mask[4, 3:5, 3:5] = mask[8, :2, 4:] = True
    first = mask & (np.arange(9) == 0)[:, None, None]
    np.testing.assert_array_equal(graph_postprocess.keep_largest_component(mask), first)
    np.testing.assert_array_equal(graph_postprocess.remove_far_slices(mask, 3.0, 6.0), first)


@pytest.mark.parametrize("image", [[[[7]]], [[[0, 65535]]], [[[3, 1, 2, 9, 9, 9]]], None])
def test_percentiles_match_numpy(image):
    image = np.random.default_rng(0).integers(0, 3000, (4, 37, 41)) if image is None else np.array(image)
    expected = np.percentile(image, PERCENTILES, method="inverted_cdf")
    actual = intensity_percentiles(tf.constant(image[..., None], tf.float32))
    np.testing.assert_array_equal(actual, expected[None])


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_intensity_statistics_match_those_of_volumes(dtype):
    """Hounsfield units, fractions, a wide range, a constant."""
    rng = np.random.default_rng(1)
    image = np.stack(
        [
            rng.integers(0, 3000, (4, 37, 41)) - (0 if dtype == np.uint16 else 1024),
            rng.normal(100, 30, (4, 37, 41)),
            rng.integers(0, 1 << (15 if dtype in (np.uint16, np.int16) else 22), (4, 37, 41)),
            np.full((4, 37, 41), 7),
        ],
        -1,
    ).astype(dtype)
    volume = Volume(image, SPACING)
    np.testing.assert_array_equal(intensity_percentiles(tf.constant(image, tf.float32)), volume.percentiles)
    np.testing.assert_allclose(intensity_moments(tf.constant(image, tf.float32)), volume.moments, rtol=1e-5)
    assert intensity_statistics(image[..., 0])[0].dtype == np.float32


def png(plane):
    return cv2.imencode(".png", plane)[1].tobytes()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pngs_are_decoded_losslessly(dtype):
    planes = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (3, 9, 11)).astype(dtype)
    decoded = decode_slices([png(plane) for plane in planes])
    assert decoded.dtype == tf.float32
    np.testing.assert_array_equal(decoded, planes[..., None])
    two = decode_slices([[png(plane), png(plane // 2)] for plane in planes], 2)
    np.testing.assert_array_equal(two, np.stack([planes, planes // 2], -1))


def test_the_network_is_called_with_at_most_batch_size_windows():
    seen = []

    def network(windows):
        tf.py_function(lambda count: seen.append(int(count)), [tf.shape(windows)[0]], [])
        return tf.repeat(windows[..., :1], 3, -1)

    config = labeled({"data.input_size": [32, 32], "evaluation.batch_size": 4})
    image = np.random.default_rng(0).integers(0, 900, (9, 32, 32)).astype(np.uint16)
    segment = tf.function(make_segment(network, config), autograph=False)
    masks = segment(tf.constant(image[..., None], tf.float32), tf.constant(SPACING), tf.range(9, dtype=tf.int64))
    assert seen == [4, 4, 1] and masks.shape == (9, 32, 32, 3)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("size", [1, 3, 32, 33])
def test_tile_starts_match_predict(size, overlap):
    starts = tf.function(lambda extent: _starts(extent, size, overlap), [tf.TensorSpec([], tf.int32)])
    for extent in (*range(size, 2 * size + 3), 3 * size - 1, 3 * size, 7 * size + 1):
        assert starts(extent).numpy().tolist() == tile_starts(extent, size, overlap)


def asymmetric(windows):
    """A network whose output is not symmetric and depends on the position and the slice."""
    columns, rows = tf.linspace(0.2, 1.0, windows.shape[-2]), tf.linspace(0.5, 1.0, windows.shape[-3])
    near = windows if windows.shape.rank == 5 else tf.reduce_mean(windows, -1, keepdims=True)
    seen = near * columns[:, None] * rows[:, None, None]
    return tf.concat([seen, 1 - seen, tf.roll(near, 3, -2)], -1)


VIEWS = {
    "pixels": {"data.pixel_mm": 1.5},
    "pixels body": {"data.pixel_mm": 1.25, "data.crop": "body", "evaluation.overlap": 0.3},
    "pixels of no tile": {"data.pixel_mm": 6.0},
    "flip": {"evaluation.tta.flip": True, "evaluation.threshold": 0.6, "postprocess.stomach.threshold": 0.35},
    "scales": {"evaluation.tta.scales": [0.75, 1.3], "evaluation.overlap": 0.1},
    "all smoothed": {"data.pixel_mm": 1.4, "evaluation.tta.flip": True, "evaluation.tta.scales": [1.2]}
    | {"postprocess.stomach.smooth_mm": 3.0, "postprocess.small_bowel.keep_largest_component": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["2.5-D", "3-D"])
@pytest.mark.parametrize("view", VIEWS)
def test_tiling_flipping_and_scaling_match_predict(kind, view):
    base = {"data.input_size": [32, 64], "data.crop": "none", "evaluation.batch_size": 3}
    config = labeled(base | KINDS[kind] | VIEWS[view])
    segment = tf.function(make_segment(asymmetric, config), autograph=False)
    inside = []
    for shape in ((7, 75, 110), (2, 20, 130), (5, 33, 30)):
        image = (4000 * noise(1, shape)).astype(np.uint16)
        numbers = np.arange(shape[0]) + 2 * (np.arange(shape[0]) > 2)
        expected = np.moveaxis(masks_by(asymmetric, image, config, numbers, SPACING), 0, -1)
        voxels = tf.constant(image[..., None], tf.float32)
        masks = segment(voxels, tf.constant(SPACING), tf.constant(numbers)).numpy()
        assert masks.shape == expected.shape and (masks == expected).mean() >= 0.9999
        inside.append(expected.mean())
    assert 0.02 < np.mean(inside) < 0.98


def test_tiling_and_augmentation_keep_the_batch_size_and_trace_one_network():
    seen, traced = [], []

    def network(windows):
        traced.append(windows.shape)
        tf.py_function(lambda count: seen.append(int(count)), [tf.shape(windows)[0]], [])
        return tf.repeat(windows[..., :1], 3, -1)

    overrides = {"data.input_size": [32, 32], "data.pixel_mm": 1.5, "evaluation.batch_size": 4, "data.crop": "none"}
    tta = {"evaluation.tta.flip": True, "evaluation.tta.scales": [0.5]}
    config = labeled(overrides | tta)
    segment = tf.function(make_segment(network, config), autograph=False)
    segment(tf.zeros([5, 32, 40, 1]), tf.constant([3.0, 1.5, 1.5]), tf.range(5, dtype=tf.int64))
    # Two tiles at full size and one at half size, each also flipped, for each of two batches.
    assert seen == 4 * [4] + 4 * [1] + 2 * [4] + 2 * [1]
    assert len(traced) == 1


# Post-processing and tile blending are implemented twice, in NumPy and as TensorFlow operations.
SOME_STEPS = strategies.builds(
    LabelPostprocess,
    smooth_mm=strategies.sampled_from([0.0, 0.0, 2.0, 7.5]),
    threshold=strategies.sampled_from([0.3, 0.5, 0.62]),
    fill_holes=strategies.booleans(),
    min_component_ml=strategies.sampled_from([0.0, 0.02, 0.3, 5.0]),
    keep_largest_component=strategies.booleans(),
    max_gap_mm=strategies.sampled_from([0.0, 3.0, 3.3, 9.9]),
    min_presence=strategies.sampled_from([0.0, 0.0, 0.3]),
    fill_single_gaps=strategies.booleans(),
    min_adjacent_slices=strategies.sampled_from([0, 0, 2, 3]),
)
LENGTH = strategies.sampled_from([0.7, 1.5, 3.0, 3.3])


@given(
    steps=SOME_STEPS,
    shape=strategies.tuples(*[strategies.integers(1, 12)] * 3),
    seed=strategies.integers(0, 1 << 16),
    coarse=strategies.integers(0, 2),
    spacing=strategies.tuples(LENGTH, LENGTH, LENGTH),
    gap=strategies.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_postprocessing_in_the_graph_matches_numpy(steps, shape, seed, coarse, spacing, gap):
    probabilities = noise(seed, shape, coarse) if np.prod(shape) > 1 else np.full(shape, 0.5, np.float32)
    # Smoothing rounds differently, which does not matter away from the threshold.
    probabilities = np.where(np.abs(probabilities - steps.threshold) < 1e-4, 0, probabilities).astype(np.float32)
    numbers = np.arange(shape[0]) + gap * (np.arange(shape[0]) > shape[0] // 2)
    if steps.smooth_mm:
        smooth = postprocess.smooth_across_slices(probabilities, numbers, spacing[0], steps.smooth_mm)
        if np.abs(smooth - steps.threshold).min() < 1e-5:
            return
    presence = np.random.default_rng(seed).random(shape[0]).astype(np.float32)
    expected = postprocess.label_mask(probabilities, steps, numbers, spacing, presence=presence)
    actual = graph_postprocess.label_mask(
        tf.constant(probabilities), steps, tf.constant(numbers), tf.constant(spacing), tf.constant(presence)
    )
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.slow
@given(
    kind=strategies.sampled_from(sorted(KINDS)),
    shape=strategies.tuples(strategies.integers(1, 6), strategies.integers(20, 70), strategies.integers(20, 70)),
    overlap=strategies.sampled_from([0.0, 0.3, 0.5, 0.8]),
    batch=strategies.integers(1, 4),
    seed=strategies.integers(0, 1 << 16),
)
@settings(max_examples=8, deadline=None)
def test_tile_blending_in_the_graph_matches_numpy(kind, shape, overlap, batch, seed):
    size = {"data.input_size": [32, 32], "data.crop": "none", "data.pixel_mm": 1.5, "evaluation.overlap": overlap}
    config = labeled(size | KINDS[kind] | {"evaluation.batch_size": batch})
    image = (4000 * noise(seed, shape)).astype(np.uint16)
    expected = np.moveaxis(masks_by(asymmetric, image, config), 0, -1)
    segment = tf.function(make_segment(asymmetric, config), autograph=False)
    numbers = tf.range(1, shape[0] + 1, dtype=tf.int64)
    actual = segment(tf.constant(image[..., None], tf.float32), tf.constant([3.0, 1.5, 1.5]), numbers)
    assert (actual.numpy() != expected).mean() <= 1e-3


TWELVE = LabelSet.of(*(f"label_{k}" for k in range(12)))


def twelve_of_two(windows):
    """A network of two channels: label k is where their mean, in 2-D of the middle slice, exceeds k / 12."""
    middle = windows.shape[-1] // 4 * 2
    mean = tf.reduce_mean(windows[..., middle : middle + 2], -1, keepdims=True)
    return tf.sigmoid(100 * (mean - tf.range(12, dtype=tf.float32) / 12 - 0.02))


def in_two_units(shape, seed=0):
    """An MR-like channel and a CT-like channel with negative and fractional values."""
    return np.stack([4000 * noise(seed, shape), 2000 * noise(seed + 1, shape) - 1024], -1)


@pytest.mark.parametrize("kind", ["2.5-D", "3-D"])
def test_twelve_labels_and_two_channels_match_predict(kind):
    base = {"data.input_size": [32, 64], "data.pixel_mm": 1.5, "evaluation.batch_size": 3}
    config = labeled(base | KINDS[kind] | {"postprocess.label_3.fill_holes": True}, TWELVE, ("t1", "ct"))
    image = in_two_units((6, 70, 66))
    expected = np.moveaxis(masks_by(twelve_of_two, image, config, spacing=SPACING), 0, -1)
    segment = tf.function(make_segment(twelve_of_two, config), autograph=False)
    actual = segment(tf.constant(image), tf.constant(SPACING), tf.range(6, dtype=tf.int64)).numpy()
    assert actual.shape == (6, 70, 66, 12) and (actual == expected).mean() >= 0.9999
    assert 0.02 < expected.mean() < 0.98


def test_masks_of_many_labels_round_trip_through_png():
    masks = np.random.default_rng(0).integers(0, 2, (3, 9, 11, 12)).astype(np.uint8)
    pngs = encode_masks(tf.constant(masks)).numpy()
    np.testing.assert_array_equal(read_masks([*pngs], (3, 9, 11), 12), np.moveaxis(masks > 0, -1, 0))
