"""How many slices without any label an epoch shows: data.empty_slice_fraction, where labels may be unannotated."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from gitseg_tf.config import Config
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.data.tfrecords.index import ScanEntry


@dataclass(frozen=True)
class EmptyShares:
    """The share of the slices without an annotated label that an epoch uses, by the labels that are annotated.

    Attributes:
        names: the labels of the config.
        fraction: data.empty_slice_fraction, for scans in which all labels are annotated.
        of_labels: indices of the annotated labels to the share, for scans with unannotated labels.
    """

    names: tuple[str, ...]
    fraction: float
    of_labels: dict[frozenset[int], float]

    def count(self, scan: ScanEntry, empty: int) -> int:
        """Return how many of the `empty` slices of a scan an epoch shows."""
        share = self.of_labels.get(_annotated(scan, self.names), self.fraction)
        return math.floor(share * empty + 0.5)

    def choose(self, annotated, empty):
        """Return how many of the slices an epoch shows, in a graph.

        Args:
            annotated: bool [L], the annotated labels of a scan.
            empty: int32, the number of its slices that show none of them.

        Returns:
            int32.
        """
        share = tf.constant(self.fraction, tf.float64)
        if self.of_labels:
            patterns = tf.constant([[k in labels for k in range(len(self.names))] for labels in self.of_labels])
            matches = tf.reduce_all(patterns == annotated, axis=1)
            of_labels = tf.boolean_mask(tf.constant(list(self.of_labels.values()), tf.float64), matches)
            share = tf.concat([of_labels, [share]], 0)[0]
        return tf.cast(tf.floor(share * tf.cast(empty, tf.float64) + 0.5), tf.int32)


def empty_shares(dataset: Dataset, scans: Iterable[ScanEntry], config: Config) -> EmptyShares:
    """Determine how many slices without an annotated label each kind of scan shows in an epoch.

    A slice that shows none of the annotated labels may show one that is not annotated: it is unknown rather than empty.
    With all annotations, an epoch would use such a slice always if it shows another label, and with the probability
    data.empty_slice_fraction otherwise. How often it does is taken from the scans in which all labels are annotated. So
    the annotated labels get about as many slices without them as they would with all annotations.

    With data.empty_slice_fraction 0, or without a complete scan, unknown slices are used like empty ones.

    Args:
        dataset: its labels are used.
        scans: the scans of an epoch.
        config: its labels and data.empty_slice_fraction.

    Returns:
        The shares.
    """
    names, fraction, scans = config.label_set.names, config.data.empty_slice_fraction, list(scans)
    index = {dataset.labels.index(name): k for k, name in enumerate(names)}
    patterns = {_annotated(scan, names) for scan in scans} - {frozenset(range(len(names))), frozenset()}
    complete = [s for s in scans if len(_annotated(s, names)) == len(names) and s.label_sets is not None]
    slices = sum(scan.shape[0] for scan in complete)
    sets = [
        (frozenset(index[k] for k in map(int, key.split()) if k in index), n)
        for scan in complete
        for key, n in (scan.label_sets or {}).items()
    ]
    of_labels = {}
    for labels in sorted(patterns, key=sorted) if fraction else ():
        without = slices - sum(n for shown, n in sets if shown & labels)
        other = sum(n for shown, n in sets if shown and not shown & labels)
        of_labels[labels] = float(fraction + (1 - fraction) * np.divide(other, without)) if without else fraction
    return EmptyShares(names, fraction, of_labels)


def _annotated(scan: ScanEntry, names: tuple[str, ...]) -> frozenset[int]:
    return frozenset(k for k, name in enumerate(names) if name in scan.label_slices)
