"""The ranges of a run's training data, to recognize scans that the network has never seen the like of."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from gitseg_tf.core.paths import AnyPath, write_atomically
from gitseg_tf.data.tfrecords.index import ScanEntry
from gitseg_tf.data.volume import PERCENTILES
from gitseg_tf.errors import RunError

# Written by training, and copied into exports.
TRAINING_DATA = "training_data.json"
FORMAT: Final = "gitseg-tf training data"

Range = tuple[float, float]


@dataclass(frozen=True)
class ChannelFacts:
    """Facts on the intensities of one channel of a scan, or the lowest and highest of each fact in several scans.

    Percentiles are over all voxels of a scan; the extreme ones leave out single voxels, such as artifacts.

    Attributes:
        low: percentile 1.
        width: percentile 99 minus percentile 1.
        middle: where the median lies between percentile 1 (0) and percentile 99 (1).
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    low: Range
    width: Range
    middle: Range


@dataclass(frozen=True)
class TrainingData:
    """Lowest and highest values of some facts in the scans on which a run was trained.

    Attributes:
        scans: number of scans.
        spacing_mm: along z, y and x.
        field_of_view_mm: number of voxels times spacing, along z, y and x.
        channels: intensities of each channel; None if the dataset was converted before these were stored.
        label_scans: for each label, the number of scans in which it has a voxel.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    scans: int
    spacing_mm: tuple[Range, Range, Range]
    field_of_view_mm: tuple[Range, Range, Range]
    channels: tuple[ChannelFacts, ...] | None
    label_scans: dict[str, int]

    @property
    def missing_labels(self) -> list[str]:
        """The labels without a single voxel."""
        return [name for name, scans in self.label_scans.items() if not scans]


@dataclass(frozen=True)
class _File:
    __pydantic_config__ = ConfigDict(extra="forbid")

    format: Literal["gitseg-tf training data"]
    version: Literal[1]
    training_data: TrainingData


def summarize_scans(scans: Sequence[ScanEntry], labels: Iterable[str]) -> TrainingData:
    """Summarize scans.

    Args:
        scans: one or more scans of a dataset.
        labels: names of the labels.

    Returns:
        Their ranges.
    """
    known = all(scan.percentiles for scan in scans)
    channels = zip(*([channel_facts(values) for values in scan.percentiles] for scan in scans), strict=True)
    return TrainingData(
        scans=len(scans),
        spacing_mm=_axis_ranges([scan.spacing for scan in scans]),
        field_of_view_mm=_axis_ranges([field_of_view(scan.shape, scan.spacing) for scan in scans]),
        channels=tuple(map(_merged, channels)) if known else None,
        label_scans={name: sum(scan.label_slices.get(name, 0) > 0 for scan in scans) for name in labels},
    )


def merge_training_data(parts: Sequence[TrainingData]) -> TrainingData:
    """Summarize what the networks of one ensemble were trained on.

    Args:
        parts: of one or more networks with the same labels and channels, trained on different parts of one dataset.

    Returns:
        The ranges over all of them; for the counts of scans, the lowest, so that a label that one network has never
        seen counts as missing.
    """
    channels = [part.channels for part in parts]
    known = all(part is not None for part in channels)
    return TrainingData(
        scans=min(part.scans for part in parts),
        spacing_mm=_axis_ranges([side for part in parts for side in zip(*part.spacing_mm, strict=True)]),
        field_of_view_mm=_axis_ranges([side for part in parts for side in zip(*part.field_of_view_mm, strict=True)]),
        channels=tuple(map(_merged, zip(*filter(None, channels), strict=True))) if known else None,
        label_scans={name: min(part.label_scans[name] for part in parts) for name in parts[0].label_scans},
    )


def channel_facts(percentiles: Sequence[float]) -> ChannelFacts:
    """Compute the facts of one channel of one scan, whose lowest and highest values are the same.

    Args:
        percentiles: at `PERCENTILES`.

    Example:
        >>> channel_facts([0, 0, 10, 10, 20, 60, 80, 100, 110, 115, 120])
        ChannelFacts(low=(10.0, 10.0), width=(100.0, 100.0), middle=(0.5, 0.5))
    """
    low, median, high = (float(percentiles[PERCENTILES.index(percent)]) for percent in (1, 50, 99))
    width = high - low
    middle = (median - low) / width if width else 0.0
    return ChannelFacts((low, low), (width, width), (middle, middle))


def field_of_view(shape: Sequence[int], spacing: Sequence[float]) -> tuple[float, float, float]:
    """Return the extent of a scan in mm, from its shape and spacing."""
    z, y, x = (size * length for size, length in zip(shape, spacing, strict=True))
    return z, y, x


def write_training_data(folder: AnyPath, data: TrainingData) -> None:
    """Write training_data.json into the folder of a run or of an export."""
    tree = asdict(_File(FORMAT, 1, data))
    write_atomically(folder / TRAINING_DATA, (json.dumps(tree, indent=1) + "\n").encode())


def read_training_data(folder: AnyPath) -> TrainingData | None:
    """Read training_data.json from the folder of a run or of an export.

    Returns:
        The ranges; None if there is no such file, as in runs of earlier versions.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / TRAINING_DATA
    if not path.is_file():
        return None
    try:
        return TypeAdapter(_File).validate_json(path.read_bytes()).training_data
    except ValidationError as error:
        problem = error.errors()[0]
        reason = f"{'.'.join(map(str, problem['loc'])) or 'content'}: {problem['msg']}"
        fix = "restore it, or remove it to predict without comparing scans with the training data"
        raise RunError(f"{path}: is damaged ({reason}); {fix}") from None


def _axis_ranges(rows: Sequence[Sequence[float]]) -> tuple[Range, Range, Range]:
    z, y, x = ((float(min(values)), float(max(values))) for values in zip(*rows, strict=True))
    return z, y, x


def _merged(scans: tuple[ChannelFacts, ...]) -> ChannelFacts:
    names = ("low", "width", "middle")
    values = {name: [value for scan in scans for value in getattr(scan, name)] for name in names}
    return ChannelFacts(**{name: (min(each), max(each)) for name, each in values.items()})
