"""Folds by patient, balanced over labels."""

from collections import Counter

import numpy as np

from gitseg_tf.core.text import plural
from gitseg_tf.errors import ConfigError, DataError


def assign_folds(cases: list[str], strata: list[int], folds: int, seed: int = 0) -> dict[str, int]:
    """Assign patients to folds such that all folds have a similar mix of labels.

    Args:
        cases: the patient of each slice.
        strata: the labels of each slice as an integer, with bit k set if label k is present.
        folds: number of folds.
        seed: the same seed gives the same folds, regardless of the order of the slices.

    Returns:
        case to fold, 0 to folds - 1; no fold is empty.

    Raises:
        DataError: fewer patients than folds.
        ConfigError: fewer than 1 fold, or a negative seed.

    Source: scikit-learn's StratifiedGroupKFold, reimplemented because importing it takes as long as converting five
        scans, and because its folds differ between versions.
    """
    patients = len(set(cases))
    if seed < 0:
        raise ConfigError(f"seed must be >= 0, got {seed}")
    if folds < 1:
        raise ConfigError(f"folds must be >= 1, got {folds}")
    if patients < folds:
        fix = f"use at most {plural(patients, 'fold')} or add patients" if patients > 1 else "add patients"
        raise DataError(f"too few patients ({patients}) for {folds} folds; {fix}")
    order = sorted(range(len(cases)), key=lambda i: (cases[i], strata[i]))
    kind = {stratum: k for k, stratum in enumerate(sorted(set(strata)))}  # with many labels, strata exceed 64 bits
    groups, labels = np.array(cases)[order], np.array([kind[strata[i]] for i in order])
    # Balance a random 80% of the slices, so that different seeds give different folds.
    first_of_patient = np.append(True, groups[1:] != groups[:-1])
    kept = first_of_patient | (np.random.default_rng(seed).random(len(groups)) < 0.8)
    groups, labels = groups[kept], labels[kept]
    if np.bincount(labels).max() < folds:
        labels = np.zeros_like(labels)  # no combination of labels is frequent enough to balance
    assignment = _deal(groups, labels, folds)
    for empty in set(range(folds)) - set(assignment.values()):
        (fullest, _), *_ = Counter(assignment.values()).most_common(1)
        smallest = min((case for case in assignment if assignment[case] == fullest), key=lambda c: (cases.count(c), c))
        assignment[smallest] = empty
    return assignment


def _deal(groups: np.ndarray, labels: np.ndarray, folds: int) -> dict[str, int]:
    """Assign the most uneven patients first, each to the fold that keeps the label shares most even."""
    names, group = np.unique(groups, return_inverse=True)
    kinds, label = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(names), len(kinds)))
    np.add.at(counts, (group, label), 1)
    total, dealt, fold_of = counts.sum(0), np.zeros((folds, len(kinds))), {}
    for patient in np.argsort(-counts.std(1), kind="stable"):
        best, least, fewest = 0, np.inf, np.inf
        for fold in range(folds):
            dealt[fold] += counts[patient]
            spread, size = (dealt / total).std(0).mean(), dealt[fold].sum()
            dealt[fold] -= counts[patient]
            if spread < least or (np.isclose(spread, least) and size < fewest):
                best, least, fewest = fold, spread, size
        dealt[best] += counts[patient]
        fold_of[str(names[patient])] = best
    return fold_of
