"""The search for the weights of an ensemble, compared with trying all weights of a grid."""

from itertools import product

import numpy as np
import pytest

from gitseg_tf.config.postprocess import LabelPostprocess
from gitseg_tf.data.volume import Annotation
from gitseg_tf.evaluation.tuning.fusion import MARGIN, MemberPairs, search_weights
from gitseg_tf.labels import LabelSet

NAMES = ("a", "b")
SHAPE = (4, 12, 10)


def members(seed=0):
    """Probabilities [L, M, D, H, W] of three members of different quality, and the reference [L, D, H, W]."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((2, *SHAPE), bool)
    truth[0, 1:, 2:8, 2:7] = truth[1, :3, 6:11, 3:9] = True
    noise = rng.normal(size=(2, 3, *SHAPE)) * np.array([0.35, 0.5, 0.9])[:, None, None, None]
    noise[1] = noise[1, ::-1]  # the best member of one label is the worst of the other
    return np.clip(0.35 + 0.3 * truth[:, None] + noise, 0, 1).astype(np.float32), truth


def dice_with(weights, scans):
    """Mean Dice over labels and scans of the weighted mean; `weights` are [L, M]."""
    scores = []
    for probabilities, truth in scans:
        for k in range(2):
            mask = np.tensordot(weights[k], probabilities[k].astype(float), 1) >= 0.5
            scores.append(2 * (mask & truth[k]).sum() / (mask.sum() + truth[k].sum()))
    return np.mean(scores)


@pytest.fixture
def scans():
    return [members(seed) for seed in range(3)]


@pytest.fixture
def pairs(scans, tmp_path):
    found = MemberPairs(tmp_path, LabelSet.of(*NAMES), 0.5, "dice")
    for probabilities, truth in scans:
        found.add(probabilities, Annotation.complete(truth), range(1, 5), (3, 1, 1))
    return found


def simplex(steps=20):
    return [
        (a / steps, b / steps, (steps - a - b) / steps)
        for a, b in product(range(steps + 1), repeat=2)
        if a + b <= steps
    ]


def test_the_search_finds_the_best_weights_of_a_grid_out_of_equal_ones(pairs, scans):
    found = search_weights(pairs.terms_of, pairs.value, pairs.all_labels, 3)
    equal = dice_with([(1 / 3,) * 3] * 2, scans)
    assert found.equal == pytest.approx(equal, abs=2e-3)
    best = max(dice_with([weights] * 2, scans) for weights in simplex())
    assert found.found >= best - 5e-3 and found.is_better == (found.found >= found.equal + MARGIN)
    assert found.alone == pytest.approx([dice_with([tuple(np.eye(3)[k])] * 2, scans) for k in range(3)], abs=2e-3)
    assert dice_with([found.weights[name] for name in NAMES], scans) == pytest.approx(found.chosen, abs=2e-3)


def test_weights_of_each_label_favor_its_best_member(pairs, scans):
    common = search_weights(pairs.terms_of, pairs.value, pairs.all_labels, 3)
    found = search_weights(pairs.terms_of, pairs.value, pairs.all_labels, 3, per_label=True)
    assert found.is_better and found.found > common.found + 0.02
    assert np.argmax(found.weights["a"]) == 0 and np.argmax(found.weights["b"]) == 2
    best = np.mean([
        max(dice_with([weights] * 2, [(p[[k, k]], t[[k, k]]) for p, t in scans]) for weights in simplex())
        for k in range(2)
    ])  # fmt: skip
    assert found.found >= best - 5e-3


def test_equal_weights_are_kept_if_others_gain_too_little():
    def terms_of(label, weights):
        return np.array([[0.9 + 0.0009 * one[0]] for one in weights])

    found = search_weights(terms_of, lambda terms: float(terms[0]), ["a"], 2)
    assert found.found > found.equal and not found.is_better
    assert found.weights == {"a": (0.5, 0.5)} and found.chosen == found.equal


def test_pairs_use_the_weights_that_are_set(pairs, scans):
    for weights in ((1.0, 0.0, 0.0), (0.2, 0.3, 0.5)):
        pairs.use(dict.fromkeys(NAMES, weights))
        total = sum(pairs.terms(name, [LabelPostprocess()])[0] for name in NAMES)
        assert pairs.value(total) == pytest.approx(dice_with([weights] * 2, scans), abs=2e-3)
