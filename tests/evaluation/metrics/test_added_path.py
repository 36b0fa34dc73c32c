import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

from gitseg_tf import metrics
from gitseg_tf.evaluation.metrics.added_path import added_path_length
from gitseg_tf.evaluation.metrics.scores import score_scan, summarize
from gitseg_tf.labels import UWMGI

SPACING = (3.0, 1.5, 1.5)


def square(start, stop, shape=(1, 12, 12)):
    mask = np.zeros(shape, bool)
    mask[:, start:stop, start:stop] = True
    return mask


def by_pixels(truth, prediction, spacing, tolerance):
    """Count the contour pixels of the reference that are far from those of the prediction, slice by slice."""
    pixels = 0
    cross = ndimage.generate_binary_structure(2, 1)
    for a, b in zip(truth, prediction, strict=True):
        own, other = (np.argwhere(mask & ~ndimage.binary_erosion(mask, cross)) * spacing[1:] for mask in (a, b))
        pixels += (
            len(own) if not len(other) else int((cdist(own, other).min(1) > tolerance + 1e-9).sum()) if len(own) else 0
        )
    return pixels * (spacing[1] + spacing[2]) / 2


def test_nothing_is_added_to_a_perfect_prediction():
    assert added_path_length(square(2, 9), square(2, 9), SPACING) == 0


def test_a_slice_that_is_not_predicted_adds_its_whole_contour():
    truth = square(2, 6, (3, 12, 12))
    prediction = truth.copy()
    prediction[1] = False
    assert added_path_length(truth, prediction, SPACING) == 12 * 1.5


def test_contour_to_erase_does_not_count():
    truth = square(2, 6, (2, 12, 12))
    prediction = truth.copy()
    truth[1] = False
    assert added_path_length(truth, prediction, SPACING) == 0


def test_the_tolerance_is_the_in_plane_distance_between_contours():
    """The contour of the larger square is one pixel around that of the smaller one; its corners are a diagonal away."""
    larger, smaller = square(2, 9), square(3, 8)
    assert added_path_length(larger, smaller, SPACING) == 24 * 1.5
    assert added_path_length(larger, smaller, SPACING, tolerance_mm=1.5) == 4 * 1.5
    assert added_path_length(larger, smaller, SPACING, tolerance_mm=1.5 * 2**0.5) == 0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.2])
def test_lengths_of_random_masks_match_brute_force(seed, tolerance):
    rng = np.random.default_rng(seed)
    masks = ndimage.gaussian_filter(rng.standard_normal((2, 5, 14, 11)), (0, 1, 1.5, 1.5)) > 0.05
    masks[0, 1] = masks[1, 3] = False
    spacing = (3.0, 1.1, 1.4)
    assert added_path_length(*masks, spacing, tolerance) == pytest.approx(by_pixels(*masks, spacing, tolerance))


def test_the_table_has_it_in_mm_without_tolerance():
    truth, prediction = np.zeros((2, 3, 2, 12, 12), bool)
    truth[:2, 0], prediction[0, 0] = square(2, 6)[0], square(3, 7)[0]
    prediction[2] = True
    moved, missed, absent = score_scan("s", "p", truth, prediction, labels=UWMGI, spacing=SPACING)
    assert moved["added_path_mm"] == pytest.approx(by_pixels(truth[0], prediction[0], SPACING, 0))
    assert missed["added_path_mm"] == 12 * 1.5 and np.isnan(absent["added_path_mm"])
    mean = (moved["added_path_mm"] + missed["added_path_mm"]) / 2
    assert summarize(pd.DataFrame([moved, missed, absent]))["added_path_mm"] == pytest.approx(mean)


def test_the_public_function_takes_arrays_of_any_type():
    assert metrics.added_path_length(square(2, 6).astype(int), square(2, 6).astype(float) * 0, SPACING) == 12 * 1.5


def test_masks_and_spacing_must_be_3d():
    with pytest.raises(ValueError, match="depth, height, width"):
        added_path_length(np.ones((3, 3)), np.ones((3, 3)), SPACING)
    with pytest.raises(ValueError, match="spacing"):
        added_path_length(np.ones((3, 3, 3)), np.ones((3, 3, 3)), (1.0, 1.0))
