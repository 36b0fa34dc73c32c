"""Bootstrap confidence intervals of scores over patients."""

import numpy as np
import pandas as pd

from gitseg_tf.evaluation.metrics.scores import COMBINED, label_names, mean_terms

LEVEL = 0.95
RESAMPLES = 10_000
_AT_ONCE = 1000  # number of resamples in memory


def mean_intervals(rows: pd.DataFrame, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> dict:
    """Compute percentile intervals of all means of `summarize` by a cluster bootstrap over patients.

    Patients are drawn with replacement, each with all pairs of label and scan, because scans of one patient are
    correlated and carry less information about new patients than scans of different patients.

    Args:
        rows: the rows of `score_scan`.
        level: confidence level of the intervals.
        resamples: number of bootstrap resamples.
        seed: seed of the resampling.

    Returns:
        {"level": level, name of the mean: [low, high], ..., "labels": {label: {name: [low, high], ...}}}. An interval
        is None if fewer than two patients enter the mean. Resamples without any of them are left out.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    parts = {"": rows, **{label: rows[rows["label"] == label] for label in label_names(rows)}}
    sums: list[pd.DataFrame] = []
    counts: list[pd.DataFrame] = []
    cases = pd.Index(sorted(rows["case"].unique()))
    for part in parts.values():
        for terms, by_case in zip(mean_terms(part), (sums, counts), strict=True):
            by_case.append(terms.groupby(part["case"]).sum().reindex(cases, fill_value=0))
    columns = list(sums[0].columns)
    names = [*COMBINED, *columns]
    # Each mean is a weighted sum of ratios of sums; most have a single one, with weight 1.
    weights = np.array([[COMBINED.get(name, {name: 1.0}).get(column, 0.0) for name in names] for column in columns])
    intervals = percentile_intervals(
        np.hstack(sums), np.hstack(counts), np.kron(np.eye(len(parts)), weights),
        level=level, resamples=resamples, seed=seed,
    )  # fmt: skip
    of_part = {
        part: dict(zip(names, intervals[k * len(names) :], strict=False)) for k, part in enumerate(parts)
    }  # fmt: skip
    return {"level": level, **of_part.pop(""), "labels": of_part}


def percentile_intervals(
    sums: np.ndarray,
    counts: np.ndarray,
    combinations: np.ndarray | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[list[float] | None]:
    """Compute bootstrap intervals of means that are ratios of sums over patients.

    Args:
        sums: float array [patients, ratios], each patient's contribution to the numerators.
        counts: float array [patients, ratios], each patient's contribution to the denominators; 0 if it does not count.
        combinations: float array [ratios, means], the weight of each ratio in each mean; None: the means are the
            ratios.
        level: confidence level of the intervals.
        resamples: number of bootstrap resamples, each with as many patients as there are.
        seed: seed of the resampling.

    Returns:
        [low, high] of each mean, or None if fewer than two patients enter it.
    """
    ratios = np.concatenate([w @ sums / _nan_for_zero(w @ counts) for w in _weights(len(sums), resamples, seed)])
    patients = np.count_nonzero(counts, axis=0)
    weights = np.eye(len(patients)) if combinations is None else combinations
    tail = 100 * (1 - level) / 2
    intervals: list[list[float] | None] = []
    for column in weights.T:
        parts = np.flatnonzero(column)
        mean = ratios[:, parts] @ column[parts]
        enough = patients[parts].min() > 1
        intervals.append(np.percentile(mean[np.isfinite(mean)], [tail, 100 - tail]).tolist() if enough else None)
    return intervals


def _weights(patients: int, resamples: int, seed: int):
    """Yield how often each patient is drawn, float [resamples, patients], in batches of resamples."""
    draw = np.random.default_rng(seed)
    for begin in range(0, resamples, _AT_ONCE):
        count = min(_AT_ONCE, resamples - begin)
        indices = draw.integers(0, patients, (count, patients)) + patients * np.arange(count)[:, None]
        yield np.bincount(indices.ravel(), minlength=count * patients).reshape(count, patients).astype(float)


def _nan_for_zero(counts: np.ndarray) -> np.ndarray:
    return np.where(counts > 0, counts, np.nan)
