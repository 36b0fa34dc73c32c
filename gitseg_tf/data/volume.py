"""A scan in memory: its voxels as a `Volume`, and its reference masks as an `Annotation`."""

import itertools
from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np

from gitseg_tf.errors import DataError

# The percentiles of the intensities that are stored with a scan.
PERCENTILES = (0, 0.5, 1, 5, 25, 50, 75, 95, 99, 99.5, 100)
MAX_CHANNELS = 8


@dataclass(frozen=True, eq=False)
class Volume:
    """The voxels of a scan, on one grid for all channels.

    Slices go from head to feet, rows from anterior to posterior, columns from the patient's right to the left.

    Attributes:
        voxels: [D, H, W], or [D, H, W, C] with several channels; intensities as measured, Hounsfield units for CT.
        spacing: (z, y, x) in mm.
        numbers: slice numbers in ascending order, with gaps where slices are missing; 1 to D by default.
        affine: float64 [4, 4] that maps a voxel index (column, row, slice) to millimeters to the right, anterior and
            superior (RAS+, as in nibabel), or None if the position in space is unknown.
        stored_statistics: `percentiles` and `moments`, if they are already known.

    Raises:
        DataError: invalid axes, spacing or slice numbers.

    Example:
        >>> volume = Volume(np.zeros((2, 4, 5), np.int16), (3.0, 1.5, 1.5))
        >>> volume.shape, volume.channels, volume.numbers
        ((2, 4, 5), 1, (1, 2))
    """

    voxels: np.ndarray
    spacing: tuple[float, float, float]
    numbers: tuple[int, ...] = ()
    affine: np.ndarray | None = None
    stored_statistics: tuple[np.ndarray, np.ndarray] | None = field(default=None, repr=False)

    def __post_init__(self):
        voxels = np.asarray(self.voxels)
        if voxels.ndim not in (3, 4) or not voxels.size:
            raise DataError(f"voxels must be [D, H, W] or [D, H, W, C], got shape {voxels.shape}")
        if voxels.ndim == 4 and voxels.shape[3] > MAX_CHANNELS:
            raise DataError(f"voxels have {voxels.shape[3]} channels, but at most {MAX_CHANNELS} are supported")
        spacing = tuple(float(length) for length in self.spacing)
        if len(spacing) != 3 or not all(np.isfinite(length) and length > 0 for length in spacing):
            raise DataError(f"spacing must be three positive numbers (z, y, x) in mm, got {self.spacing}")
        numbers = tuple(int(number) for number in self.numbers) or tuple(range(1, len(voxels) + 1))
        if len(numbers) != len(voxels) or any(b <= a for a, b in itertools.pairwise(numbers)):
            raise DataError(f"numbers must be {len(voxels)} ascending slice numbers, got {len(numbers)}: {numbers[:8]}")
        for name, value in (("voxels", voxels), ("spacing", spacing), ("numbers", numbers)):
            object.__setattr__(self, name, value)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(depth, height, width)."""
        return tuple(self.voxels.shape[:3])

    @property
    def channels(self) -> int:
        """The number of channels."""
        return 1 if self.voxels.ndim == 3 else self.voxels.shape[3]

    @property
    def with_channels(self) -> np.ndarray:
        """The voxels as [D, H, W, C]; a view."""
        return self.voxels[..., None] if self.voxels.ndim == 3 else self.voxels

    @property
    def percentiles(self) -> np.ndarray:
        """float32 [C, 11], the `intensity_percentiles` of each channel."""
        return self._statistics[0]

    @property
    def moments(self) -> np.ndarray:
        """float32 [C, 2], the mean and standard deviation of each channel."""
        return self._statistics[1]

    @cached_property
    def _statistics(self) -> tuple[np.ndarray, np.ndarray]:
        if self.stored_statistics is not None:
            return self.stored_statistics
        each = [intensity_statistics(self.with_channels[..., c]) for c in range(self.channels)]
        return np.stack([percentiles for percentiles, _ in each]), np.stack([moments for _, moments in each])


@dataclass(frozen=True, eq=False)
class Annotation:
    """The reference masks of a scan, in the order of its LabelSet.

    Attributes:
        masks: bool [L, D, H, W]; labels may overlap. All False where a label is not annotated.
        annotated: bool [L], whether the label is annotated in this scan. An unannotated label is neither trained on nor
            scored; an annotated label with an empty mask is absent.
        ignore: bool [D, H, W], voxels that are excluded from the loss and the scores, or None.
        notes: lines on parts of the annotation that could not be read.

    Example:
        >>> annotation = Annotation(np.zeros((2, 3, 8, 8), bool), np.array([True, False]))
        >>> annotation.masks.shape, annotation.annotated.tolist()
        ((2, 3, 8, 8), [True, False])
    """

    masks: np.ndarray
    annotated: np.ndarray
    ignore: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        if self.masks.ndim != 4 or self.masks.dtype != bool:
            raise DataError(f"masks must be bool [L, D, H, W], got {self.masks.dtype} {self.masks.shape}")
        if self.annotated.shape != self.masks.shape[:1]:
            raise DataError(f"annotated must have {len(self.masks)} values, got shape {self.annotated.shape}")
        if self.ignore is not None and self.ignore.shape != self.masks.shape[1:]:
            raise DataError(f"ignore must have the shape {self.masks.shape[1:]}, got {self.ignore.shape}")

    @classmethod
    def complete(cls, masks: np.ndarray) -> "Annotation":
        """Create an annotation in which every label is annotated, from masks bool [L, D, H, W]."""
        return cls(masks, np.ones(len(masks), bool))


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """Predictions that training uses where a scan has no annotation of a label. They are never a reference.

    Attributes:
        labels: bool [L], the labels that are predicted instead of annotated.
        masks: bool [L, D, H, W]; all False for the other labels.
        uncertain: bool [L, D, H, W], voxels that are excluded from the loss of that label; all False for the others.

    Example:
        >>> nothing = np.zeros((2, 3, 8, 8), bool)
        >>> PseudoLabels(np.array([False, True]), nothing, nothing).labels.tolist()
        [False, True]
    """

    labels: np.ndarray
    masks: np.ndarray
    uncertain: np.ndarray

    def __post_init__(self):
        for masks in (self.masks, self.uncertain):
            if masks.ndim != 4 or masks.dtype != bool or len(masks) != len(self.labels):
                raise DataError(f"masks must be bool [{len(self.labels)}, D, H, W], got {masks.dtype} {masks.shape}")
            if masks[~self.labels].any():
                raise DataError("a label without pseudo-labels has a mask")


@dataclass(frozen=True, eq=False)
class LoadedScan:
    """A scan with its voxels.

    Attributes:
        id: "case123_day20", unique in its cohort or dataset.
        case: the patient.
        volume: its voxels.
        annotation: its reference masks, or None.
        fold: its fold in the dataset, or None.
        pseudo: predictions for labels that are not annotated, or None; for training only.
    """

    id: str
    case: str
    volume: Volume
    annotation: Annotation | None
    fold: int | None = None
    pseudo: PseudoLabels | None = None

    @property
    def reference(self) -> Annotation:
        """The annotation of a scan that must have one, such as a scan in a fold.

        Raises:
            DataError: the scan has no annotation.
        """
        if self.annotation is None:
            raise DataError(f"{self.id}: has no annotation; choose a scan of a fold")
        return self.annotation


def intensity_percentiles(image: np.ndarray) -> np.ndarray:
    """Compute percentiles of a channel's intensities.

    Args:
        image: integers or finite floats, any shape.

    Returns:
        float32 [11], at PERCENTILES: the lowest intensity that at least that percentage of the voxels does not exceed
        (numpy's method "inverted_cdf").
    """
    return intensity_statistics(image)[0]


def intensity_statistics(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute percentiles, mean and standard deviation of a channel's intensities.

    Args:
        image: integers or finite floats, any shape.

    Returns:
        float32 [11], see `intensity_percentiles`, and float32 [2], mean and standard deviation.
    """
    ranks = np.maximum(np.ceil(np.array(PERCENTILES) / 100 * image.size), 1).astype(np.int64)
    if image.dtype.kind == "f":
        ordered = np.partition(image.ravel(), np.unique(ranks) - 1)
        mean = ordered.mean(dtype=np.float64)
        return ordered[ranks - 1].astype(np.float32), np.array([mean, ordered.std(dtype=np.float64)], np.float32)
    low = 0 if image.dtype == np.uint16 else int(image.min())
    if image.dtype != np.uint16:
        image = (image.astype(np.int64) - low).astype(np.uint16)
    counts = np.zeros(int(image.max()) + 1, np.int64)
    # calcHist counts in float32, which is exact up to 2^24.
    for part in np.split(image.ravel(), range(1 << 23, image.size, 1 << 23)):
        counts += cv2.calcHist([part[None]], [0], None, [counts.size], [0, counts.size]).ravel().astype(np.int64)
    values = np.arange(counts.size) + float(low)
    mean = counts @ values / image.size
    std = np.sqrt(counts @ (values - mean) ** 2 / image.size)
    percentiles = (np.searchsorted(np.cumsum(counts), ranks) + low).astype(np.float32)
    return percentiles, np.array([mean, std], np.float32)
