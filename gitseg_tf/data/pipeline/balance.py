"""How often an epoch repeats slices with rare labels: data.balance_labels.

Labels share slices, so a label cannot be oversampled alone: repeating the slices of one label also repeats the labels
next to it, and makes all other labels rarer. What can be chosen is the weight of each *set* of labels that occur
together in a slice. A linear program finds the weights; dataset.json lists the sets.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import tensorflow as tf

from gitseg_tf.config import Config
from gitseg_tf.data.tfrecords.dataset import INDEX, Dataset
from gitseg_tf.data.tfrecords.index import ScanEntry
from gitseg_tf.errors import DataError

MOST_REPEATS = 10
# Repeats are whole numbers of this unit, so that their sums are exact here and in the graph.
_UNIT = 1_000_000
# Of the linear program: ten times the tolerance of its solver.
_TOLERANCE = 1e-6
_MOST_LEVELS = 10


@dataclass(frozen=True)
class Repeats:
    """The mean number of extra windows per slice, by the labels that the slice shows.

    Attributes:
        names: the labels of the config.
        all_names: the labels of the dataset.
        of_set: set of indices of `names` to the mean number of extra windows, in units of 1e-6.
    """

    names: tuple[str, ...]
    all_names: tuple[str, ...]
    of_set: dict[frozenset[int], int]

    def windows(self, scan: ScanEntry) -> int:
        """Count the extra windows of a scan."""
        sets = _label_sets(scan.label_sets or {}, self.names, self.all_names)
        return _rounded(sum(self.of_set.get(labels, 0) * n for labels, n in sets.items()))

    def slices(self, shown, seed):
        """Choose the slices of the extra windows of a scan.

        Args:
            shown: bool [D, L], the labels of the config that each slice shows.
            seed: int64 [2].

        Returns:
            int64 [N], indices of slices, as many as `windows` counts, each slice in proportion to its repeats.
        """
        # A set is identified by the sum of its labels' codes: comparing sets label by label would take D * S * L steps.
        codes = np.random.default_rng(0).integers(1 << 53, size=len(self.names))
        keys = np.array([sum(codes[k] for k in labels) for labels in self.of_set], np.int64)
        order = np.argsort(keys)
        keys, values = keys[order], np.array(list(self.of_set.values()), np.int64)[order]
        of_slice = tf.reduce_sum(tf.where(shown, codes, tf.zeros_like(codes)), 1)
        at = tf.minimum(tf.searchsorted(keys, of_slice), len(keys) - 1)
        repeats = tf.where(tf.gather(keys, at) == of_slice, tf.gather(values, at), tf.zeros_like(of_slice))
        # Systematic sampling: equidistant points on the cumulated repeats of the slices in random order.
        shuffled = tf.random.experimental.stateless_shuffle(tf.range(tf.size(repeats), dtype=tf.int64), seed)
        ends = tf.cumsum(tf.gather(repeats, shuffled))
        total = tf.reduce_sum(repeats)
        count = _rounded(total)
        start = tf.random.stateless_uniform([], seed + 1, dtype=tf.float64)
        distance = tf.cast(total, tf.float64) / tf.cast(tf.maximum(count, 1), tf.float64)
        points = (tf.cast(tf.range(count), tf.float64) + start) * distance
        return tf.gather(shuffled, tf.searchsorted(tf.cast(ends, tf.float64), points, side="right"))


def balancing_repeats(dataset: Dataset, scans: list[ScanEntry], config: Config) -> Repeats | None:
    """Choose the repeats of a training epoch; None if data.balance_labels is 0.

    With data.balance_labels 1 the labels are as balanced as the data permits, by this rule:

    - The frequency of a label is its share of the windows that show any label. The rarest label becomes as frequent as
      possible, but not more frequent than the most frequent label; then the next rarest one, and so on.
    - No label but the most frequent one becomes rarer: its share does not decrease, neither of the windows nor relative
      to that of the most frequent label. Without this condition, repeating the slices of the rarest label would crowd
      out every label that it rarely shares a slice with.
    - No slice is repeated more than MOST_REPEATS times, and there are at most as many extra windows as it would take to
      show each label alone as often as the most frequent one. Of equally balanced epochs, the shortest one is chosen.

    Smaller values scale the repeats; the frequencies are then between those of the data and those of 1.

    Args:
        dataset: its labels are used.
        scans: the scans of an epoch.
        config: its labels and data.balance_labels.

    Returns:
        The repeats.

    Raises:
        DataError: the dataset does not list the sets of labels.
    """
    share, names, all_names = config.data.balance_labels, config.label_set.names, dataset.labels.names
    if not share:
        return None
    slices: Counter[frozenset[int]] = Counter()
    for scan in scans:
        if scan.label_sets is None:
            raise DataError(
                f"{dataset.root / INDEX}: does not list which labels {scan.id} shows in the same slice, which "
                "data.balance_labels needs; remove the dataset and convert again, or set data.balance_labels to 0"
            )
        slices.update(_label_sets(scan.label_sets, names, all_names))
    sets = sorted(slices, key=sorted)
    if not sets:
        return None
    repeats = _most_balanced(tuple(sets), tuple(slices[labels] for labels in sets))
    of_set = {labels: round(share * r * _UNIT) for labels, r in zip(sets, repeats, strict=True)}
    return Repeats(names, all_names, of_set)


def _label_sets(listed: dict[str, int], names: tuple[str, ...], all_names: tuple[str, ...]) -> Counter[frozenset[int]]:
    """Count the slices of a scan by the labels that they show, as indices of `names`."""
    index = {all_names.index(name): k for k, name in enumerate(names)}
    counts: Counter[frozenset[int]] = Counter()
    for key, n in listed.items():
        labels = frozenset(index[k] for k in map(int, key.split()) if k in index)
        if labels:
            counts[labels] += n
    return counts


@lru_cache(4)
def _most_balanced(sets: tuple[frozenset[int], ...], slices: tuple[int, ...]) -> list[float]:
    """Solve the rule of `balancing_repeats`: the mean number of repeats of a slice with each set of labels.

    Args:
        sets: the sets of labels.
        slices: the number of slices with each set.
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    parts, number = np.array(slices) / sum(slices), len(slices)
    labels = sorted(set().union(*sets))
    member = np.array([[float(label in of_set) for of_set in sets] for label in labels])
    before = member @ parts
    top = int(np.argmax(before))
    extra = float(np.sum(np.minimum(before[top] / before - 1, MOST_REPEATS) * before))
    # The variables are the share of the windows of each set, z = windows before / windows after, and the level t. In
    # these, unlike in the repeats, the frequencies are linear.
    share = np.hstack([member, np.zeros((len(member), 2))])
    z, level = np.eye(number + 2)[-2:]
    each = np.eye(number, number + 2)
    rising = [k for k in range(len(member)) if k != top]
    floors = np.where(before < before[top], before, 0.0)
    limits = np.vstack([
        parts[:, None] * z - each,  # each slice is shown
        each - (1 + MOST_REPEATS) * parts[:, None] * z,
        before[:, None] / before[top] * share[top] - share,  # no label becomes rarer relative to the top
    ])  # fmt: skip

    def solve(goal: np.ndarray):
        levels = np.vstack([level - share[k] for k in [*rising, top]])
        return linprog(
            -goal,
            A_ub=csr_array(np.vstack([levels, limits, -share])),
            b_ub=np.concatenate([np.zeros(len(levels) + len(limits)), _TOLERANCE - floors]),
            A_eq=each.sum(0, keepdims=True),
            b_eq=[1.0],
            bounds=[*[(0, 1)] * number, (1 / (1 + extra), 1), (0, 1)],
        )

    variables = np.array([*parts, 1.0, 0.0])  # no repeats satisfy all conditions
    for _ in range(_MOST_LEVELS):
        solution = solve(level)
        if not solution.success or not rising:
            break
        variables = solution.x
        # If only the most frequent label limits the level, the others are as frequent.
        prices = solution.ineqlin.marginals[: len(rising)]
        limiting = np.array(rising)[prices < -_TOLERANCE] if prices.min() < -_TOLERANCE else np.array(rising)
        for k in (*limiting, top):
            floors[k] = max(floors[k], variables[-1])
        rising = [k for k in rising if k not in limiting]
    rising = []
    solution = solve(z)
    *shares, ratio, _ = solution.x if solution.success else variables
    return np.clip(np.array(shares) / (ratio * parts) - 1, 0, MOST_REPEATS).tolist()


def _rounded(units):
    return (units + _UNIT // 2) // _UNIT
