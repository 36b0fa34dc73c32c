"""Repeats of slices with rare labels, compared with cases worked by hand."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gitseg_tf.config import load_config
from gitseg_tf.data.pipeline.balance import MOST_REPEATS, balancing_repeats
from gitseg_tf.errors import DataError
from gitseg_tf.labels import LabelSet

NAMES = ("a", "b", "c")


def dataset(names=NAMES):
    return SimpleNamespace(root=Path("records"), labels=LabelSet.of(*names))


def repeats_of(sets, share=1.0, names=NAMES, all_names=NAMES):
    """Repeats per set, for a single scan with {"a b": number of slices}."""
    keys = {" ".join(str(all_names.index(name)) for name in key.split()): n for key, n in sets.items()}
    config = load_config(None, {"data.balance_labels": share}).for_dataset(LabelSet.of(*names), ("image",))
    repeats = balancing_repeats(dataset(all_names), [SimpleNamespace(id="case1", label_sets=keys)], config)
    return {" ".join(names[k] for k in sorted(labels)): n / 1e6 for labels, n in repeats.of_set.items()}


def frequencies(sets, repeats, names=NAMES):
    """The share of the labeled windows that show each label."""
    windows = {key: n * (1 + repeats.get(key, 0)) for key, n in sets.items()}
    return {name: sum(n for key, n in windows.items() if name in key.split()) / sum(windows.values()) for name in names}


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        # b and c never share a slice. 14 extra windows show each of b (5 slices) and c (1 slice) as often as a (10).
        # Half of the windows must show b, so c gets 7 of them, and b the other 7. Repeating each label on its own, b 5
        # and c 9 times, would leave b in 10 of 24 windows.
        ({"a": 4, "a b": 5, "a c": 1}, {"a": 0, "a b": 7 / 5, "a c": 7}),
        # 32 extra windows: 6 + 14 slices with b, 2 + 18 with c.
        ({"a": 12, "a b": 6, "a c": 2}, {"a": 0, "a b": 14 / 6, "a c": 9}),
        # Every other slice with c would crowd out b, which is in 9 of 10 slices.
        ({"a b": 9, "a c": 1}, {"a b": 0, "a c": 0}),
        # The slice with both rare labels serves both, and ten repeats are the most.
        ({"a": 7, "a b": 2, "a b c": 1}, {"a": 0, "a b": 0, "a b c": 10}),
        # Of 22 windows 10 show a, 10 show b and c, and 2 show b alone; a has 8 + 2, c has 2 + 8.
        ({"a": 8, "b": 2, "b c": 2}, {"a": 0.25, "b": 0, "b c": 4}),
        # Without common slices all labels can become equally frequent.
        ({"a": 40, "b": 10}, {"a": 0, "b": 3}),
        ({"a": 40, "b": 40, "c": 10}, {"a": 0, "b": 0, "c": 3}),
        # At most ten repeats.
        ({"a": 1000, "b": 1}, {"a": 0, "b": 10}),
        ({"a": 5}, {"a": 0}),
    ],
)
def test_repeats_worked_by_hand(sets, expected):
    assert repeats_of(sets) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("sets", [{"a": 4, "a b": 5, "a c": 1}, {"a": 5, "b": 2, "a c": 1, "b c": 1}])
def test_no_choice_of_repeats_makes_the_rarest_label_more_frequent(sets):
    before, after = frequencies(sets, {}), frequencies(sets, repeats_of(sets))
    top = max(before, key=before.get)
    most, extra = max(before.values()), sum(sets.values())
    extra *= sum(min(most / share - 1, MOST_REPEATS) * share for share in before.values())
    best = 0.0
    for repeats in product(np.linspace(0, MOST_REPEATS, 41 if len(sets) == 3 else 11), repeat=len(sets)):
        chosen = dict(zip(sets, repeats, strict=True))
        shares = frequencies(sets, chosen)
        kept = all(
            shares[k] >= before[k] - 1e-9 and shares[k] / shares[top] >= before[k] / before[top] - 1e-9
            for k in before
            if k != top
        )
        if kept and sum(chosen[key] * n for key, n in sets.items()) <= extra + 1e-9:
            best = max(best, min(shares.values()))
    # The grid of repeats is a little coarser than the solution.
    assert best - 1e-4 <= min(after.values()) <= best + 0.05 and best > min(before.values())


label_sets = st.dictionaries(
    st.sets(st.sampled_from(("a", "b", "c", "d", "e")), min_size=1).map(lambda labels: " ".join(sorted(labels))),
    st.integers(1, 60),
    min_size=1,
)


@settings(deadline=None, max_examples=40)
@given(label_sets, st.sampled_from([0.25, 0.5, 1.0]))
def test_no_label_but_the_most_frequent_becomes_rarer(sets, share):
    names = ("a", "b", "c", "d", "e")
    repeats = repeats_of(sets, share, names, names)
    before, after = frequencies(sets, {}, names), frequencies(sets, repeats, names)
    assert all(0 <= n <= share * MOST_REPEATS + 1e-6 for n in repeats.values())
    top = max(before.values())
    for name in names:
        if 0 < before[name] < top:
            assert after[name] >= before[name] - 1e-4
            first = next(k for k in names if before[k] == top)
            assert after[name] / after[first] >= before[name] / top - 1e-3
    assert min(n for n in after.values() if n) >= min(n for n in before.values() if n) - 1e-4


def test_half_of_the_balance_is_half_of_the_repeats():
    sets = {"a": 4, "a b": 5, "a c": 1}
    half, whole = repeats_of(sets, 0.5), repeats_of(sets)
    assert half == pytest.approx({key: n / 2 for key, n in whole.items()}, abs=1e-6)
    shares = [frequencies(sets, repeats)["c"] for repeats in ({}, half, whole)]
    assert shares == sorted(shares)


def test_labels_that_are_not_trained_do_not_count():
    repeats = repeats_of({"a d": 40, "d": 7, "b": 6, "b d": 4}, names=("b", "a"), all_names=("a", "b", "c", "d"))
    assert repeats == pytest.approx({"a": 0, "b": 3}, abs=2e-3)


def test_zero_repeats_nothing_and_needs_no_sets():
    config = load_config(None).for_dataset(LabelSet.of(*NAMES), ("image",))
    assert balancing_repeats(dataset(), [SimpleNamespace(id="case1", label_sets=None)], config) is None


def test_a_dataset_without_the_sets_is_refused():
    config = load_config(None, {"data.balance_labels": 1}).for_dataset(LabelSet.of(*NAMES), ("image",))
    with pytest.raises(DataError, match=r"dataset.json: .* case1 .* convert again, or set data.balance_labels to 0"):
        balancing_repeats(dataset(), [SimpleNamespace(id="case1", label_sets=None)], config)
