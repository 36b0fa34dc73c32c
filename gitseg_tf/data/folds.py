"""Folds by patient, balanced over organs."""

import warnings
from collections import Counter

import numpy as np

from gitseg_tf.errors import InputError


def assign_folds(cases: list[str], strata: list[int], folds: int, seed: int = 0) -> dict[str, int]:
    """Deal patients into folds so that each fold has about the same mix of organs.

    Args:
        cases: the patient of each slice.
        strata: what each slice shows, as a number: bit k is set where organ k is present.
        folds: how many.
        seed: the same seed gives the same folds, whatever the order of the slices.

    Returns:
        case to fold, 0 to folds - 1; no fold is empty.

    Raises:
        InputError: fewer patients than folds, or fewer than 2 folds, or a negative seed.

    Source: scikit-learn's StratifiedGroupKFold.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    patients = len(set(cases))
    if seed < 0:
        raise InputError(f"--seed {seed}: it must be 0 or more")
    if folds < 2:
        raise InputError(f"--folds {folds}: one fold is held out and the others train, so there are 2 or more")
    if patients < folds:
        cure = f"use --folds {patients} or add patients" if patients > 1 else "add patients"
        raise InputError(f"{patients} patients cannot be dealt into {folds} folds; {cure}")
    order = sorted(range(len(cases)), key=lambda i: (cases[i], strata[i]))
    groups, labels = np.array(cases)[order], np.array(strata)[order]
    # The splitter's own shuffling mixes up patients before scikit-learn 1.8. Balancing on four of five slices, drawn by
    # the seed, gives other folds for another seed as well.
    first_of_patient = np.append(True, groups[1:] != groups[:-1])
    kept = first_of_patient | (np.random.default_rng(seed).random(len(groups)) < 0.8)
    groups, labels = groups[kept], labels[kept]
    if np.bincount(labels).max() < folds:
        labels = np.zeros_like(labels)  # no combination of organs is there often enough to balance anything
    splitter = StratifiedGroupKFold(folds)
    assignment = {}
    with warnings.catch_warnings():
        # A combination of organs rarer than the folds cannot be in each of them; that is no fault of the data.
        warnings.filterwarnings("ignore", message="The least populated class")
        for fold, (_, held_out) in enumerate(splitter.split(labels, labels, groups)):
            assignment.update({str(case): fold for case in np.unique(groups[held_out])})
    for empty in set(range(folds)) - set(assignment.values()):
        (fullest, _), *_ = Counter(assignment.values()).most_common(1)
        smallest = min((case for case in assignment if assignment[case] == fullest), key=lambda c: (cases.count(c), c))
        assignment[smallest] = empty
    return assignment
