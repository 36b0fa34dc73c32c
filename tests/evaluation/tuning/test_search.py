import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from gitseg_tf.config.postprocess import LabelPostprocess
from gitseg_tf.data.volume import Annotation
from gitseg_tf.evaluation.metrics.scores import score_scan, summarize
from gitseg_tf.evaluation.tuning.search import GRID, PairScores, search, table_lines
from gitseg_tf.inference.postprocess import postprocess, with_threshold
from gitseg_tf.labels import UWMGI

SPACING = (3.0, 1.5, 1.5)
SHAPE = (20, 32, 36)
# With two missing slices, which only distances in mm know.
NUMBERS = tuple(n + 2 * (n > 14) for n in range(SHAPE[0]))


def scan(seed, labels=UWMGI.names):
    """Truth and noisy probabilities of a scan, with a bright speck far from the label."""
    rng = np.random.default_rng(seed)
    truth, probabilities = np.zeros((3, *SHAPE), bool), np.zeros((3, *SHAPE), np.float32)
    for k, label in enumerate(UWMGI.names):
        if label in labels:
            truth[k, 4:12, 6:16, 6 + 2 * k : 18 + 2 * k] = True
        clean = ndimage.gaussian_filter(truth[k].astype(np.float32), (0.5, 1, 1))
        probabilities[k] = np.clip(0.7 * clean + 0.1 * rng.random(SHAPE), 0, 1)
        probabilities[k, 17:19, 28:31, 30:33] = 0.9
    return truth, probabilities


@pytest.fixture
def pairs(tmp_path):
    def keep(*scans, threshold=0.5, metric="score"):
        kept = PairScores(tmp_path, UWMGI, threshold, metric, 2.5)
        for truth, probabilities in scans:
            kept.add(probabilities, Annotation.complete(truth), NUMBERS, SPACING)
        return kept

    return keep


def mean_score(scans, settings, threshold=0.5, metric="score"):
    """The mean metric of whole scans, by `score_scan` and `summarize`."""
    labels = [with_threshold(settings.get(label, LabelPostprocess()), threshold) for label in UWMGI.names]
    rows = []
    for k, (truth, probabilities) in enumerate(scans):
        masks = postprocess(probabilities, labels, NUMBERS, SPACING)
        more = {"labels": UWMGI, "spacing": SPACING, "numbers": NUMBERS, "tolerance_mm": 2.5}
        rows += score_scan(f"case{k}_day0", f"case{k}", truth, masks, **more)
    return summarize(pd.DataFrame(rows))[metric]


class FakePairs:
    """Pairs of one term, whose value is a function of label and settings."""

    has_presence = False

    def __init__(self, score):
        self.score = score

    def terms(self, label, settings):
        return np.array([[[self.score(label, one), 1.0]] for one in settings])

    def rest(self):
        return np.zeros((1, 2))

    def value(self, terms):
        return float(terms[0, 0])


@pytest.mark.parametrize("metric", ["dice", "score", "score_volume", "surface_dice"])
@pytest.mark.parametrize(
    "settings",
    [
        LabelPostprocess(),
        LabelPostprocess(threshold=0.2),
        LabelPostprocess(smooth_mm=4.5, threshold=0.25),
        LabelPostprocess(fill_holes=True, min_component_ml=0.25, keep_largest_component=True, max_gap_mm=6),
    ],
)
def test_metrics_of_cropped_pairs_match_those_of_whole_scans(pairs, settings, metric):
    """With labels that are absent from the reference of some scans, but predicted there."""
    scans = [scan(0), scan(1, ["stomach"]), scan(2, ["stomach", "large_bowel"])]
    kept = pairs(*scans, metric=metric)
    found = kept.value(kept.rest() + sum(kept.terms(label, [settings])[0] for label in kept.labels))
    assert found == pytest.approx(mean_score(scans, dict.fromkeys(UWMGI.names, settings), metric=metric), abs=1e-12)


def test_false_positives_of_a_label_that_is_never_in_the_reference_count_in_the_score(pairs):
    scans = [scan(0, ["stomach"])]
    kept = pairs(*scans)
    assert kept.labels == ["stomach"]
    found = kept.value(kept.rest() + kept.terms("stomach", [LabelPostprocess()])[0])
    assert found == pytest.approx(mean_score(scans, {}), abs=1e-12) and found < 0.5


def test_a_label_absent_from_all_scans_is_not_tuned(pairs):
    assert pairs(scan(0, ["stomach"]), scan(1, ["stomach", "small_bowel"])).labels == ["small_bowel", "stomach"]


def test_the_search_improves_the_score_as_reported(pairs):
    scans = [scan(3), scan(4)]
    kept = pairs(*scans)
    found, steps, before = search(kept, kept.labels, 0.5)
    assert before == pytest.approx(mean_score(scans, {}), abs=1e-12)
    assert steps[0].before == pytest.approx(before) and steps[-1].after > before + 0.05
    assert steps[-1].after == pytest.approx(mean_score(scans, found), abs=1e-12)
    assert [step.after for step in steps[:-1]] == pytest.approx([step.before for step in steps[1:]])
    # Each label has a distant speck, which must be removed.
    probabilities, labels = scans[0][1], [with_threshold(found[label], 0.5) for label in UWMGI.names]
    assert not postprocess(probabilities, labels, NUMBERS, SPACING)[:, 15:].any()


def test_the_gain_alone_is_measured_with_all_other_steps_off(pairs):
    scans = [scan(5)]
    kept = pairs(*scans)
    _, steps, before = search(kept, kept.labels, 0.5)
    for step in steps:
        if step.alone is not None:
            settings = {step.label: LabelPostprocess(**{step.key: step.value})}
            assert step.alone == pytest.approx(mean_score(scans, settings) - before, abs=1e-12)


def test_ties_go_to_the_threshold_nearest_to_the_default(pairs):
    truth = np.zeros((3, *SHAPE), bool)
    truth[2, 4:12, 6:16, 6:18] = True
    kept = pairs((truth, np.where(truth, 0.42, 0.1).astype(np.float32)))
    found, steps, _ = search(kept, kept.labels, 0.5)
    assert found["stomach"] == LabelPostprocess(threshold=0.4)
    assert [(step.key, step.value, step.before, step.after) for step in steps] == [("threshold", 0.4, 0.0, 1.0)]


def test_presence_below_the_best_threshold_removes_false_positives(pairs):
    """Slices 4 to 11 show the stomach with presence 0.6, and slices 15 to 19 a false positive with presence 0.25."""
    truth = np.zeros((3, *SHAPE), bool)
    truth[2, 4:12, 6:16, 6:18] = True
    probabilities = truth.astype(np.float32)
    probabilities[2, 15:, 6:16, 6:18] = 1
    presence = np.full((3, SHAPE[0]), 0.05, np.float32)
    presence[2, 4:12], presence[2, 15:] = 0.6, 0.25
    kept = pairs()
    kept.add(probabilities, Annotation.complete(truth), NUMBERS, SPACING, presence=presence)
    found, steps, before = search(kept, kept.labels, 0.5)
    assert before < 1 and found["stomach"] == LabelPostprocess(min_presence=0.3) and steps[-1].after == 1
    without = pairs()
    without.add(probabilities, Annotation.complete(truth), NUMBERS, SPACING)
    assert all(step.key != "min_presence" for step in search(without, without.labels, 0.5)[1])


def test_a_perfect_prediction_is_left_alone(pairs):
    truth, _ = scan(0)
    kept = pairs((truth, truth.astype(np.float32)))
    found, steps, before = search(kept, kept.labels, 0.5)
    assert not steps and before == 1 and set(found.values()) == {LabelPostprocess()}


def test_a_later_step_can_change_an_earlier_one():
    """A made-up score: smoothing helps at first, and harms once the threshold is 0.3."""

    def score(label, one):
        known = {(None, 0.0): 0.5, (None, 1.5): 0.6, (0.3, 1.5): 0.7, (0.3, 0.0): 0.8}
        return known.get((one.threshold, one.smooth_mm), 0.1)

    found, steps, _ = search(FakePairs(score), ["stomach"], 0.5)
    assert found["stomach"] == LabelPostprocess(threshold=0.3)
    assert [(step.key, step.value) for step in steps] == [("smooth_mm", 1.5), ("threshold", 0.3), ("smooth_mm", 0.0)]
    assert steps[0].alone is None


def test_a_negligible_gain_is_ignored():
    found, steps, _ = search(FakePairs(lambda label, one: 0.5 + 9e-5 * one.fill_holes), ["stomach"], 0.5)
    assert not steps and found["stomach"] == LabelPostprocess()


def test_no_setting_is_evaluated_twice(pairs, monkeypatch):
    kept, seen = pairs(scan(0, ["stomach"]), threshold=0.45, metric="dice"), []

    def counted(probabilities, settings, numbers, spacing, presence):
        seen.append(settings)
        return probabilities >= settings.threshold

    monkeypatch.setattr("gitseg_tf.evaluation.tuning.search.label_mask", counted)
    search(kept, kept.labels, 0.45)
    # None and 0.45 are the same threshold and only one of them is tried.
    assert len(seen) == len(set(seen)) >= sum(len(values) - 1 for key, values in GRID.items() if key != "min_presence")


def test_the_grid_starts_with_defaults_and_contains_valid_values():
    for key, values in GRID.items():
        assert values[0] == getattr(LabelPostprocess(), key)
        for value in values:
            assert getattr(LabelPostprocess(**{key: value}), key) == value


def test_the_table_shows_each_step_with_its_scores_and_gain():
    _, steps, _ = search(
        FakePairs(lambda label, one: 0.5 + 0.25 * one.keep_largest_component),
        ["small_bowel", "stomach"],
        0.5,
    )
    heading, *lines = table_lines(steps)
    assert heading.split() == ["label", "step", "setting", "before", "after", "gain", "alone"]
    assert [line.split() for line in lines] == [
        ["small_bowel", "keep_largest_component", "on", "1.0000", "1.2500", "+0.2500", "+0.2500"],
        ["stomach", "keep_largest_component", "on", "1.2500", "1.5000", "+0.2500", "+0.2500"],
    ]


def test_a_table_without_gains_says_so():
    (line,) = table_lines([])
    assert "none" in line
