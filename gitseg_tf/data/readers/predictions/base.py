"""Masks of the scans of a cohort, independent of the file format."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gitseg_tf.core.paths import AnyPath
from gitseg_tf.data.readers.base import Cohort, Scan
from gitseg_tf.errors import DataError
from gitseg_tf.labels import LabelSet


class PredictedScan(ABC):
    """The masks of one scan.

    Attributes:
        names: the label names that these masks name, also those of empty masks.
        where: the file or folder, for messages.
    """

    names: Sequence[str]
    where: object

    @abstractmethod
    def read(self, scan: Scan, name_of: Mapping[str, str]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """Read masks at the size of a scan.

        Args:
            scan: the scan of the reference.
            name_of: label of the reference to one of `names`, for the labels to read.

        Returns:
            Label to mask, bool [D, H, W]; and lines on what was left out.

        Raises:
            DataError: a file is damaged, or its grid is not that of the scan.
        """


@dataclass(frozen=True)
class Predictions:
    """Predicted masks of the scans of a cohort.

    Attributes:
        path: the folder or file.
        scans: scan id to its masks; ids that the cohort does not have are kept, so that they can be reported.
        notes: lines on assumptions.
    """

    path: AnyPath
    scans: Mapping[str, PredictedScan]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PredictionReader:
    """Reads the predictions of a format; `registry.PREDICTIONS` has one per format.

    Attributes:
        is_here: true if a folder or file has this format. Formats without remote support take a Path below.
        read: function from (path, reference, labels) to the predictions; reads no voxels if the format allows. `labels`
            are those that the user gave explicitly, or None.
    """

    is_here: Callable[[AnyPath], bool]
    read: Callable[[Any, Cohort, LabelSet | None], Predictions]


def match_names(predicted: PredictedScan, labels: LabelSet) -> dict[str, str]:
    """Match the names of a scan's masks to labels.

    Returns:
        Label to name, for the names that match a label.

    Raises:
        DataError: two names match the same label.
    """
    name_of: dict[str, str] = {}
    for name in predicted.names:
        label = labels.match(name)
        if label is None:
            continue
        if label.name in name_of:
            both = f"{name_of[label.name]!r} and {name!r}"
            raise DataError(f"{predicted.where}: {both} are both {label.name}; remove one")
        name_of[label.name] = name
    return name_of
