"""Predicted probability against observed frequency."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from gitseg_tf.config import load_config
from gitseg_tf.data.volume import Annotation, Volume
from gitseg_tf.evaluation.calibration import Reliability
from gitseg_tf.inference.predictor import Predictor
from gitseg_tf.labels import UWMGI

SHAPE = (3, 4, 30, 40)


def counted(*pairs):
    reliability = Reliability(UWMGI)
    for probabilities, truth in pairs:
        reliability.add(np.minimum(probabilities * 100, 99).astype(np.uint8), Annotation.complete(truth))
    return reliability.summary()


@pytest.fixture(scope="module")
def pairs():
    """Two scans of an overconfident network: at probability p, a fraction of p squared is the label."""
    random = np.random.default_rng(0)
    probabilities = [random.beta(0.4, 0.8, SHAPE) for _ in range(2)]
    return [(p, random.uniform(size=SHAPE) < p**2) for p in probabilities]


def test_the_reliability_curve_matches_scikit_learn(pairs):
    summary = counted(*pairs)
    for k, label in enumerate(UWMGI.names):
        p, true = (np.concatenate([pair[part][k].ravel() for pair in pairs]) for part in (0, 1))
        counts = p >= 0.01
        observed, predicted = calibration_curve(true[counts], p[counts], n_bins=10)
        voxels = np.histogram(p[counts], np.linspace(0, 1, 11))[0]
        result = summary[label]
        np.testing.assert_allclose([b["observed"] for b in result["bins"]], observed, rtol=1e-12)
        np.testing.assert_allclose([b["predicted"] for b in result["bins"]], predicted, atol=0.002)
        assert [b["voxels"] for b in result["bins"]] == voxels.tolist() and result["voxels"] == voxels.sum()
        assert result["ece"] == pytest.approx(np.average(np.abs(observed - predicted), weights=voxels), abs=0.002)
        assert result["mce"] == pytest.approx(np.abs(observed - predicted).max(), abs=0.002)
        assert result["observed"] == pytest.approx(true[counts].mean())
        assert result["below"] == pytest.approx(true[~counts].sum() / true.sum())


def test_confident_background_is_not_counted():
    probabilities, truth = np.zeros(SHAPE), np.zeros(SHAPE, bool)
    probabilities[0, 0, 0, :10], truth[0, 0, 0, :6] = 0.805, True
    truth[0, 1, 0, :2] = True
    result = counted((probabilities, truth))["large_bowel"]
    assert result["voxels"] == 10 and result["ece"] == pytest.approx(0.205) and result["below"] == pytest.approx(2 / 8)


def test_a_label_without_voxels_has_no_calibration_error():
    result = counted((np.zeros(SHAPE), np.zeros(SHAPE, bool)))["stomach"]
    assert result == {
        "voxels": 0, "ece": None, "mce": None, "predicted": None, "observed": None, "below": None, "bins": []
    }  # fmt: skip


SCAN = Volume(np.random.default_rng(1).integers(0, 4000, (5, 24, 32)).astype(np.uint16), (3.0, 1.5, 1.5))
POSTPROCESS = {
    "postprocess.stomach.min_component_ml": 0.02,
    "postprocess.stomach.threshold": 0.9,
    "postprocess.small_bowel.threshold": 0.35,
}


def network(windows):
    """A network whose probabilities cover all values, from the middle slice."""
    import tensorflow as tf

    middle = windows[..., windows.shape[-1] // 2]
    return tf.stack([tf.sigmoid((middle - 0.7) * slope) for slope in (4.0, -5.0, 9.0)], axis=-1)


@pytest.mark.parametrize("smooth", [{}, {"postprocess.large_bowel.smooth_mm": 3.0}], ids=["plain", "smooth"])
def test_predict_levels_returns_the_masks_of_predict_and_quantized_probabilities(smooth):
    config = load_config(None, {"data.input_size": [32, 32], **POSTPROCESS, **smooth}).for_dataset(UWMGI, ("image",))
    predictor = Predictor.of_network(network, config)
    predicted = predictor.predict_levels(SCAN)
    masks, levels = predicted.masks, predicted.levels
    np.testing.assert_array_equal(masks, predictor.predict(SCAN).masks)
    probabilities = predictor.probabilities(SCAN)
    thresholded = probabilities[2] >= 0.9
    assert masks[2].any() and masks[2].sum() < thresholded.sum()
    assert masks.any() and not masks.all() and len(np.unique(levels)) > 20
    np.testing.assert_array_equal(levels, np.minimum(np.float32(100) * probabilities, 99).astype(np.uint8))
