import numpy as np
import pytest
from scipy import ndimage

from gitseg_tf.data.scans import ORGANS
from gitseg_tf.evaluation.scores import score_scan
from gitseg_tf.evaluation.tuning import GRID, PairScores, competition_score, search, table_lines
from gitseg_tf.inference.postprocess import postprocess, with_threshold
from gitseg_tf.sections.postprocess import OrganConfig

SPACING = (3.0, 1.5, 1.5)
SHAPE = (20, 32, 36)


def scan(seed, organs=ORGANS):
    """Truth and noisy probabilities of a scan, with a bright speck far from the organ."""
    rng = np.random.default_rng(seed)
    truth, probabilities = np.zeros((3, *SHAPE), bool), np.zeros((3, *SHAPE), np.float32)
    for k, organ in enumerate(ORGANS):
        if organ in organs:
            truth[k, 4:12, 6:16, 6 + 2 * k : 18 + 2 * k] = True
        clean = ndimage.gaussian_filter(truth[k].astype(np.float32), (0.5, 1, 1))
        probabilities[k] = np.clip(0.7 * clean + 0.1 * rng.random(SHAPE), 0, 1)
        probabilities[k, 17:19, 28:31, 30:33] = 0.9
    return truth, probabilities


@pytest.fixture
def pairs(tmp_path):
    def keep(*scans, threshold=0.5):
        kept = PairScores(tmp_path, threshold)
        for truth, probabilities in scans:
            kept.add(probabilities, truth, np.arange(len(truth[0])), SPACING)
        return kept

    return keep


def mean_score(scans, settings, threshold=0.5):
    """The mean over the rows of `score_scan`, of whole scans."""
    organs = [with_threshold(settings.get(organ, OrganConfig()), threshold) for organ in ORGANS]
    rows = []
    for truth, probabilities in scans:
        masks = postprocess(probabilities, organs, np.arange(SHAPE[0]), SPACING)
        rows += score_scan("case1_day0", "case1", truth, masks, SPACING)
    return np.nanmean([row["score"] for row in rows])


@pytest.mark.parametrize("organ", range(3))
def test_the_quick_score_is_that_of_the_evaluation(organ):
    truth, probabilities = scan(0)
    masks = probabilities >= 0.4
    expected = score_scan("case1_day0", "case1", truth, masks, SPACING)[organ]["score"]
    found = competition_score(truth[organ], masks[organ], np.linalg.norm(SHAPE))
    assert found == pytest.approx(expected, abs=1e-12)
    assert competition_score(truth[organ], np.zeros(SHAPE, bool), np.linalg.norm(SHAPE)) == 0


@pytest.mark.parametrize(
    "settings",
    [
        OrganConfig(),
        OrganConfig(threshold=0.2),
        OrganConfig(smooth_mm=4.5, threshold=0.25),
        OrganConfig(fill_holes=True, smallest_ml=0.25, largest_only=True, gap_mm=6),
    ],
)
def test_scores_of_what_is_kept_are_those_of_whole_scans(pairs, settings):
    scans = [scan(0), scan(1, ["stomach"]), scan(2, ["stomach", "large_bowel"])]
    kept = pairs(*scans)
    found = sum(kept.means(organ, [settings])[0] for organ in kept.organs)
    assert found == pytest.approx(mean_score(scans, dict.fromkeys(ORGANS, settings)), abs=1e-12)


def test_an_organ_that_no_scan_has_is_not_tuned(pairs):
    assert pairs(scan(0, ["stomach"]), scan(1, ["stomach", "small_bowel"])).organs == ["small_bowel", "stomach"]


def test_the_search_ends_where_its_table_says_and_higher_than_it_began(pairs):
    scans = [scan(3), scan(4)]
    kept = pairs(*scans)
    found, steps, before = search(kept.means, kept.organs, 0.5)
    assert before == pytest.approx(mean_score(scans, {}), abs=1e-12)
    assert steps[0].before == pytest.approx(before) and steps[-1].after > before + 0.05
    assert steps[-1].after == pytest.approx(mean_score(scans, found), abs=1e-12)
    assert [step.after for step in steps[:-1]] == pytest.approx([step.before for step in steps[1:]])
    # Each organ has a speck far away.
    probabilities, organs = scans[0][1], [with_threshold(found[organ], 0.5) for organ in ORGANS]
    assert not postprocess(probabilities, organs, np.arange(SHAPE[0]), SPACING)[:, 15:].any()


def test_what_a_step_gains_alone_is_its_gain_with_all_else_off(pairs):
    scans = [scan(5)]
    kept = pairs(*scans)
    _, steps, before = search(kept.means, kept.organs, 0.5)
    for step in steps:
        if step.alone is not None:
            settings = {step.organ: OrganConfig(**{step.key: step.value})}
            assert step.alone == pytest.approx(mean_score(scans, settings) - before, abs=1e-12)


def test_of_equal_thresholds_the_nearest_to_the_default_is_taken(pairs):
    truth = np.zeros((3, *SHAPE), bool)
    truth[2, 4:12, 6:16, 6:18] = True
    kept = pairs((truth, np.where(truth, 0.42, 0.1).astype(np.float32)))
    found, steps, _ = search(kept.means, kept.organs, 0.5)
    assert found["stomach"] == OrganConfig(threshold=0.4)
    assert [(step.key, step.value, step.before, step.after) for step in steps] == [("threshold", 0.4, 0.0, 1.0)]


def test_a_perfect_prediction_is_left_alone(pairs):
    truth, _ = scan(0)
    kept = pairs((truth, truth.astype(np.float32)))
    found, steps, before = search(kept.means, kept.organs, 0.5)
    assert not steps and before == 1 and set(found.values()) == {OrganConfig()}


def test_a_later_step_can_change_an_earlier_one():
    """A score by hand: smoothing helps at first, and harms once the threshold is 0.3."""

    def means(organ, settings):
        return [
            {(None, 0.0): 0.5, (None, 1.5): 0.6, (0.3, 1.5): 0.7, (0.3, 0.0): 0.8}.get((s.threshold, s.smooth_mm), 0.1)
            for s in settings
        ]

    found, steps, _ = search(means, ["stomach"], 0.5)
    assert found["stomach"] == OrganConfig(threshold=0.3)
    assert [(step.key, step.value) for step in steps] == [("smooth_mm", 1.5), ("threshold", 0.3), ("smooth_mm", 0.0)]
    assert steps[0].alone is None


def test_a_gain_by_chance_is_not_taken():
    found, steps, _ = search(lambda organ, settings: [0.5 + 9e-5 * s.fill_holes for s in settings], ["stomach"], 0.5)
    assert not steps and found["stomach"] == OrganConfig()


def test_nothing_is_measured_twice(pairs, monkeypatch):
    kept, seen = pairs(scan(0, ["stomach"]), threshold=0.45), []

    def counted(probabilities, settings, numbers, spacing):
        seen.append(settings)
        return probabilities >= settings.threshold

    monkeypatch.setattr("gitseg_tf.evaluation.tuning.organ_mask", counted)
    search(kept.means, kept.organs, 0.45)
    # None and 0.45 are the same threshold and only one of them is tried.
    assert len(seen) == len(set(seen)) >= sum(len(values) - 1 for values in GRID.values())


def test_the_grid_begins_with_off_and_holds_what_the_config_takes():
    for key, values in GRID.items():
        assert values[0] == getattr(OrganConfig(), key)
        for value in values:
            assert getattr(OrganConfig(**{key: value}), key) == value


def test_the_table_shows_each_step_with_its_scores_and_gain():
    _, steps, _ = search(
        lambda organ, settings: [0.5 + 0.25 * s.largest_only for s in settings], ["small_bowel", "stomach"], 0.5
    )
    heading, *lines = table_lines(steps)
    assert heading.split() == ["organ", "step", "setting", "before", "after", "gain", "alone"]
    assert [line.split() for line in lines] == [
        ["small_bowel", "largest_only", "on", "1.0000", "1.2500", "+0.2500", "+0.2500"],
        ["stomach", "largest_only", "on", "1.2500", "1.5000", "+0.2500", "+0.2500"],
    ]


def test_that_nothing_gains_is_said():
    (line,) = table_lines([])
    assert "none" in line
