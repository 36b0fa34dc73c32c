"""What a plan needs to know about a dataset: sizes, spacing, intensities, and each label's volume, parts and side."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from gitseg_tf.core.progress import progress
from gitseg_tf.data.masks import bounding_box
from gitseg_tf.data.tfrecords.codec import read_record
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.data.tfrecords.example import decode_scan
from gitseg_tf.data.volume import PERCENTILES, LoadedScan
from gitseg_tf.errors import DataError, first_line
from gitseg_tf.inspection.measurements import body_mask, body_threshold

MOST_SCANS = 120
# In Hounsfield units, air is about -1000, and metal rarely exceeds 3000.
_AIR_HU, _MOST_HU = -300.0, 6000.0
_BODY_SLICES = 9
_BODY_SHARE, _BODY_MARGIN_MM = 0.03, 10.0
_SIDES = {"left": "left", "l": "left", "lt": "left", "right": "right", "r": "right", "rt": "right"}
_MIRRORED_SCANS, _MOST_VOLUME_RATIO = 0.9, 1.6
_EDGE = np.ones((3, 3, 3), bool)

Triple = tuple[float, float, float]
Pair = tuple[float, float]


@dataclass(frozen=True)
class ChannelFingerprint:
    """Intensities of a channel.

    Attributes:
        name: the channel.
        is_ct: whether the intensities are Hounsfield units.
        range: percentiles 1 and 99 of a scan, medians over the scans.
        width_ratio: the widest range of a scan divided by the narrowest one.
        foreground: percentiles 0.5 and 99.5 of the annotated voxels.
    """

    name: str
    is_ct: bool
    range: Pair
    width_ratio: float
    foreground: Pair


@dataclass(frozen=True)
class LabelFingerprint:
    """One label in the scans in which it is annotated.

    Attributes:
        name: the label.
        annotated, present: number of scans in which it was annotated, and in which it has a voxel.
        volume_ml: lowest, median and highest volume where it is present.
        components: highest number of 3-D components in a scan.
        smallest_component_ml: percentile 1 of the volumes of all its components.
        slice_fraction: fraction of the slices of the annotated scans that show it.
        side: why it has a side, such as "its name says left"; None if it has none.
    """

    name: str
    annotated: int
    present: int
    volume_ml: Triple
    components: int
    smallest_component_ml: float
    slice_fraction: float
    side: str | None = None


@dataclass(frozen=True)
class Fingerprint:
    """The facts about a dataset on which a plan is based.

    Attributes:
        source: fingerprint of the cohort from which the dataset was converted.
        scans, measured, patients: number of annotated scans, of those whose voxels were read, and of their patients.
        shape, least_shape, most_shape: (depth, height, width): medians, and extremes along each axis.
        spacing, least_spacing, most_spacing: (z, y, x) in mm.
        body_mm: (height, width) of the body's bounding box with a margin of 10 mm, medians.
        body_aspect: highest ratio of its shorter side to its longer side, in nine of ten scans.
        neighbors: fraction of the slices that have an adjacent slice on both sides, or are the first or last one.
        training: (depth, slices that show a label) of each scan of the training folds.
        held_out: depth of each scan of the held-out fold.
        channels, labels: their fingerprints.
    """

    source: str
    scans: int
    measured: int
    patients: int
    shape: Triple
    least_shape: Triple
    most_shape: Triple
    spacing: Triple
    least_spacing: Triple
    most_spacing: Triple
    body_mm: Pair
    body_aspect: float
    neighbors: float
    training: tuple[tuple[int, int], ...]
    held_out: tuple[int, ...]
    channels: tuple[ChannelFingerprint, ...]
    labels: tuple[LabelFingerprint, ...]

    @property
    def anisotropy(self) -> float:
        """Slice distance divided by pixel size."""
        return self.spacing[0] / min(self.spacing[1:])

    @property
    def sided(self) -> tuple[LabelFingerprint, ...]:
        """The labels that have a side."""
        return tuple(label for label in self.labels if label.side)


@dataclass(frozen=True)
class LabelMeasurement:
    """One annotated label of a scan: volume in ml of each 3-D component, slices, and center (z, y, x) in mm.

    The center is relative to the middle of the body along x; None for an absent label.
    """

    components_ml: tuple[float, ...]
    slices: int
    center: Triple | None


@dataclass(frozen=True)
class ScanMeasurement:
    """What is measured in the voxels of a scan; a label that is not annotated is None."""

    shape: tuple[int, int, int]
    spacing: Triple
    body_mm: Pair
    gaps: int
    percentiles: np.ndarray
    labels: tuple[LabelMeasurement | None, ...]


def take_fingerprint(dataset: Dataset, fold: int | None = 0) -> Fingerprint:
    """Measure a dataset, without TensorFlow unless it is in a bucket.

    Args:
        dataset: at most 120 of its annotated scans are read, evenly spread.
        fold: the fold that training will hold out, or None.

    Returns:
        Its fingerprint, the same for the same data.

    Raises:
        DataError: nothing is annotated, no such fold, or a damaged shard.
    """
    training = dataset.scans_of(dataset.training_folds(fold))
    held_out = [] if fold is None else dataset.scans_of([fold])
    scans = sum(len(shard.scans) for shard in dataset.shards_of(range(dataset.folds)))
    total = min(scans, MOST_SCANS)
    measured = [measure_scan(scan) for scan in progress(_spread(dataset, scans), "planning", total=total, unit="scan")]
    summary = summarize(measured, dataset.labels.names)
    patients = {scan.case for shard in dataset.shards_of(range(dataset.folds)) for scan in shard.scans}
    return replace(
        summary,
        source=dataset.source["fingerprint"],
        scans=scans,
        patients=len(patients),
        training=tuple((scan.shape[0], scan.shape[0] - scan.empty_slices) for scan in training),
        held_out=tuple(scan.shape[0] for scan in held_out),
        channels=tuple(
            _channel(name, [scan.percentiles[c] for scan in measured], (facts.p005, facts.p995))
            for c, (name, facts) in enumerate(zip(dataset.channels, dataset.intensities, strict=True))
        ),
    )


def measure_scan(scan: LoadedScan) -> ScanMeasurement:
    """Measure the voxels of an annotated scan.

    Args:
        scan: the scan.

    Returns:
        A few numbers; components are 26-connected.
    """
    volume, annotation = scan.volume, scan.reference
    body, middle = _body(volume.with_channels[..., 0], volume.percentiles[0], volume.spacing)
    numbers = np.array(volume.numbers)
    labels = tuple(
        _measure_label(mask, volume.spacing, middle) if annotated else None
        for mask, annotated in zip(annotation.masks, annotation.annotated, strict=True)
    )
    gaps = int((np.diff(numbers) != 1).sum())
    return ScanMeasurement(volume.shape, volume.spacing, body, gaps, np.asarray(volume.percentiles), labels)


def summarize(scans: Sequence[ScanMeasurement], names: Sequence[str]) -> Fingerprint:
    """Combine the measurements of scans; facts that need the dataset's index are left empty.

    Args:
        scans: one or more scans.
        names: the labels.
    """
    shapes = np.array([scan.shape for scan in scans], float)
    spacings = np.array([scan.spacing for scan in scans])
    bodies = np.array([scan.body_mm for scan in scans])
    aspects = bodies[:, 0] / bodies[:, 1]
    aspects = np.where(np.median(aspects) <= 1, aspects, 1 / aspects)
    slices = int(shapes[:, 0].sum())
    mirrored = mirrored_pairs(scans)
    return Fingerprint(
        source="",
        scans=len(scans),
        measured=len(scans),
        patients=len(scans),
        shape=_triple(np.median(shapes, 0)),
        least_shape=_triple(shapes.min(0)),
        most_shape=_triple(shapes.max(0)),
        spacing=_triple(np.median(spacings, 0)),
        least_spacing=_triple(spacings.min(0)),
        most_spacing=_triple(spacings.max(0)),
        body_mm=(_rounded(np.median(bodies[:, 0])), _rounded(np.median(bodies[:, 1]))),
        body_aspect=_rounded(min(np.quantile(aspects, 0.9), 1.0)),
        neighbors=_rounded(1 - min(2 * sum(scan.gaps for scan in scans), slices) / slices),
        training=(),
        held_out=(),
        channels=(),
        labels=tuple(_label(k, name, scans, names, mirrored.get(k)) for k, name in enumerate(names)),
    )


def named_side(name: str) -> str | None:
    """Return the side that a label's name mentions as a separate word or letter.

    Example:
        >>> named_side("kidney_left"), named_side("Parotid R"), named_side("rightmost"), named_side("vertebra_L1")
        ('left', 'right', None, None)
    """
    words = [word.lower() for word in re.findall(r"(?:[A-Z]?[a-z]+|[A-Z]+(?![a-z]))\d*", name)]
    return next((_SIDES[word] for word in words if word in _SIDES), None)


def mirrored_pairs(scans: Sequence[ScanMeasurement]) -> dict[int, int]:
    """Find labels that are mirror images of each other, such as two kidneys, by their volumes and centers.

    Two labels are a pair if in at least 90% of the scans that have both, they lie on opposite sides of the body's
    middle, the same one always on the same side, about as far from it and at about the same height and depth; and if
    the ratio of their median volumes is below 1.6.

    Returns:
        The index of each label of a pair, to that of the other one.
    """
    pairs: dict[int, int] = {}
    count = len(scans[0].labels)
    for a in range(count):
        for b in range(a + 1, count):
            if a not in pairs and b not in pairs and _are_mirrored(scans, a, b):
                pairs |= {a: b, b: a}
    return pairs


def _are_mirrored(scans: Sequence[ScanMeasurement], a: int, b: int) -> bool:
    both = [
        (one, other)
        for scan in scans
        if (one := scan.labels[a]) and (other := scan.labels[b]) and one.center and other.center
    ]
    if len(both) < max(2, len(scans) // 4):
        return False
    centers = np.array([(one.center, other.center) for one, other in both])
    distance = centers[:, 0, 2] - centers[:, 1, 2]
    off_middle = np.abs(centers[:, :, 2].sum(1)) < 0.5 * np.abs(distance)
    elsewhere = np.abs(centers[:, 0, :2] - centers[:, 1, :2]).max(1) < 0.5 * np.abs(distance)
    opposite = np.prod(centers[:, :, 2], 1) < 0
    same_side = max((distance > 0).mean(), (distance < 0).mean())
    volumes = np.median([(sum(one.components_ml), sum(other.components_ml)) for one, other in both], 0)
    alike = max(volumes) < _MOST_VOLUME_RATIO * min(volumes)
    return alike and same_side >= _MIRRORED_SCANS and (off_middle & elsewhere & opposite).mean() >= _MIRRORED_SCANS


def _spread(dataset: Dataset, scans: int) -> Iterator[LoadedScan]:
    """Read at most MOST_SCANS annotated scans, evenly spread over the dataset."""
    wanted = set(np.unique(np.linspace(0, scans - 1, min(scans, MOST_SCANS)).round().astype(int)).tolist())
    number = 0
    for shard in dataset.shards_of(range(dataset.folds)):
        path = dataset.root / shard.file
        with path.open("rb") as file:
            for k in range(len(shard.scans)):
                if number in wanted:
                    try:
                        yield decode_scan(read_record(file, k))
                    except (ValueError, DataError) as error:
                        raise DataError(f"{path}: a record is damaged ({first_line(error)}); convert again") from None
                number += 1


def _body(image: np.ndarray, percentiles: np.ndarray, spacing: Triple) -> tuple[Pair, float]:
    """Measure the body: (height, width) of its bounding box in mm, and the column of its middle."""
    threshold = body_threshold(percentiles)
    chosen = np.unique(np.linspace(0, len(image) - 1, _BODY_SLICES).round().astype(int))
    masks = np.stack([body_mask(image[z], threshold) for z in chosen])
    sides, middle = [], (image.shape[2] - 1) / 2
    for axis, pixels, mm in ((2, image.shape[1], spacing[1]), (1, image.shape[2], spacing[2])):
        inside = np.flatnonzero(masks.mean((0, axis)) >= _BODY_SHARE)
        if not len(inside):
            sides.append(pixels * mm)
            continue
        if axis == 1:
            middle = (inside[0] + inside[-1]) / 2
        sides.append(min((inside[-1] - inside[0] + 1) * mm + 2 * _BODY_MARGIN_MM, pixels * mm))
    return (sides[0], sides[1]), float(middle)


def _measure_label(mask: np.ndarray, spacing: Triple, middle: float) -> LabelMeasurement:
    if not mask.any():
        return LabelMeasurement((), 0, None)
    box = bounding_box(mask)
    cropped = mask[box]
    components, count = ndimage.label(cropped, _EDGE)
    voxels = np.bincount(components.ravel())[1 : count + 1]
    ml = float(np.prod(spacing)) / 1000
    offset = np.array([part.start for part in box])
    z, y, x = (np.array(np.nonzero(cropped)).mean(1) + offset - (0, 0, middle)) * spacing
    slices = int(cropped.any((1, 2)).sum())
    return LabelMeasurement(tuple(float(n * ml) for n in sorted(voxels)), slices, (float(z), float(y), float(x)))


def _label(
    k: int, name: str, scans: Sequence[ScanMeasurement], names: Sequence[str], other: int | None
) -> LabelFingerprint:
    annotated = [(scan, label) for scan in scans if (label := scan.labels[k]) is not None]
    present = [label for _, label in annotated if label.components_ml]
    volumes = [sum(label.components_ml) for label in present] or [0.0]
    parts = [part for label in present for part in label.components_ml] or [0.0]
    slices = sum(scan.shape[0] for scan, _ in annotated)
    side = named_side(name)
    reason = f"its name says {side}" if side else None
    if other is not None and not side:
        reason = f"it mirrors {names[other]}"
    return LabelFingerprint(
        name,
        len(annotated),
        len(present),
        (_rounded(min(volumes)), _rounded(float(np.median(volumes))), _rounded(max(volumes))),
        max((len(label.components_ml) for label in present), default=0),
        _rounded(float(np.quantile(parts, 0.01))),
        _rounded(sum(label.slices for _, label in annotated) / slices) if slices else 0.0,
        reason,
    )


def _channel(name: str, percentiles: list[np.ndarray], foreground: Pair) -> ChannelFingerprint:
    values = np.array(percentiles, float)
    low, high = (values[:, PERCENTILES.index(percent)] for percent in (1, 99))
    widths = np.maximum(high - low, 1e-6)
    lowest, highest = (np.median(values[:, PERCENTILES.index(percent)]) for percent in (0.5, 99.5))
    is_ct = bool(lowest < _AIR_HU and highest < _MOST_HU) or "ct" in re.findall(r"[a-z]+", name.lower())
    middle = (_rounded(np.median(low)), _rounded(np.median(high)))
    kept = (_rounded(foreground[0]), _rounded(foreground[1]))
    return ChannelFingerprint(name, is_ct, middle, _rounded(widths.max() / widths.min()), kept)


def _triple(values: Iterable[float]) -> Triple:
    z, y, x = map(_rounded, values)
    return z, y, x


def _rounded(value) -> float:
    """Round to four significant digits, so that the last bits of a sum do not show."""
    return float(f"{float(value):.4g}")
