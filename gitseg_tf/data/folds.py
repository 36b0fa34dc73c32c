"""Folds by patient, balanced over organs."""

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

    Source: scikit-learn's StratifiedGroupKFold, whose import takes as long as converting five scans, and whose folds
        differ from version to version.
    """
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
    # Balancing on four of five slices, drawn by the seed, gives other folds for another seed.
    first_of_patient = np.append(True, groups[1:] != groups[:-1])
    kept = first_of_patient | (np.random.default_rng(seed).random(len(groups)) < 0.8)
    groups, labels = groups[kept], labels[kept]
    if np.bincount(labels).max() < folds:
        labels = np.zeros_like(labels)  # no combination of organs is there often enough to balance anything
    assignment = _deal(groups, labels, folds)
    for empty in set(range(folds)) - set(assignment.values()):
        (fullest, _), *_ = Counter(assignment.values()).most_common(1)
        smallest = min((case for case in assignment if assignment[case] == fullest), key=lambda c: (cases.count(c), c))
        assignment[smallest] = empty
    return assignment


def _deal(groups: np.ndarray, labels: np.ndarray, folds: int) -> dict[str, int]:
    """The most uneven patients first, each goes where it leaves the labels' shares of the folds most alike."""
    names, group = np.unique(groups, return_inverse=True)
    kinds, label = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(names), len(kinds)))
    np.add.at(counts, (group, label), 1)
    total, dealt, fold_of = counts.sum(0), np.zeros((folds, len(kinds))), {}
    for at in np.argsort(-counts.std(1), kind="stable"):
        best, least, fewest = 0, np.inf, np.inf
        for fold in range(folds):
            dealt[fold] += counts[at]
            spread, size = (dealt / total).std(0).mean(), dealt[fold].sum()
            dealt[fold] -= counts[at]
            if spread < least or (np.isclose(spread, least) and size < fewest):
                best, least, fewest = fold, spread, size
        dealt[best] += counts[at]
        fold_of[str(names[at])] = best
    return fold_of
