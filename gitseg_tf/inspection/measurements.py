"""Measure scans: the few numbers per scan allow comparing cohorts of any size without their voxels."""

from dataclasses import dataclass
from hashlib import blake2b

import cv2
import numpy as np

from gitseg_tf.data.volume import Annotation, LoadedScan
from gitseg_tf.inspection.contour_fit import ContourFit, contour_fits

# The body threshold lies at this fraction of the range from air to the scan's 99th percentile: noise in air stays below
# it, as does gas in bowel, which is enclosed by body. Air is 0, or about -1000 HU in CT, whose padding may be lower.
_BODY_LEVEL = 0.08
_LOWEST_AIR = -1024.0
_BLURRED = (np.uint8, np.uint16, np.int16, np.float32)


@dataclass(frozen=True)
class Steps:
    """How the contours change from each slice to the next.

    Attributes:
        overlap: float [D - 1], Dice between a slice and the next over the labels that both show; NaN if there is none.
        area: float [D - 1], sum over these labels of the smaller area of the two slices, in mm2.
        shift: float [D - 1, 2], (y, x) in mm by which the centers of these labels move.
        gain: float [D - 1], increase of the overlap when that shift is undone.
        exchange: float [D - 1], largest increase of Dice when two labels are exchanged on the next slice, over the
            pairs of labels that are both on one of the two slices.
        exchanged: list of D - 1 pairs of label indices.
    """

    overlap: np.ndarray
    area: np.ndarray
    shift: np.ndarray
    gain: np.ndarray
    exchange: np.ndarray
    exchanged: list[tuple[int, int]]


@dataclass(frozen=True)
class ContourFacts:
    """Measurements of a scan's contours.

    Attributes:
        annotated: bool [L]; the areas of unannotated labels are 0.
        areas: float [L, D] in mm2.
        outside: float [L, D] in mm2, the area outside the body; 0 on slices of constant intensity.
        centers: float [L, 3], each label's center (z, y, x) in mm, z from the first slice, y and x from the body's
            center; NaN for an absent or unannotated label.
        digests: (label index, slice index) to a digest of the mask, for masks that are not empty.
        steps: changes from slice to slice.
        fits: the result of `contour_fits`.
        notes: the notes of the annotation.
    """

    annotated: np.ndarray
    areas: np.ndarray
    outside: np.ndarray
    centers: np.ndarray
    digests: dict[tuple[int, int], bytes]
    steps: Steps
    fits: list[ContourFit]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScanFacts:
    """Measurements of a scan.

    Attributes:
        id, case, fold: as in `LoadedScan`.
        numbers, spacing, shape: as in `Volume`.
        percentiles: float [C, 11] at `volume.PERCENTILES`.
        blank: bool [C, D], slices of constant intensity.
        image_digests: digest of each slice with all its channels; None if all of them have constant intensity.
        contours: None for a scan without annotation.
    """

    id: str
    case: str
    fold: int | None
    numbers: tuple[int, ...]
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    percentiles: np.ndarray
    blank: np.ndarray
    image_digests: list[bytes | None]
    contours: ContourFacts | None

    @property
    def contour_facts(self) -> ContourFacts:
        """`contours` of a scan that is known to have an annotation."""
        if self.contours is None:
            raise ValueError(f"{self.id}: has no annotation")
        return self.contours

    @property
    def volumes_ml(self) -> np.ndarray:
        """float [L]: the labels' volumes in ml, 0 for absent and unannotated ones; [0] without contours."""
        return np.zeros(0) if self.contours is None else self.contours.areas.sum(1) * self.spacing[0] / 1000


def measure(scan: LoadedScan) -> ScanFacts:
    """Measure a scan. The contours are compared with the first channel.

    Args:
        scan: the scan with its voxels.

    Returns:
        The measurements, which keep no reference to the voxels.
    """
    volume = scan.volume
    image = volume.with_channels
    blank = image.min(axis=(1, 2)).T == image.max(axis=(1, 2)).T
    digests = [None if dull else _digest(plane) for dull, plane in zip(blank.all(axis=0), volume.voxels, strict=True)]
    contours = None
    if scan.annotation is not None:
        contours = _measure_contours(scan, scan.annotation, volume.percentiles[0], ~blank[0])
    return ScanFacts(
        scan.id, scan.case, scan.fold, volume.numbers, volume.spacing, volume.shape,
        volume.percentiles, blank, digests, contours,
    )  # fmt: skip


def body_threshold(percentiles: np.ndarray) -> float:
    """Compute the intensity above which a voxel belongs to the body.

    Args:
        percentiles: float [11] of a channel, at `volume.PERCENTILES`.

    Returns:
        A value between air and the 99th percentile; air is the 1st percentile if that is negative (HU), otherwise 0.
    """
    air = min(0.0, max(float(percentiles[2]), _LOWEST_AIR))
    return air + _BODY_LEVEL * (float(percentiles[8]) - air)


def body_mask(plane: np.ndarray, threshold: float) -> np.ndarray:
    """Find the body in a slice.

    Args:
        plane: [H, W].
        threshold: from `body_threshold`.

    Returns:
        bool [H, W], one region without holes; all False if nothing is brighter than noise.
    """
    smooth = cv2.GaussianBlur(plane if plane.dtype in _BLURRED else plane.astype(np.float32), (0, 0), 1)
    body = (smooth > threshold).astype(np.uint8)
    body = cv2.morphologyEx(body, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
    body = cv2.morphologyEx(body, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    count, components, stats, _ = cv2.connectedComponentsWithStats(body)
    if count < 2:
        return np.zeros(plane.shape, bool)
    largest = np.pad((components == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8), 1)
    around = largest.copy()
    cv2.floodFill(around, None, (0, 0), 1)
    return (largest | (1 - around))[1:-1, 1:-1].astype(bool)


def _digest(array: np.ndarray) -> bytes:
    return blake2b(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes(), digest_size=16).digest()


def _measure_contours(
    scan: LoadedScan, annotation: Annotation, percentiles: np.ndarray, shown: np.ndarray
) -> ContourFacts:
    volume, masks = scan.volume, annotation.masks
    image = volume.with_channels[..., 0]
    pixel, threshold = volume.spacing[1] * volume.spacing[2], body_threshold(percentiles)
    counts = np.stack([np.count_nonzero(mask, axis=(1, 2)) for mask in masks])
    outside = np.zeros_like(counts)
    columns, rows = np.zeros(image.shape[2]), np.zeros(image.shape[1])
    for z in np.flatnonzero(counts.any(axis=0) & shown):
        body = body_mask(image[z], threshold)
        present = np.flatnonzero(counts[:, z])
        outside[present, z] = np.count_nonzero(masks[present, z] & ~body, axis=(1, 2))
        columns += body.sum(axis=0)
        rows += body.sum(axis=1)
    middle = np.array([0, _centroid(rows), _centroid(columns)])
    centers = np.array([_center(mask) for mask in masks]) - middle
    occupied = zip(*np.nonzero(counts), strict=True)
    return ContourFacts(
        annotation.annotated,
        counts * pixel,
        outside * pixel,
        centers * volume.spacing,
        {(int(k), int(z)): _digest(np.packbits(masks[k, z])) for k, z in occupied},
        _steps(masks, counts, volume.numbers, volume.spacing),
        contour_fits(image, masks),
        annotation.notes,
    )


def _centroid(weights: np.ndarray) -> float:
    total = weights.sum()
    return float(weights @ np.arange(len(weights)) / total) if total else (len(weights) - 1) / 2


def _center(mask: np.ndarray) -> list[float]:
    if not mask.any():
        return [np.nan] * 3
    in_plane = mask.sum(axis=0)
    return [_centroid(w) for w in (np.count_nonzero(mask, axis=(1, 2)), in_plane.sum(axis=1), in_plane.sum(axis=0))]


def _steps(masks: np.ndarray, counts: np.ndarray, numbers: tuple[int, ...], spacing) -> Steps:
    depth = masks.shape[1]
    steps = Steps(
        np.full(depth - 1, np.nan), np.zeros(depth - 1), np.zeros((depth - 1, 2)),
        np.zeros(depth - 1), np.zeros(depth - 1), [(0, 0)] * (depth - 1),
    )  # fmt: skip
    occupied = np.argwhere(masks.any(axis=(0, 1)))
    if not len(occupied):
        return steps
    (top, left), (bottom, right) = occupied.min(axis=0), occupied.max(axis=0) + 1
    cropped = masks[:, :, top:bottom, left:right]
    for z in range(depth - 1):
        shown = np.flatnonzero((counts[:, z] > 0) | (counts[:, z + 1] > 0))
        both = (counts[shown, z] > 0) & (counts[shown, z + 1] > 0)
        if numbers[z + 1] == numbers[z] + 1 and both.any():
            current, following = cropped[shown, z], cropped[shown, z + 1]
            _step(steps, z, current[both], following[both], spacing)
            steps.exchange[z], (i, j) = _best_exchange(current, following)
            steps.exchanged[z] = (int(shown[i]), int(shown[j]))
    return steps


def _step(steps: Steps, z: int, current: np.ndarray, following: np.ndarray, spacing) -> None:
    """Compare the labels that are on both slices, bool [labels, rows, columns] each."""
    smaller = np.minimum(current.sum(axis=(1, 2)), following.sum(axis=(1, 2)))
    moves = [_centroid_2d(b) - _centroid_2d(a) for a, b in zip(current, following, strict=True)]
    move = np.average(moves, axis=0, weights=smaller)
    steps.overlap[z] = _dice(current, following)
    steps.area[z] = smaller.sum() * spacing[1] * spacing[2]
    steps.shift[z] = move * spacing[1:]
    dy, dx = np.rint(move).astype(int)
    steps.gain[z] = _dice(*_shifted(current, following, dy, dx)) - steps.overlap[z]


def _best_exchange(current: np.ndarray, following: np.ndarray) -> tuple[float, tuple[int, int]]:
    """Find the two labels whose Dice increases most if they are exchanged on the next slice, and by how much.

    Only pairs of labels that are both on one of the slices are considered. All overlaps are computed by one matrix
    product, exact in float32 up to 2^24 pixels, so that many labels remain fast.
    """
    a, b = (side.reshape(len(side), -1).astype(np.float32) for side in (current, following))
    overlaps, in_a, in_b = (a @ b.T).astype(int), a.sum(axis=1).astype(int), b.sum(axis=1).astype(int)
    i, j = np.triu_indices(len(a), 1)
    counted = ((in_a[i] > 0) & (in_a[j] > 0)) | ((in_b[i] > 0) & (in_b[j] > 0))
    i, j = i[counted], j[counted]
    if not i.size:
        return 0.0, (0, 0)
    total = in_a[i] + in_a[j] + in_b[i] + in_b[j]
    gains = 2 * (overlaps[i, j] + overlaps[j, i]) / total - 2 * (overlaps[i, i] + overlaps[j, j]) / total
    best = int(gains.argmax())
    return float(gains[best]), (int(i[best]), int(j[best]))


def _centroid_2d(mask: np.ndarray) -> np.ndarray:
    return np.array([_centroid(mask.sum(axis=1)), _centroid(mask.sum(axis=0))])


def _shifted(a: np.ndarray, b: np.ndarray, dy: int, dx: int) -> tuple[np.ndarray, np.ndarray]:
    """Shift `a` by (dy, dx), and pad `a` and `b` so that nothing is lost."""
    edges = ((0, 0), (abs(dy), abs(dy)), (abs(dx), abs(dx)))
    return np.roll(np.pad(a, edges), (dy, dx), (1, 2)), np.pad(b, edges)


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / total if total else 0.0
