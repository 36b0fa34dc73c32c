import numpy as np
import pytest
from helpers.known_networks import labeled
from scipy import ndimage

from gitseg_tf.config.postprocess import LabelPostprocess
from gitseg_tf.inference.postprocess import (
    clean_mask,
    columns_reaching,
    fill_holes,
    fill_single_gaps,
    keep_largest_component,
    label_mask,
    label_settings,
    postprocess,
    remove_absent,
    remove_far_slices,
    remove_short_runs,
    remove_small_components,
    smooth_across_slices,
)

SPACING = (3.0, 1.5, 1.5)
VOXEL_ML = 3.0 * 1.5 * 1.5 / 1000


def noise(seed, shape=(14, 33, 41), sigma=(1, 2, 2)):
    """Smooth noise from 0 to 1: blobs with holes, islands in the holes, and parts that touch the border."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return ((field - field.min()) / (field.max() - field.min())).astype(np.float32)


def boxes(*places, shape=(14, 33, 41)):
    mask = np.zeros(shape, bool)
    for z, y, x in places:
        mask[slice(*z), slice(*y), slice(*x)] = True
    return mask


def test_with_all_steps_off_only_the_threshold_applies():
    probabilities = np.stack([noise(k) for k in range(3)])
    masks = postprocess(probabilities, label_settings(labeled()), np.arange(14), SPACING)
    np.testing.assert_array_equal(masks, probabilities >= 0.5)


def test_a_label_threshold_overrides_the_evaluation_threshold():
    config = labeled({"evaluation.threshold": 0.4, "postprocess.small_bowel.threshold": 0.7})
    probabilities = np.stack([noise(k) for k in range(3)])
    masks = postprocess(probabilities, label_settings(config), np.arange(14), SPACING)
    for mask, found, threshold in zip(masks, probabilities, (0.4, 0.7, 0.4), strict=True):
        np.testing.assert_array_equal(mask, found >= threshold)


@pytest.mark.parametrize("seed", range(4))
def test_fill_holes_matches_scipy_slice_by_slice(seed):
    mask = noise(seed) > 0.45
    expected = np.stack([ndimage.binary_fill_holes(plane) for plane in mask])
    assert (expected != mask).any()
    np.testing.assert_array_equal(fill_holes(mask), expected)


def test_cavities_open_within_their_slice_are_not_filled():
    bay = boxes(((3, 4), (0, 9), (0, 9)))
    bay[3, 0:4, 3:6] = False
    tunnel = boxes(((2, 8), (10, 20), (10, 20)))
    tunnel[2:5, 14, 14:20] = False
    mask = bay | tunnel
    np.testing.assert_array_equal(fill_holes(mask), mask)


@pytest.mark.parametrize("smallest", [1, 5, 60, 100_000])
def test_components_below_the_volume_are_removed(smallest):
    mask = noise(1, sigma=(0.7, 1, 1)) > 0.6
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = ndimage.sum_labels(mask, labels, range(1, count + 1))
    assert (sizes == 1).any() and (sizes > 60).any()
    expected = np.isin(labels, 1 + np.flatnonzero(sizes >= smallest))
    np.testing.assert_array_equal(remove_small_components(mask, SPACING, smallest * VOXEL_ML), expected)


def test_voxels_that_share_a_corner_are_one_component():
    mask = np.zeros((4, 4, 4), bool)
    mask[[0, 1, 3], [0, 1, 3], [0, 1, 3]] = True
    kept = remove_small_components(mask, SPACING, 2 * VOXEL_ML)
    assert np.argwhere(kept).tolist() == [[0, 0, 0], [1, 1, 1]]


def test_the_largest_component_is_kept():
    large, small = ((2, 5), (2, 9), (2, 9)), ((7, 13), (20, 24), (20, 24))
    np.testing.assert_array_equal(keep_largest_component(boxes(large, small)), boxes(large))


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_component_matches_scipy(seed):
    mask = noise(seed, sigma=(0.7, 1, 1)) > 0.6
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = ndimage.sum_labels(mask, labels, range(1, count + 1))
    assert count > 5
    np.testing.assert_array_equal(keep_largest_component(mask), labels == 1 + sizes.argmax())


@pytest.mark.parametrize("gap", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_slice_groups_match_scipy_components_after_closing_gaps(seed, gap):
    rng = np.random.default_rng(seed)
    mask = (rng.random((60, 9, 9)) < 0.3) & (rng.random((60, 1, 1)) < 0.3)
    nonempty = mask.any((1, 2))
    # Closing fills the gaps within a group of slices and adds nothing at its ends.
    groups, count = ndimage.label(ndimage.binary_closing(np.pad(nonempty, gap), np.ones(gap)))
    groups = groups[gap:-gap]
    sizes = ndimage.sum_labels(mask.sum((1, 2)), groups, range(1, count + 1))
    assert count > 1 and np.sort(sizes)[-2] < sizes.max()
    expected = mask & (groups == 1 + sizes.argmax())[:, None, None]
    np.testing.assert_array_equal(remove_far_slices(mask, 3.3, 3.3 * gap), expected)


def test_slices_beyond_a_long_gap_are_removed_and_the_larger_part_is_kept():
    body, near, far = ((6, 9), (5, 15), (5, 15)), ((4, 5), (30, 32), (3, 5)), ((12, 14), (8, 12), (8, 12))
    mask = boxes(body, near, far)
    # Slices 4 and 6 are 6 mm apart, slices 8 and 12 are 12 mm apart.
    np.testing.assert_array_equal(remove_far_slices(mask, 3.0, 11.9), boxes(body, near))
    np.testing.assert_array_equal(remove_far_slices(mask, 3.0, 12.0), mask)
    np.testing.assert_array_equal(remove_far_slices(mask, 3.0, 5.9), boxes(body))


def test_the_part_with_more_voxels_is_kept_not_the_one_with_more_slices():
    body, trail = ((0, 2), (5, 15), (5, 15)), ((6, 12), (20, 23), (20, 23))
    np.testing.assert_array_equal(remove_far_slices(boxes(body, trail), 3.0, 6.0), boxes(body))


def test_smoothing_matches_the_normalized_gaussian_of_scipy():
    probabilities = noise(2)
    kernel = {"sigma": 4.0 / 3.0, "axis": 0, "mode": "constant", "truncate": 12}
    reached = ndimage.gaussian_filter1d(np.ones(14), **kernel)[:, None, None]
    expected = ndimage.gaussian_filter1d(probabilities.astype(float), **kernel) / reached
    actual = smooth_across_slices(probabilities, np.arange(14), 3.0, 4.0)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_smoothing_does_not_cross_a_gap_in_the_slice_numbers():
    probabilities = np.zeros((6, 4, 4), np.float32)
    probabilities[:3] = 1
    apart = smooth_across_slices(probabilities, [1, 2, 3, 7, 8, 9], 3.0, 3.0)
    np.testing.assert_allclose(apart, probabilities, atol=1e-6)
    assert 0.1 < smooth_across_slices(probabilities, range(6), 3.0, 3.0)[3, 0, 0] < 0.5


def test_smoothing_recovers_a_slice_missed_between_two_others():
    probabilities = np.full((14, 33, 41), 0.02, np.float32)
    probabilities[4:9, 5:15, 5:15] = 0.9
    probabilities[6] = 0.02
    found = label_mask(probabilities, LabelPostprocess(smooth_mm=3, threshold=0.5), np.arange(14), SPACING)
    assert found[6, 5:15, 5:15].all()


@pytest.mark.parametrize("numbers", [range(14), [*range(5), *range(9, 18)]])
def test_cropping_to_candidate_columns_does_not_change_a_smoothed_mask(numbers):
    probabilities = noise(3) ** 2
    probabilities[:, :4] = probabilities[:, :, 30:] = 0.1
    numbers = np.array(numbers)
    settings = LabelPostprocess(smooth_mm=2.5, threshold=0.35)
    assert probabilities[columns_reaching(probabilities, 0.35)].size < probabilities.size
    expected = smooth_across_slices(probabilities, numbers, 3.0, 2.5) >= 0.35
    assert expected.any()
    np.testing.assert_array_equal(label_mask(probabilities, settings, numbers, SPACING), expected)


def test_steps_run_in_the_documented_order():
    ring = boxes(((2, 5), (2, 12), (2, 12))) & ~boxes(((2, 5), (3, 11), (3, 11)))
    block, speck = ((8, 11), (20, 26), (20, 26)), ((6, 7), (30, 31), (30, 31))
    mask = ring | boxes(block, speck)
    # The ring and the block have 3 * 36 voxels each; the filled ring has 300 and is the largest. If the speck were not
    # removed before slices are grouped, it would bridge the 9 mm between the two.
    settings = LabelPostprocess(fill_holes=True, min_component_ml=2 * VOXEL_ML, max_gap_mm=6)
    np.testing.assert_array_equal(clean_mask(mask, settings, np.arange(14), SPACING), boxes(((2, 5), (2, 12), (2, 12))))
    by_volume = LabelPostprocess(fill_holes=True, min_component_ml=200 * VOXEL_ML)
    np.testing.assert_array_equal(
        clean_mask(mask, by_volume, np.arange(14), SPACING), boxes(((2, 5), (2, 12), (2, 12)))
    )


ALL_ON = LabelPostprocess(
    smooth_mm=3, threshold=0.5, fill_holes=True, min_component_ml=0.1, keep_largest_component=True, max_gap_mm=9
)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 8, 9)])
def test_all_steps_accept_empty_and_full_volumes(value, shape):
    large_voxels = (3.0, 15.0, 15.0)
    found = label_mask(np.full(shape, value, np.float32), ALL_ON, np.arange(shape[0]), large_voxels)
    assert found.shape == shape and found.dtype == bool and (found == bool(value)).all()


def test_the_inputs_are_not_modified():
    probabilities = noise(4)
    before = probabilities.copy()
    mask = probabilities >= 0.5
    cleaned_before = mask.copy()
    label_mask(probabilities, ALL_ON, np.arange(14), SPACING)
    clean_mask(mask, ALL_ON, np.arange(14), SPACING)
    np.testing.assert_array_equal(probabilities, before)
    np.testing.assert_array_equal(mask, cleaned_before)


def rows(*slices, depth=10):
    """A mask that is one row of pixels, by slice: {slice: (first, last + 1)}."""
    mask = np.zeros((depth, 1, 8), bool)
    for z, (first, end) in slices:
        mask[z, 0, first:end] = True
    return mask


def test_a_single_missing_slice_is_filled_with_what_both_neighbors_show():
    # Slices 1 and 3 leave a gap of one slice, 3 and 6 one of two; between 6 and 8 slice number 107 does not exist.
    numbers = np.array([100, 101, 102, 103, 104, 105, 106, 108, 109, 110])
    mask = rows((1, (0, 5)), (3, (2, 8)), (6, (0, 8)), (8, (0, 8)))
    expected = mask.copy()
    expected[2, 0, 2:5] = True
    np.testing.assert_array_equal(fill_single_gaps(mask, numbers), expected)
    # With slice number 107 instead of 108, slice 7 of the stack is an ordinary gap.
    expected[7, 0] = True
    np.testing.assert_array_equal(fill_single_gaps(mask, np.arange(100, 110)), expected)


@pytest.mark.parametrize(
    ("shortest", "kept"),
    [(0, "0123478"), (1, "0123478"), (2, "123478"), (3, "123478"), (4, "1234"), (5, "")],
    ids=lambda value: str(value) or "none",
)
def test_runs_of_fewer_adjacent_slices_are_removed(shortest, kept):
    # Slice 0 is alone, because number 101 is missing; then come a run of four and, after a gap, one of three.
    numbers = np.array([100, 102, 103, 104, 105, 106, 107, 108, 109, 110])
    shown = [0, 1, 2, 3, 4, 7, 8] if shortest < 3 else [0, 1, 2, 3, 4, 7, 8, 9]
    mask = rows(*((z, (0, 4)) for z in shown))
    found = remove_short_runs(mask, numbers, shortest)
    kept = [int(z) for z in kept] + ([9] if "8" in kept and shortest >= 3 else [])
    np.testing.assert_array_equal(np.flatnonzero(found.any((1, 2))), kept)
    np.testing.assert_array_equal(found[kept], mask[kept])


def test_a_gap_is_filled_before_runs_are_counted():
    """The three-slice rule with a filled gap: slices 2, 3 and 4 stay although 3 was missing; slice 8 goes."""
    mask = rows((2, (0, 4)), (4, (0, 4)), (8, (0, 4)))
    settings = LabelPostprocess(fill_single_gaps=True, min_adjacent_slices=3)
    np.testing.assert_array_equal(
        clean_mask(mask, settings, np.arange(10), SPACING), rows(*((z, (0, 4)) for z in (2, 3, 4)))
    )


def test_slices_below_the_presence_are_removed():
    mask, presence = np.ones((4, 2, 2), bool), np.array([0.1, 0.3, 0.31, 0.9], np.float32)
    assert remove_absent(mask, presence, 0.3).any((1, 2)).tolist() == [False, True, True, True]
    assert remove_absent(mask, None, 0.0) is mask
    with pytest.raises(ValueError, match="presence is missing"):
        remove_absent(mask, None, 0.3)
