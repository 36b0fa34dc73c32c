"""Predicted probability against observed frequency."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from gitseg_tf.config import load_config
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.evaluation.reliability import Reliability, make_level_predictor
from gitseg_tf.inference.predictor import make_predictor

SHAPE = (3, 4, 30, 40)


def counted(*pairs):
    reliability = Reliability()
    for probabilities, truth in pairs:
        reliability.add(np.minimum(probabilities * 100, 99).astype(np.uint8), truth)
    return reliability.summary()


@pytest.fixture(scope="module")
def pairs():
    """Two scans whose network is too sure: of probability p, p squared are the organ."""
    random = np.random.default_rng(0)
    probabilities = [random.beta(0.4, 0.8, SHAPE) for _ in range(2)]
    return [(p, random.uniform(size=SHAPE) < p**2) for p in probabilities]


def test_the_curve_is_that_of_scikit_learn(pairs):
    summary = counted(*pairs)
    for k, organ in enumerate(ORGANS):
        p, true = (np.concatenate([pair[part][k].ravel() for pair in pairs]) for part in (0, 1))
        counts = p >= 0.01
        observed, predicted = calibration_curve(true[counts], p[counts], n_bins=10)
        voxels = np.histogram(p[counts], np.linspace(0, 1, 11))[0]
        own = summary[organ]
        np.testing.assert_allclose([b["observed"] for b in own["bins"]], observed, rtol=1e-12)
        np.testing.assert_allclose([b["predicted"] for b in own["bins"]], predicted, atol=0.002)
        assert [b["voxels"] for b in own["bins"]] == voxels.tolist() and own["voxels"] == voxels.sum()
        assert own["ece"] == pytest.approx(np.average(np.abs(observed - predicted), weights=voxels), abs=0.002)
        assert own["mce"] == pytest.approx(np.abs(observed - predicted).max(), abs=0.002)
        assert own["observed"] == pytest.approx(true[counts].mean())
        assert own["below"] == pytest.approx(true[~counts].sum() / true.sum())


def test_background_that_the_network_is_sure_of_does_not_count():
    probabilities, truth = np.zeros(SHAPE), np.zeros(SHAPE, bool)
    probabilities[0, 0, 0, :10], truth[0, 0, 0, :6] = 0.805, True
    truth[0, 1, 0, :2] = True
    own = counted((probabilities, truth))["large_bowel"]
    assert own["voxels"] == 10 and own["ece"] == pytest.approx(0.205) and own["below"] == pytest.approx(2 / 8)


def test_an_organ_that_nothing_is_known_of_has_no_error():
    own = counted((np.zeros(SHAPE), np.zeros(SHAPE, bool)))["stomach"]
    assert own == {
        "voxels": 0, "ece": None, "mce": None, "predicted": None, "observed": None, "below": None, "bins": []
    }  # fmt: skip


SCAN = (
    np.random.default_rng(1).integers(0, 4000, (5, 24, 32)).astype(np.uint16),
    np.arange(1, 6),
    np.linspace(0, 4000, 11).astype(np.float32),
    np.float32((3, 1.5, 1.5)),
)
CLEANED = {
    "postprocess.stomach.smallest_ml": 0.02,
    "postprocess.stomach.threshold": 0.9,
    "postprocess.small_bowel.threshold": 0.35,
}


def network(windows):
    """Probabilities of all sizes, from the middle slice."""
    import tensorflow as tf

    middle = windows[..., windows.shape[-1] // 2]
    return tf.stack([tf.sigmoid((middle - 0.7) * slope) for slope in (4.0, -5.0, 9.0)], axis=-1)


@pytest.mark.parametrize("smooth", [{}, {"postprocess.large_bowel.smooth_mm": 3.0}], ids=["plain", "smooth"])
def test_masks_are_the_predictors_own_and_levels_the_networks_probabilities(smooth):
    import tensorflow as tf

    from gitseg_tf.inference.predictor import make_scan_function

    config = load_config(None, {"data.size": [32, 32], **CLEANED, **smooth})
    masks, levels = make_level_predictor(network, config)(*SCAN)
    np.testing.assert_array_equal(masks, make_predictor(network, config)(*SCAN))
    probabilities = make_scan_function(network, config, tf.identity)(*SCAN)
    uncleaned = probabilities[2] >= 0.9
    assert masks[2].any() and masks[2].sum() < uncleaned.sum()
    assert masks.any() and not masks.all() and len(np.unique(levels)) > 20
    np.testing.assert_array_equal(levels, np.minimum(np.float32(100) * probabilities, 99).astype(np.uint8))
