"""The entries of dataset.json: scans and shards, and a check that they agree with each other."""

import math
import re
from collections import Counter
from dataclasses import asdict, dataclass, replace

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StrictInt, TypeAdapter, field_validator, model_validator

from gitseg_tf.core.trees import shown
from gitseg_tf.data.volume import MAX_CHANNELS
from gitseg_tf.errors import ConfigError
from gitseg_tf.labels import LabelSet

UNLABELED = -1
PSEUDO = -2  # scans without annotation that have pseudo-labels
_FILE_NAME = re.compile(r"\w[\w.-]{0,199}")


@dataclass(frozen=True)
class Intensities:
    """Intensities of a channel inside the union of all masks, or in the whole scan if all masks are empty.

    Attributes:
        voxels: number of voxels.
        mean, std: mean and standard deviation.
        p005, p995: percentiles 0.5 and 99.5.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    voxels: int
    mean: float
    std: float
    p005: float
    p995: float


@dataclass(frozen=True)
class PseudoEntry:
    """The slices of a scan with pseudo-labels, as training sees them: annotated and predicted labels together.

    Attributes:
        labels: the predicted labels.
        label_slices, empty_slices, label_sets, plane_sets: as in `ScanEntry`, of all labels that are annotated or
            predicted.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    labels: tuple[str, ...]
    label_slices: dict[str, int]
    empty_slices: int
    label_sets: dict[str, int]
    plane_sets: dict[str, dict[str, int]]


@dataclass(frozen=True)
class PseudoSource:
    """Where the pseudo-labels of a dataset come from.

    Attributes:
        model: the run or cross-validation.
        weights: SHA-256 of its weights.
        confidence: voxels whose probability is between 1 - confidence and confidence do not count.
        trained_on: the patients on whose annotations the model was trained.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    model: str
    weights: str
    confidence: float
    trained_on: tuple[str, ...]


@dataclass(frozen=True)
class TeacherSlices:
    """The slices in which a teacher finds labels, counted as in `ScanEntry`."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    label_slices: dict[str, int]
    empty_slices: int
    label_sets: dict[str, int]
    plane_sets: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Teacher:
    """The model whose probabilities a dataset contains.

    Attributes:
        name, weights: see `ModelIdentity`.
        labels: the labels that it segments, by their names in the dataset.
        trained_on: the patients that any of its networks was trained on.
        members: "unseen" if each scan was predicted by the networks that were not trained on its patient, "all" if it
            was predicted by all of them.
        seen: the scans whose patients all networks that predicted them were trained on.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    weights: str
    labels: tuple[str, ...]
    trained_on: tuple[str, ...]
    members: str
    seen: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScanEntry:
    """The entry of a scan in dataset.json.

    Attributes:
        id, case: see `Scan`.
        shape: (depth, height, width).
        spacing: (z, y, x) in mm.
        label_slices: annotated label to the number of slices with it; empty for a scan without annotation.
        empty_slices: number of slices without any label; 0 for a scan without annotation.
        intensities: one `Intensities` per channel.
        percentiles: the `intensity_percentiles` of each channel over all voxels; empty in datasets that were converted
            before these were stored.
        label_sets: from `count_label_sets`; None in a dataset that was converted before it was recorded.
        plane_sets: from `count_plane_sets`, likewise.
        pseudo: set if the scan has pseudo-labels, which the other counts leave out.
        teacher: the slices in which a teacher finds labels; None without a teacher.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    id: str
    case: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    label_slices: dict[str, int]
    empty_slices: int
    intensities: tuple[Intensities, ...]
    percentiles: tuple[tuple[float, ...], ...] = ()
    label_sets: dict[str, int] | None = None
    plane_sets: dict[str, dict[str, int]] | None = None
    pseudo: PseudoEntry | None = None
    teacher: TeacherSlices | None = None

    @property
    def for_training(self) -> "ScanEntry":
        """The entry with the slices of its pseudo-labels counted like annotated ones."""
        return self if self.pseudo is None else self._counted_as(self.pseudo)

    @property
    def for_teacher(self) -> "ScanEntry":
        """The entry with the slices in which a teacher finds labels, if there is one."""
        return self if self.teacher is None else self._counted_as(self.teacher)

    def _counted_as(self, counts: "PseudoEntry | TeacherSlices") -> "ScanEntry":
        return replace(
            self,
            label_slices=counts.label_slices,
            empty_slices=counts.empty_slices,
            label_sets=counts.label_sets,
            plane_sets=counts.plane_sets,
        )


@dataclass(frozen=True)
class Shard:
    """A TFRecord file: name, fold, size in bytes, CRC-32, and scans in record order.

    The fold is -1 for scans without annotation, and -2 for those that have pseudo-labels only.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    file: str
    fold: int
    bytes: int
    crc32: str
    scans: tuple[ScanEntry, ...]


def count_label_sets(shown: np.ndarray) -> dict[str, int]:
    """Count the slices that show the same set of labels.

    Args:
        shown: bool [L, D], whether label k is in slice z.

    Returns:
        The indices of the labels in ascending order, separated by spaces, to the number of slices; sorted, without
        slices that show no label.

    Example:
        >>> count_label_sets(np.array([[True, True, False, True], [False, True, False, True]]))
        {'0': 1, '0 1': 2}
    """
    sets = Counter(" ".join(map(str, np.flatnonzero(labels))) for labels in shown.T if labels.any())
    return dict(sorted(sets.items()))


def count_plane_sets(masks: np.ndarray) -> dict[str, dict[str, int]]:
    """Count the sets of labels of the coronal and of the sagittal slices.

    Args:
        masks: bool [L, D, H, W].

    Returns:
        {plane: the result of `count_label_sets` for its slices}.

    Example:
        >>> masks = np.zeros((1, 2, 3, 4), bool)
        >>> masks[0, 1, :2, 3] = True
        >>> count_plane_sets(masks)
        {'coronal': {'0': 2}, 'sagittal': {'0': 1}}
    """
    footprint = np.asarray(np.any(masks, axis=1))
    coronal, sagittal = (np.asarray(np.any(footprint, axis=axis)) for axis in (2, 1))
    return {"coronal": count_label_sets(coronal), "sagittal": count_label_sets(sagittal)}


class _Folds(BaseModel):
    count: StrictInt = Field(ge=0)
    seed: StrictInt


class Index(BaseModel):
    """The fields of dataset.json that `load_dataset` reads; the others are informative."""

    labels: list
    channels: tuple[str, ...] = Field(min_length=1, max_length=MAX_CHANNELS)
    source: dict[str, str]
    folds: _Folds
    shards: tuple[Shard, ...] = Field(min_length=1)
    pseudo_labels: PseudoSource | None = None
    teacher: Teacher | None = None

    @field_validator("labels")
    @classmethod
    def _are_labels(cls, tree):
        try:
            return LabelSet.from_tree(tree) if tree else LabelSet(())
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @field_validator("source")
    @classmethod
    def _names_its_origin(cls, source):
        if not {"name", "fingerprint"} <= set(source):
            raise ValueError("must have a name and a fingerprint")
        return source

    @model_validator(mode="after")
    def _agrees_with_itself(self):
        scans = [scan for shard in self.shards for scan in shard.scans]
        for shard in self.shards:
            if not _FILE_NAME.fullmatch(shard.file) or not PSEUDO <= shard.fold < self.folds.count:
                raise ValueError(f"{shown(shard.file)} is not the name of a shard, or has no fold {shard.fold}")
        for scan in scans:
            numbers = [*scan.spacing, *(value for one in scan.intensities for value in asdict(one).values())]
            sizes = (*scan.shape, *(one.voxels for one in scan.intensities))
            if min(sizes) < 1 or min(scan.spacing) <= 0 or not all(map(math.isfinite, numbers)):
                raise ValueError(f"{shown(scan.id)} has impossible sizes or intensities")
            if len(scan.intensities) != len(scans[0].intensities):
                raise ValueError(f"{shown(scan.id)} has intensities of {len(scan.intensities)} channels")
        if self.pseudo_labels is None and any(scan.pseudo for scan in scans):
            raise ValueError("it has pseudo-labels, but does not say which model made them")
        if self.folds.count > len(scans):
            raise ValueError(f"it has {self.folds.count} folds, more than scans")
        return self


def shard_from_json(tree: dict) -> Shard:
    """Create a shard from the result of `dataclasses.asdict`.

    Raises:
        pydantic.ValidationError: a field is missing or has another type.
    """
    return TypeAdapter(Shard).validate_python(tree)
