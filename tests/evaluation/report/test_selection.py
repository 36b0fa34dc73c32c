"""Which scans are shown, and that candidates are kept until the selection is final."""

import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitseg_tf.evaluation.report.selection import PictureShelf, choose_scans, may_be_chosen
from gitseg_tf.evaluation.report.slices import ScanPictures

SCORES = st.lists(st.none() | st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.9, 1.0]), min_size=1, max_size=14)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"a": 0.5, "b": 0.9, "c": 0.7, "d": 0.1, "e": 0.8}, {"b": "best", "c": "median", "d": "worst"}),
        ({"a": 0.5, "b": 0.9}, {"b": "best", "a": "worst"}),
        ({"a": 0.5}, {"a": "best"}),
        ({"a": None, "b": 0.0, "c": 0.2}, {"c": "best", "b": "worst"}),
        ({"a": None}, {"a": "best"}),
        ({}, {}),
    ],
)
def test_scans_are_selected_by_score(scores, expected):
    assert list(choose_scans(scores, worst=1).items()) == list(expected.items())


def test_further_worst_scans_are_named_by_rank():
    scores = {name: k / 10 for k, name in enumerate("abcdefgh")}
    expected = {"h": "best", "d": "median and 4th worst", "a": "worst", "b": "2nd worst", "c": "3rd worst"}
    assert choose_scans(scores) == expected | {"e": "5th worst"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("abc", {"c": "best", "b": "median and 2nd worst", "a": "worst"}),
        ("abcd", {"d": "best", "b": "median and 2nd worst", "a": "worst", "c": "3rd worst"}),
        ("abcde", {"e": "best", "c": "median and 3rd worst", "a": "worst", "b": "2nd worst", "d": "4th worst"}),
    ],
)
def test_the_median_of_few_scans_is_also_named_by_rank(names, expected):
    assert list(choose_scans({name: k / 10 for k, name in enumerate(names)}).items()) == list(expected.items())


def test_the_scan_with_the_largest_distance_is_added_unless_already_selected():
    scores = {name: k / 10 for k, name in enumerate("abcdefgh")}
    assert choose_scans(scores, {"a": 3.0, "g": 90.0, "h": 5.0}, worst=1)["g"] == "largest Hausdorff"
    assert choose_scans(scores, {"a": 99.0, "g": 90.0}, worst=1) == {"h": "best", "d": "median", "a": "worst"}


@given(SCORES, st.integers(1, 6), st.randoms(use_true_random=False))
def test_every_finally_selected_scan_was_kept_as_a_candidate(scores, worst, random):
    named = {f"s{k}": score for k, score in enumerate(scores)}
    distances = {scan: random.choice([1.0, 2.0, 3.0]) for scan, score in named.items() if score}

    def first(values, seen):
        return {scan: value for scan, value in values.items() if int(scan[1:]) < seen}

    for seen in range(1, len(named) + 1):
        possible = may_be_chosen(first(named, seen), len(named) - seen, first(distances, seen), worst)
        assert first(choose_scans(named, distances, worst), seen).keys() <= possible


def test_few_candidates_are_kept():
    """Decreasing scores are the hardest case: each scan is the worst so far."""
    scores = {f"s{k}": 1 - k / 100 for k in range(100)}
    kept = [len(may_be_chosen(dict(list(scores.items())[:seen]), 100 - seen)) for seen in range(1, 101)]
    assert max(kept) <= 58 and kept[-1] == 7


def rows_with(score, distance=4.0):
    absent = {"dice_2d_sum": 0.0, "dice_2d_slices": 0, "hausdorff_score": float("nan"), "hausdorff_mm": float("nan")}
    if score is None:
        return [absent | {"hausdorff_mm": distance}, absent]
    present = {"dice_2d_sum": 3 * score, "dice_2d_slices": 3, "hausdorff_score": score, "hausdorff_mm": distance}
    return [present, absent]


def test_selected_pictures_are_returned_and_unneeded_ones_are_never_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rendered = []

    def draw(scan):
        rendered.append(scan)
        return ScanPictures(scan, [{"slice_number": 3}], f"[{scan!r}]")

    with PictureShelf(9, worst=2) as shelf:
        for k, score in enumerate([0.5, 0.4, 0.3, None, 0.9, 0.2, 0.1, 0.8, 0.45]):
            shelf.add(f"s{k}", rows_with(score, 9.0 if k == 2 else float("nan")), lambda k=k: draw(f"s{k}"))
        chosen = shelf.chosen()
        assert len(list(tmp_path.glob("*/*"))) == 5
    assert not list(tmp_path.iterdir())
    assert {c.pictures.scan: c.role for c in chosen} == {
        "s4": "best", "s1": "median", "s6": "worst", "s5": "2nd worst", "s2": "largest Hausdorff"
    }  # fmt: skip
    assert chosen[0].pictures == ScanPictures("s4", [{"slice_number": 3}], "['s4']")
    assert "s3" not in rendered and "s7" not in rendered
