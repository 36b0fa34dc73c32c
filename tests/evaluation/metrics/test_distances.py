"""Surface distances against MONAI 1.6.1, surface-distance 0.1 and brute force over all pairs of points."""

import itertools
import math

import numpy as np
import pytest
from helpers.mask_pairs import SHAPE, SPACING, bowel, pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage
from scipy.spatial.distance import cdist

from gitseg_tf.evaluation.metrics.distances import MaskPair, surfel_distances, voxel_distances
from gitseg_tf.evaluation.metrics.nearest import Points, reach, search_radius
from gitseg_tf.evaluation.metrics.scores import dice, iou, surface_dice
from gitseg_tf.evaluation.metrics.surfels import surfel_areas, surfels

VOXELS = (1.0, 1.0, 1.0)

# MONAI 1.6.1: compute_hausdorff_distance in voxels, in mm and with percentile=95, compute_average_surface_distance with
# symmetric=True, compute_iou.
MONAI = {
    "shifted": (3.741657, 5.662376, 4.802343, 2.543992, 0.456499),
    "eroded": (2.236068, 3.905125, 3.250000, 2.219317, 0.549838),
    "dilated": (2.236068, 6.000000, 6.000000, 3.822984, 0.469584),
    "blob added": (15.937377, 27.052032, 0.000000, 0.399735, 0.983021),
    "far apart": (27.748875, 36.200829, 33.470913, 25.685623, 0.000000),
    "touching the border": (41.472881, 64.986534, 51.983170, 14.302158, 0.390071),
    "full": (19.235384, 33.709236, 25.578312, 17.072538, 0.087721),
    "one voxel": (28.495613, 40.388737, 34.110561, 19.837553, 0.000360),
    "speckle": (16.763054, 29.334280, 15.773656, 1.307657, 0.896642),
}
# DeepMind's surface-distance 0.1: compute_robust_hausdorff at 100 and 95, both of compute_average_surface_distance,
# compute_surface_dice_at_tolerance at 1.5 and 3 mm, compute_dice_coefficient.
DEEPMIND = {
    "shifted": (5.662376, 4.422952, 2.370608, 2.338767, 0.354786, 0.682138, 0.626844),
    "eroded": (3.579455, 3.000000, 1.689734, 1.320025, 0.665338, 0.978754, 0.709543),
    "dilated": (6.000000, 6.000000, 2.566185, 3.096504, 0.254084, 0.701770, 0.639071),
    "blob added": (27.052033, 0.000000, 0.000000, 0.988391, 0.976596, 0.976596, 0.991438),
    "far apart": (36.200829, 33.012308, 26.047975, 23.264157, 0.000000, 0.000000, 0.000000),
    "touching the border": (64.986537, 51.983170, 1.996559, 25.944807, 0.291700, 0.481925, 0.561224),
    "full": (33.709235, 25.279686, 16.720044, 14.148146, 0.000000, 0.000779, 0.161293),
    "one voxel": (40.388736, 34.114696, 19.976264, 0.375000, 0.008375, 0.016856, 0.000719),
    "speckle": (29.334280, 16.380247, 0.000425, 2.979881, 0.842090, 0.855296, 0.945505),
}
# The same for slice 8 only, in 2-D.
DEEPMIND_2D = {
    "shifted": (5.000000, 4.670385, 2.909058, 2.849608, 0.223958, 0.492118, 0.729911),
    "eroded": (3.250000, 1.952562, 1.183095, 1.105375, 0.970685, 0.993538, 0.872314),
    "dilated": (3.250000, 3.000000, 2.329361, 2.341319, 0.190090, 0.996832, 0.816850),
    "blob added": (0.000000, 0.000000, 0.000000, 0.000000, 1.000000, 1.000000, 1.000000),
    "far apart": (30.037477, 30.000000, 25.114725, 23.296888, 0.000000, 0.000000, 0.000000),
    "full": (27.500000, 25.000000, 14.086461, 14.888114, 0.000000, 0.000000, 0.404352),
    "speckle": (14.150972, 11.629703, 0.000000, 1.475644, 0.881866, 0.919454, 0.983278),
}


@pytest.fixture(scope="module")
def masks():
    return pairs()


@pytest.mark.parametrize("what", MONAI)
def test_voxel_distances_match_monai(masks, what):
    pair = MaskPair.of(*masks[what], SPACING)
    in_mm, in_voxels = pair.voxel_distances_and_steps()
    found = (in_voxels, in_mm.hausdorff(), in_mm.hausdorff(95), in_mm.mean(), iou(*masks[what]))
    assert found == pytest.approx(MONAI[what], abs=1e-5)


@pytest.mark.parametrize("what", DEEPMIND)
def test_surfel_distances_match_deepmind_surface_distance(masks, what):
    found = surfel_distances(*masks[what], SPACING)
    shares = [surface_dice(*masks[what], SPACING, tolerance) for tolerance in (1.5, 3.0)]
    scores = (found.hausdorff(), found.hausdorff(95), *found.means(), *shares, dice(*masks[what]))
    assert scores == pytest.approx(DEEPMIND[what], abs=1e-5)
    assert [found.dice(tolerance) for tolerance in (1.5, 3.0)] == pytest.approx(shares, abs=1e-12)


@pytest.mark.parametrize("what", DEEPMIND_2D)
def test_surfel_distances_in_2d_match_deepmind_surface_distance(masks, what):
    truth, prediction = (mask[8] for mask in masks[what])
    found = surfel_distances(truth, prediction, SPACING[1:])
    scores = (found.hausdorff(), found.hausdorff(95), *found.means(), found.dice(1.5), found.dice(3.0))
    assert (*scores, dice(truth, prediction)) == pytest.approx(DEEPMIND_2D[what], abs=1e-5)


@pytest.mark.parametrize("spacing", [SPACING, VOXELS, (10.0, 0.5, 0.7), (0.4, 3.0, 1.0)])
@pytest.mark.parametrize("what", ["shifted", "far apart", "speckle", "touching the border"])
def test_the_hausdorff_distance_in_voxels_does_not_depend_on_the_spacing(masks, what, spacing):
    assert MaskPair.of(*masks[what], spacing).voxel_distances_and_steps()[1] == pytest.approx(MONAI[what][0], abs=1e-5)


@st.composite
def two_small_masks(draw):
    shape = draw(array_shapes(min_dims=2, max_dims=3, max_side=6))
    spacing = draw(st.tuples(*[st.sampled_from([0.1, 0.7, 1.0, 3.0, 11.0])] * len(shape)))
    return draw(arrays(bool, shape)), draw(arrays(bool, shape)), spacing


@settings(max_examples=100, deadline=None)
@given(two_small_masks())
def test_distances_match_brute_force(case):
    truth, prediction, spacing = case
    surfaces = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) * spacing for mask in (truth, prediction)]
    cells = [centers_of_surface_cells(mask) * spacing for mask in (truth, prediction)]
    for found, (a, b) in (
        (voxel_distances(truth, prediction, spacing), surfaces),
        (surfel_distances(truth, prediction, spacing), cells),
    ):
        assert (found.from_truth.size, found.from_prediction.size) == (len(a), len(b))
        if len(a) and len(b):
            np.testing.assert_allclose(np.sort(found.from_truth), np.sort(cdist(a, b).min(1)), atol=1e-9)
            np.testing.assert_allclose(np.sort(found.from_prediction), np.sort(cdist(a, b).min(0)), atol=1e-9)


def centers_of_surface_cells(mask):
    """Centers of the cells whose voxels differ."""
    padded = np.pad(mask, 1)
    cells = np.ndindex(*(n - 1 for n in padded.shape))
    cut = (cell for cell in cells if np.unique(padded[tuple(slice(i, i + 2) for i in cell)]).size == 2)
    return np.array(list(cut), float).reshape(-1, mask.ndim)


def test_points_beyond_the_search_radius_are_found():
    truth, prediction = np.zeros((2, 3, 4, 400), bool)
    truth[1, 1, 0] = prediction[1, 1, [60, 399]] = True
    found = voxel_distances(truth, prediction, SPACING)
    assert found.from_truth.tolist() == [75.0] and found.from_prediction.tolist() == [75.0, 399 * 1.25]


@pytest.mark.parametrize("spacing", [SPACING, VOXELS, (100.0, 0.1, 1.0), (0.1, 100.0, 1.0), (1.5, 1.5), (0.01, 30.0)])
def test_the_search_is_exact_up_to_its_radius(spacing):
    """From one point to every grid position that keeps the border."""
    steps = np.array(reach(spacing))
    shape = tuple(2 * steps + 5)
    shape = (61, *shape[1:])
    middle = tuple(n // 2 for n in shape)
    points = Points.of(np.array([np.ravel_multi_index(middle, shape)]), shape, spacing)
    kept = np.zeros(shape, bool)
    steps[0] = 0
    kept[tuple(slice(n, size - n) for n, size in zip(steps, shape, strict=True))] = True
    places = np.flatnonzero(kept)
    expected = np.linalg.norm((np.argwhere(kept) - middle) * spacing, axis=1)
    np.testing.assert_allclose(points.distances(places, spacing, search_radius(spacing)), expected, rtol=1e-12)


def test_surfel_areas_match_deepmind_surface_distance():
    """One number represents each table: the weighted sum of the areas of all codes, each with its own weight.

    They are computed from create_table_neighbor_code_to_surface_area and ..._to_contour_length of surface-distance
    0.1, whose codes have their bits in the opposite order.
    """
    weights = np.modf(np.arange(1, 257) * (5**0.5 - 1) / 2)[0]
    assert surfel_areas((3.0, 1.5, 1.25)) @ weights == pytest.approx(416.3758385461576, rel=1e-12)
    assert surfel_areas((3.0, 1.5)) @ weights[:16] == pytest.approx(13.731042978759165, rel=1e-12)


@pytest.mark.parametrize("axes", [2, 3])
def test_the_surface_of_a_half_space_has_the_area_of_the_cut(axes):
    spacing = SPACING[:axes]
    for axis in range(axes):
        indices = np.indices((8,) * axes)
        places, codes = surfels((indices[axis] < 4) & (indices > 0).all(0) & (indices < 7).all(0))
        first = np.stack(np.unravel_index(places, (8,) * axes))
        inner = ((first > 0) & (first < 6)).all(0)
        expected = 5 ** (axes - 1) * math.prod(s for a, s in enumerate(spacing) if a != axis)
        assert surfel_areas(spacing)[codes[inner]].sum() == pytest.approx(expected)


def test_surfel_areas_are_invariant_to_inversion_and_mirroring():
    areas = surfel_areas(SPACING)
    assert (areas == areas[::-1]).all() and areas[0] == 0
    for code in range(1, 255):
        cube = np.array([code >> bit & 1 for bit in range(8)], bool).reshape(2, 2, 2)
        assert code_of(cube) == code
        for axis in range(3):
            assert areas[code_of(np.flip(cube, axis))] == pytest.approx(areas[code])


def code_of(cube):
    """The code of the middle one of the 27 cells of 2 x 2 x 2 voxels with a border."""
    places, codes = surfels(np.pad(cube, 1))
    return int(codes[places == np.ravel_multi_index((1, 1, 1), (4, 4, 4))][0])


@pytest.mark.parametrize("shape", [(5, 7, 9), (70, 80, 90), (700, 800)])
def test_surface_elements_are_found_everywhere_in_a_large_mask(shape):
    """Larger than the blocks that are processed at a time, some of which are empty."""
    mask = np.random.default_rng(0).random(shape) < 0.05
    mask[shape[0] // 2 :] = False
    mask &= np.pad(np.ones([n - 2 for n in shape], bool), 1)
    places, codes = surfels(mask)
    found = np.zeros(mask.shape, int)
    for bit, corner in enumerate(itertools.product((0, 1), repeat=mask.ndim)):
        moved = np.roll(mask, np.negative(corner), range(mask.ndim))
        found += moved.astype(int) << bit
    all_inside = (1 << (1 << mask.ndim)) - 1
    assert places.tolist() == np.flatnonzero((found > 0) & (found < all_inside)).tolist()
    assert codes.tolist() == found.ravel()[places].tolist()


def test_the_area_of_a_voxelized_ball_is_close_to_the_analytic_area():
    """Marching cubes over a binary mask overestimates a ball's area by about a tenth."""
    z, y, x = np.ogrid[-30:31, -30:31, -30:31]
    ball = z**2 + y**2 + x**2 <= 25**2
    area = surfel_distances(ball, ball, VOXELS).truth_areas.sum()
    assert 1.0 < area / (4 * math.pi * 25**2) < 1.12


def test_distances_to_an_empty_mask_are_infinite_or_nan():
    empty, full = np.zeros(SHAPE, bool), bowel()
    for measure in (voxel_distances, surfel_distances):
        assert math.isnan(measure(empty, empty, SPACING).hausdorff())
        assert measure(empty, full, SPACING).hausdorff() == measure(full, empty, SPACING).hausdorff(95) == math.inf
    assert math.isnan(voxel_distances(empty, empty, SPACING).mean())
    assert voxel_distances(empty, full, SPACING).mean() == voxel_distances(full, empty, SPACING).mean() == math.inf
    first, second = surfel_distances(empty, full, SPACING).means()
    assert math.isnan(first) and second == math.inf
    assert math.isnan(MaskPair.of(empty, empty, SPACING).voxel_distances_and_steps()[1])
    assert MaskPair.of(empty, full, SPACING).voxel_distances_and_steps()[1] == math.inf


@pytest.mark.parametrize("shape", [(4,), (2, 2, 2, 2)])
def test_masks_that_are_not_2d_or_3d_are_refused(shape):
    with pytest.raises(ValueError, match="must be 2-D or 3-D"):
        voxel_distances(np.ones(shape, bool), np.ones(shape, bool), (1.0,) * len(shape))
