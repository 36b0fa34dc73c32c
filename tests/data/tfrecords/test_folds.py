import warnings
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gitseg_tf.data.tfrecords.folds import _deal, assign_folds


@pytest.fixture(scope="module")
def patients():
    """Forty patients with 20 to 120 slices; label frequencies vary between patients."""
    rng = np.random.default_rng(5)
    cases, strata = [], []
    for patient in range(40):
        slices = int(rng.integers(20, 121))
        shares = np.clip(np.array([0.45, 0.4, 0.25]) + rng.uniform(-0.15, 0.15, 3), 0, 1)
        shown = rng.random((slices, 3)) < shares
        cases += [f"case{patient}"] * slices
        strata += (shown @ [1, 2, 4]).tolist()
    return cases, strata


def test_every_patient_is_in_one_fold(patients):
    assert set(assign_folds(*patients, 5)) == set(patients[0])


def test_all_folds_are_used(patients):
    assert set(assign_folds(*patients, 5).values()) == {0, 1, 2, 3, 4}


def test_the_same_seed_gives_the_same_folds(patients):
    assert assign_folds(*patients, 5, seed=3) == assign_folds(*patients, 5, seed=3)


def test_the_order_of_the_slices_does_not_matter(patients):
    order = np.random.default_rng(0).permutation(len(patients[0]))
    shuffled = [patients[0][i] for i in order], [patients[1][i] for i in order]
    assert assign_folds(*shuffled, 5, seed=3) == assign_folds(*patients, 5, seed=3)


def test_a_different_seed_gives_different_folds(patients):
    assert assign_folds(*patients, 5, seed=3) != assign_folds(*patients, 5, seed=4)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_label_frequencies_are_similar_in_every_fold(patients, label):
    fold_of = assign_folds(*patients, 5)
    shown = defaultdict(list)
    for case, stratum in zip(*patients, strict=True):
        shown[fold_of[case]].append(stratum >> label & 1)
    overall = np.mean([stratum >> label & 1 for stratum in patients[1]])
    assert all(abs(np.mean(shown[fold]) - overall) < 0.05 for fold in range(5))


def test_folds_have_similar_numbers_of_slices(patients):
    fold_of = assign_folds(*patients, 5)
    slices = Counter(fold_of[case] for case in patients[0])
    assert all(abs(n / len(patients[0]) - 0.2) < 0.04 for n in slices.values())


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 6), st.integers(0, 4), st.randoms(use_true_random=False))
def test_no_fold_is_empty_however_the_patients_differ(folds, more, random):
    cases, strata = [], []
    for patient in range(folds + more):
        slices = random.choice([1, 2, 5, 40])
        cases += [f"case{patient}"] * slices
        strata += [random.randrange(8)] * slices
    assert set(assign_folds(cases, strata, folds, seed=random.randrange(100)).values()) == set(range(folds))


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 6), st.integers(6, 12), st.integers(0, 10_000))
def test_folds_match_scikit_learn(folds, patients, seed):
    splitter = pytest.importorskip("sklearn.model_selection").StratifiedGroupKFold(folds)
    rng = np.random.default_rng(seed)
    groups = np.repeat([f"case{n}" for n in range(patients)], rng.integers(8, 30, patients))
    labels = rng.choice(8, len(groups), p=rng.dirichlet(np.ones(8)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        splits = list(splitter.split(labels, labels, groups))
    peer = {str(case): fold for fold, (_, held_out) in enumerate(splits) for case in groups[held_out]}
    assert _deal(groups, labels, folds) == peer


def test_as_many_patients_as_folds_gives_one_patient_per_fold():
    # Stratification alone would put two of these into one fold and leave another empty.
    cases, strata = list("aabccdddd"), [2, 2, 2, 0, 0, 0, 0, 0, 0]
    assert sorted(assign_folds(cases, strata, 4).values()) == [0, 1, 2, 3]


def test_as_many_patients_as_folds_gives_one_patient_per_fold_even_when_all_slices_differ():
    assert sorted(assign_folds(list("abcde"), [0, 1, 2, 3, 4], 5).values()) == [0, 1, 2, 3, 4]


def test_fewer_patients_than_folds_are_refused(refusal):
    text = refusal(assign_folds, ["a", "a", "b", "c"], [0, 1, 1, 2], 5)
    assert text == "too few patients (3) for 5 folds; use at most 3 folds or add patients"


def test_a_single_patient_cannot_be_split(refusal):
    assert "add patients" in refusal(assign_folds, ["a", "a"], [0, 1], 2)


def test_zero_folds_are_refused_and_one_fold_is_accepted(refusal):
    assert "folds must be >= 1, got 0" in refusal(assign_folds, ["a", "b"], [0, 1], 0)
    assert assign_folds(["a", "b"], [0, 1], 1) == {"a": 0, "b": 0}


def test_a_negative_seed_is_refused(refusal):
    assert "seed must be >= 0, got -1" in refusal(assign_folds, ["a", "b"], [0, 1], 2, seed=-1)


def test_117_labels_are_balanced_over_folds():
    rng = np.random.default_rng(3)
    cases = [f"case{n}" for n in range(30) for _ in range(40)]
    # Each patient shows its own third of the body, so that labels beyond 64 differ between patients.
    strata = []
    for n in range(30):
        first = 39 * (n % 3)
        for z in range(40):
            strata.append(sum(1 << k for k in range(first + z // 8 * 8, first + min(z // 8 * 8 + 8, 39))))
    order = rng.permutation(len(cases))
    fold_of = assign_folds([cases[i] for i in order], [strata[i] for i in order], 5)
    assert Counter(fold_of.values()) == dict.fromkeys(range(5), 6)
    thirds = Counter((fold, int(case[4:]) % 3) for case, fold in fold_of.items())
    assert set(thirds.values()) == {2} and len(thirds) == 15
