import warnings
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gitseg_tf.data.folds import _deal, assign_folds


@pytest.fixture(scope="module")
def patients():
    """Forty patients with 20 to 120 slices; how often an organ shows differs from patient to patient."""
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


def test_another_seed_gives_other_folds(patients):
    assert assign_folds(*patients, 5, seed=3) != assign_folds(*patients, 5, seed=4)


@pytest.mark.parametrize("organ", [0, 1, 2])
def test_each_fold_shows_an_organ_about_as_often_as_the_cohort(patients, organ):
    fold_of = assign_folds(*patients, 5)
    shown = defaultdict(list)
    for case, stratum in zip(*patients, strict=True):
        shown[fold_of[case]].append(stratum >> organ & 1)
    overall = np.mean([stratum >> organ & 1 for stratum in patients[1]])
    assert all(abs(np.mean(shown[fold]) - overall) < 0.05 for fold in range(5))


def test_folds_hold_about_the_same_number_of_slices(patients):
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
def test_patients_are_dealt_as_scikit_learn_deals_them(folds, patients, seed):
    splitter = pytest.importorskip("sklearn.model_selection").StratifiedGroupKFold(folds)
    rng = np.random.default_rng(seed)
    groups = np.repeat([f"case{n}" for n in range(patients)], rng.integers(8, 30, patients))
    labels = rng.choice(8, len(groups), p=rng.dirichlet(np.ones(8)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        splits = list(splitter.split(labels, labels, groups))
    peer = {str(case): fold for fold, (_, held_out) in enumerate(splits) for case in groups[held_out]}
    assert _deal(groups, labels, folds) == peer


def test_as_many_patients_as_folds_are_one_a_fold():
    # Dealing alone puts two of these into one fold and leaves another empty.
    cases, strata = list("aabccdddd"), [2, 2, 2, 0, 0, 0, 0, 0, 0]
    assert sorted(assign_folds(cases, strata, 4).values()) == [0, 1, 2, 3]


def test_as_many_patients_as_folds_are_one_a_fold_even_when_all_slices_differ():
    assert sorted(assign_folds(list("abcde"), [0, 1, 2, 3, 4], 5).values()) == [0, 1, 2, 3, 4]


def test_fewer_patients_than_folds_are_refused(refusal):
    text = refusal(assign_folds, ["a", "a", "b", "c"], [0, 1, 1, 2], 5)
    assert "3 patients" in text and "5 folds" in text and "--folds 3" in text


def test_a_single_patient_cannot_be_dealt(refusal):
    assert "add patients" in refusal(assign_folds, ["a", "a"], [0, 1], 2)


def test_a_single_fold_is_refused(refusal):
    assert "--folds 1" in refusal(assign_folds, ["a", "b"], [0, 1], 1)
