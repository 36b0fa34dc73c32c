"""What is in the graph of an exported model, without its network: against NumPy, SciPy, OpenCV and inference."""

import cv2
import numpy as np
import pytest
import tensorflow as tf
from known_networks import KINDS
from scipy import ndimage

from gitseg_tf.config import load_config
from gitseg_tf.data.records import PERCENTILES
from gitseg_tf.data.tiles import tile_starts
from gitseg_tf.inference import postprocess
from gitseg_tf.inference.predictor import make_predictor
from gitseg_tf.sections.postprocess import OrganConfig
from gitseg_tf.serving import cleaning
from gitseg_tf.serving.components import components
from gitseg_tf.serving.graph import _starts, intensity_percentiles, make_segment
from gitseg_tf.serving.inputs import decode_slices

SPACING = (3.0, 1.5, 1.63)
SHAPES = [(14, 33, 41), (1, 5, 7), (6, 1, 9), (3, 8, 1)]


def noise(seed, shape=(14, 33, 41), sigma=(1, 2, 2)):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return ((field - field.min()) / (field.max() - field.min())).astype(np.float32)


def snake(depth=5, height=31, width=29):
    """A single component that winds through the whole volume one voxel wide, as a bowel would at its worst."""
    mask = np.zeros((depth, height, width), bool)
    for z in range(0, depth, 2):
        mask[z, ::2] = True
        for turn, y in enumerate(range(1, height - 1, 2)):
            mask[z, y, 0 if turn % 2 else -1] = True
    for turn, z in enumerate(range(1, depth - 1, 2)):
        mask[z, 0 if turn % 2 else -1, -1] = True
    return mask


@pytest.mark.parametrize("mask", [noise(s, shape) > 0.55 for s in range(4) for shape in SHAPES] + [snake()])
def test_components_are_those_of_scipy(mask):
    found = components(mask)
    expected, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(expected.ravel())[1:]
    assert found.sizes().numpy()[np.unique(found.roots)].tolist() == sizes.tolist()  # in the order of first voxels
    for number, root in enumerate(np.unique(found.roots)[:5], 1):
        np.testing.assert_array_equal(found.keep(found.roots == root), expected == number)


def test_voxels_that_share_a_face_an_edge_or_a_corner_are_of_one_component():
    for z, y, x in np.argwhere(np.ones((3, 3, 3))) - 1:
        mask = np.zeros((5, 5, 5), bool)
        mask[2, 2, 2] = mask[2 + z, 2 + y, 2 + x] = mask[4, 4, 0] = True
        assert np.count_nonzero(components(mask).sizes()) == ndimage.label(mask, np.ones((3, 3, 3)))[1]


def test_a_mask_of_nothing_has_no_component_and_stays_empty():
    for shape in ((3, 4, 5), (0, 0, 0)):
        found = components(np.zeros(shape, bool))
        assert found.roots.shape == (0,) and found.keep(found.roots == 0).numpy().sum() == 0


@pytest.mark.parametrize("seed", range(4))
def test_holes_are_those_of_scipy_slice_by_slice(seed):
    mask = noise(seed) > 0.45
    expected = np.stack([ndimage.binary_fill_holes(plane) for plane in mask])
    assert (expected != mask).any()
    np.testing.assert_array_equal(cleaning.fill_holes(mask), expected)


STEPS = [
    {"fill_holes": True},
    {"smallest_ml": 0.5},
    {"largest_only": True},
    {"gap_mm": 3.0},
    {"gap_mm": 6.0, "largest_only": True, "fill_holes": True},
    {"smooth_mm": 4.0},
    {"smooth_mm": 3.0, "fill_holes": True, "smallest_ml": 0.2, "gap_mm": 6.0},
]


@pytest.mark.parametrize("steps", STEPS, ids=lambda steps: "-".join(steps))
def test_each_step_of_post_processing_is_that_of_predict(steps):
    changed = 0
    for seed, shape in enumerate(SHAPES * 2):
        found = noise(seed, shape)
        found[3::4] = 0
        numbers = np.arange(shape[0]) + 3 * (np.arange(shape[0]) > 5)
        settings = OrganConfig(threshold=0.55, **steps)
        expected = postprocess.organ_mask(found, settings, numbers, SPACING)
        ours = cleaning.organ_mask(tf.constant(found), settings, tf.constant(numbers), tf.constant(SPACING))
        np.testing.assert_array_equal(ours, expected)
        changed += (expected != (found >= 0.55)).any()
    assert changed


def test_of_equally_large_components_and_groups_the_first_stays():
    mask = np.zeros((9, 6, 6), bool)
    mask[0, :2, :2] = mask[4, 3:5, 3:5] = mask[8, :2, 4:] = True
    first = mask & (np.arange(9) == 0)[:, None, None]
    np.testing.assert_array_equal(cleaning.keep_largest_component(mask), first)
    np.testing.assert_array_equal(cleaning.remove_far_slices(mask, 3.0, 6.0), first)


@pytest.mark.parametrize("image", [[[[7]]], [[[0, 65535]]], [[[3, 1, 2, 9, 9, 9]]], None])
def test_percentiles_are_those_of_numpy(image):
    image = np.random.default_rng(0).integers(0, 3000, (4, 37, 41)) if image is None else np.array(image)
    expected = np.percentile(image, PERCENTILES, method="inverted_cdf")
    np.testing.assert_array_equal(intensity_percentiles(tf.constant(image, tf.uint16)), expected)


def png(plane):
    return cv2.imencode(".png", plane)[1].tobytes()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pngs_are_read_with_the_values_that_are_in_them(dtype):
    planes = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (3, 9, 11)).astype(dtype)
    decoded = decode_slices([png(plane) for plane in planes])
    assert decoded.dtype == tf.uint16
    np.testing.assert_array_equal(decoded, planes)


def test_the_network_sees_no_more_windows_at_once_than_the_config_says():
    seen = []

    def network(windows):
        tf.py_function(lambda count: seen.append(int(count)), [tf.shape(windows)[0]], [])
        return tf.repeat(windows[..., :1], 3, -1)

    config = load_config(overrides={"data.size": [32, 32], "evaluation.batch_size": 4})
    image = np.random.default_rng(0).integers(0, 900, (9, 32, 32)).astype(np.uint16)
    segment = tf.function(make_segment(network, config), autograph=False)
    masks = segment(tf.constant(image), tf.constant(SPACING), tf.range(9, dtype=tf.int64))
    assert seen == [4, 4, 1] and masks.shape == (9, 32, 32, 3)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("size", [1, 3, 32, 33])
def test_tiles_begin_where_those_of_predict_do(size, overlap):
    starts = tf.function(lambda extent: _starts(extent, size, overlap), [tf.TensorSpec([], tf.int32)])
    for extent in (*range(size, 2 * size + 3), 3 * size - 1, 3 * size, 7 * size + 1):
        assert starts(extent).numpy().tolist() == tile_starts(extent, size, overlap)


def uneven(windows):
    """A network whose answer changes with left and right, with the place in its input and with each slice of it."""
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
    | {"postprocess.stomach.smooth_mm": 3.0, "postprocess.small_bowel.largest_only": True},
}


@pytest.mark.parametrize("kind", ["2.5-D", "3-D"])
@pytest.mark.parametrize("view", VIEWS)
def test_scans_are_tiled_mirrored_and_scaled_as_predict_does(kind, view):
    base = {"data.size": [32, 64], "data.crop": "none", "evaluation.batch_size": 3}
    config = load_config(overrides=base | KINDS[kind] | VIEWS[view])
    segment = tf.function(make_segment(uneven, config), autograph=False)
    predict = make_predictor(uneven, config)
    inside = []
    for shape in ((7, 75, 110), (2, 20, 130), (5, 33, 30)):
        image = (4000 * noise(1, shape)).astype(np.uint16)
        numbers = np.arange(shape[0]) + 2 * (np.arange(shape[0]) > 2)
        percentiles = intensity_percentiles(tf.constant(image)).numpy()
        expected = np.moveaxis(predict(image, numbers, percentiles, np.float32(SPACING)), 0, -1)
        masks = segment(tf.constant(image), tf.constant(SPACING), tf.constant(numbers)).numpy()
        assert masks.shape == expected.shape and (masks == expected).mean() >= 0.9999
        inside.append(expected.mean())
    assert 0.02 < np.mean(inside) < 0.98


def test_larger_scans_flips_and_scales_keep_to_the_windows_at_once_and_to_one_network_in_the_graph():
    seen, traced = [], []

    def network(windows):
        traced.append(windows.shape)
        tf.py_function(lambda count: seen.append(int(count)), [tf.shape(windows)[0]], [])
        return tf.repeat(windows[..., :1], 3, -1)

    overrides = {"data.size": [32, 32], "data.pixel_mm": 1.5, "evaluation.batch_size": 4, "data.crop": "none"}
    tta = {"evaluation.tta.flip": True, "evaluation.tta.scales": [0.5]}
    config = load_config(overrides=overrides | tta)
    segment = tf.function(make_segment(network, config), autograph=False)
    segment(tf.zeros([5, 32, 40], tf.uint16), tf.constant([3.0, 1.5, 1.5]), tf.range(5, dtype=tf.int64))
    # Two tiles at the scan's own size and one at half of it, each also mirrored, for each of two batches.
    assert seen == 4 * [4] + 4 * [1] + 2 * [4] + 2 * [1]
    assert len(traced) == 1
