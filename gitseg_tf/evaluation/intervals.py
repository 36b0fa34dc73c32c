"""How far scores would move with other patients: bootstrap intervals over patients."""

import numpy as np
import pandas as pd

from gitseg_tf.data.scans import ORGANS
from gitseg_tf.evaluation.scores import mean_terms

LEVEL = 0.95
RESAMPLES = 10_000
_AT_ONCE = 1000  # resamples in memory


def mean_intervals(rows: pd.DataFrame, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> dict:
    """Percentile intervals of all means of `summarise`, by a cluster bootstrap over patients.

    Patients are drawn with replacement, and each brings all its pairs of organ and scan along: scans of one patient are
    alike, and say less of new patients than as many scans of different ones.

    Args:
        rows: the rows of `score_scan`.
        level: of the intervals.
        resamples: draws.
        seed: of the draws.

    Returns:
        {"level": level, name of the mean: [low, high], ..., "organs": {organ: {name: [low, high], ...}}}. None instead
        of [low, high] where fewer than two patients count in the mean. Draws in which none of them is are left out.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    parts = {"": rows, **{organ: rows[rows["organ"] == organ] for organ in ORGANS}}
    sums, counts = [], []
    cases = pd.Index(sorted(rows["case"].unique()))
    for part in parts.values():
        for terms, by_case in zip(mean_terms(part), (sums, counts), strict=True):
            by_case.append(terms.groupby(part["case"]).sum().reindex(cases, fill_value=0))
    names = list(sums[0].columns)
    found = percentile_intervals(np.hstack(sums), np.hstack(counts), level, resamples, seed)
    of_part = {
        part: dict(zip(names, found[k * len(names) :], strict=False)) for k, part in enumerate(parts)
    }  # fmt: skip
    return {"level": level, **of_part.pop(""), "organs": of_part}


def percentile_intervals(
    sums: np.ndarray, counts: np.ndarray, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> list[list[float] | None]:
    """Intervals of means that are a sum over patients divided by another.

    Args:
        sums: float array [patients, means], what each patient adds to the numerators.
        counts: float array [patients, means], what each adds to the denominators; 0 where it has no part in the mean.
        level: of the intervals.
        resamples: draws of as many patients as there are, with replacement.
        seed: of the draws.

    Returns:
        [low, high] of each mean, or None where fewer than two patients count in it.
    """
    means = np.concatenate([w @ sums / _none_for_zero(w @ counts) for w in _weights(len(sums), resamples, seed)])
    tail = 100 * (1 - level) / 2
    return [
        np.percentile(mean[np.isfinite(mean)], [tail, 100 - tail]).tolist() if taking_part > 1 else None
        for mean, taking_part in zip(means.T, np.count_nonzero(counts, axis=0), strict=True)
    ]


def _weights(patients: int, resamples: int, seed: int):
    """How often each patient is drawn, float [some resamples, patients] at a time."""
    draw = np.random.default_rng(seed)
    for begin in range(0, resamples, _AT_ONCE):
        count = min(_AT_ONCE, resamples - begin)
        drawn = draw.integers(0, patients, (count, patients)) + patients * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * patients).reshape(count, patients).astype(float)


def _none_for_zero(counts: np.ndarray) -> np.ndarray:
    return np.where(counts > 0, counts, np.nan)
