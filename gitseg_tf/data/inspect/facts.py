"""What is measured of one scan: small numbers, so that a cohort of any size is compared without its voxels."""

from dataclasses import dataclass
from hashlib import blake2b

import cv2
import numpy as np

from gitseg_tf.data.inspect.contour_fit import ContourFit, contour_fits
from gitseg_tf.data.records import intensity_percentiles
from gitseg_tf.data.scans import ORGANS

# Share of the scan's 99th percentile from which a voxel is body: noise in air stays below it, and gas in bowel, which
# does not, is enclosed by body.
_BODY_LEVEL = 0.08
_PAIRS = ((0, 1), (0, 2), (1, 2))


@dataclass(frozen=True)
class ScanVoxels:
    """A scan in memory: id, patient, fold (None for a source cohort), slice numbers, spacing (z, y, x) in mm, image
    uint16 [D, H, W] and masks bool [3, D, H, W] or None."""

    id: str
    case: str
    fold: int | None
    numbers: tuple[int, ...]
    spacing: tuple[float, float, float]
    image: np.ndarray
    masks: np.ndarray | None


@dataclass(frozen=True)
class Steps:
    """How the contours change from each slice to the next.

    Attributes:
        overlap: float [D - 1], Dice of slice and next, over the organs that both show; NaN where there is none.
        area: float [D - 1], mm2 of these organs in the smaller of both slices.
        shift: float [D - 1, 2], (y, x) in mm by which these organs' centres move.
        gain: float [D - 1], by how much the overlap rises once that shift is undone.
        exchange: float [D - 1], how much better the next slice's organs overlap with two of them exchanged.
        exchanged: list of D - 1 pairs of organs.
    """

    overlap: np.ndarray
    area: np.ndarray
    shift: np.ndarray
    gain: np.ndarray
    exchange: np.ndarray
    exchanged: list[tuple[int, int]]


@dataclass(frozen=True)
class ContourFacts:
    """What is measured of a scan's contours.

    Attributes:
        areas: float [3, D] in mm2.
        outside: float [3, D] in mm2, the part of it outside of the body; 0 on slices of one intensity.
        centres: float [3, 3], each organ's centre (z, y, x) in mm, z from the first slice, y and x from the body's
            centre; NaN for an absent organ.
        digests: (organ, slice index) to a digest of the mask, where it is not empty.
        steps: from slice to slice.
        fits: as `contour_fits` gives them.
    """

    areas: np.ndarray
    outside: np.ndarray
    centres: np.ndarray
    digests: dict[tuple[int, int], bytes]
    steps: Steps
    fits: list[ContourFit]


@dataclass(frozen=True)
class ScanFacts:
    """What is measured of a scan.

    Attributes:
        id, case, fold, numbers, spacing: as in `ScanVoxels`.
        shape: (depth, height, width).
        percentiles: float [11] at `records.PERCENTILES`.
        image_digests: of each slice; None for a slice of one intensity.
        contours: None for a scan without.
    """

    id: str
    case: str
    fold: int | None
    numbers: tuple[int, ...]
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    percentiles: np.ndarray
    image_digests: list[bytes | None]
    contours: ContourFacts | None

    @property
    def volumes_ml(self) -> np.ndarray:
        """float [3]: the organs' volumes in ml; zero without contours."""
        return np.zeros(len(ORGANS)) if self.contours is None else self.contours.areas.sum(1) * self.spacing[0] / 1000


def measure(scan: ScanVoxels) -> ScanFacts:
    """Measure a scan.

    Args:
        scan: with its voxels.

    Returns:
        Its facts; no reference to the voxels is kept.
    """
    digests = [None if plane.min() == plane.max() else _digest(plane) for plane in scan.image]
    percentiles = intensity_percentiles(scan.image)
    shown = np.array([digest is not None for digest in digests])
    contours = None if scan.masks is None else _measure_contours(scan, float(percentiles[8]), shown)
    return ScanFacts(
        scan.id, scan.case, scan.fold, scan.numbers, scan.spacing, scan.image.shape, percentiles, digests, contours
    )


def body_mask(plane: np.ndarray, p99: float) -> np.ndarray:
    """Find the body in a slice.

    Args:
        plane: uint16 [H, W].
        p99: 99th percentile of the scan.

    Returns:
        bool [H, W], one region without holes; all False where nothing is brighter than noise.
    """
    smooth = cv2.GaussianBlur(plane, (0, 0), 1)
    body = (smooth > _BODY_LEVEL * p99).astype(np.uint8)
    body = cv2.morphologyEx(body, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
    body = cv2.morphologyEx(body, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(body)
    if count < 2:
        return np.zeros(plane.shape, bool)
    largest = np.pad((labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8), 1)
    around = largest.copy()
    cv2.floodFill(around, None, (0, 0), 1)
    return (largest | (1 - around))[1:-1, 1:-1].astype(bool)


def _digest(array: np.ndarray) -> bytes:
    return blake2b(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes(), digest_size=16).digest()


def _measure_contours(scan: ScanVoxels, p99: float, shown: np.ndarray) -> ContourFacts:
    pixel = scan.spacing[1] * scan.spacing[2]
    counts = np.count_nonzero(scan.masks, axis=(2, 3))
    outside = np.zeros_like(counts)
    columns, rows = np.zeros(scan.image.shape[2]), np.zeros(scan.image.shape[1])
    for z in np.flatnonzero(counts.any(axis=0) & shown):
        body = body_mask(scan.image[z], p99)
        outside[:, z] = np.count_nonzero(scan.masks[:, z] & ~body, axis=(1, 2))
        columns += body.sum(axis=0)
        rows += body.sum(axis=1)
    middle = np.array([0, _mean_place(rows), _mean_place(columns)])
    centres = np.array([_centre(mask) for mask in scan.masks]) - middle
    drawn = zip(*np.nonzero(counts), strict=True)
    return ContourFacts(
        counts * pixel,
        outside * pixel,
        centres * scan.spacing,
        {(int(k), int(z)): _digest(np.packbits(scan.masks[k, z])) for k, z in drawn},
        _steps(scan.masks, counts, scan.numbers, scan.spacing),
        contour_fits(scan.image, scan.masks),
    )


def _mean_place(weights: np.ndarray) -> float:
    total = weights.sum()
    return float(weights @ np.arange(len(weights)) / total) if total else (len(weights) - 1) / 2


def _centre(mask: np.ndarray) -> list[float]:
    if not mask.any():
        return [np.nan] * 3
    in_plane = mask.sum(axis=0)
    return [_mean_place(w) for w in (np.count_nonzero(mask, axis=(1, 2)), in_plane.sum(axis=1), in_plane.sum(axis=0))]


def _steps(masks: np.ndarray, counts: np.ndarray, numbers: tuple[int, ...], spacing) -> Steps:
    depth = masks.shape[1]
    steps = Steps(
        np.full(depth - 1, np.nan), np.zeros(depth - 1), np.zeros((depth - 1, 2)),
        np.zeros(depth - 1), np.zeros(depth - 1), [_PAIRS[0]] * (depth - 1),
    )  # fmt: skip
    occupied = np.argwhere(masks.any(axis=(0, 1)))
    if not len(occupied):
        return steps
    (top, left), (bottom, right) = occupied.min(axis=0), occupied.max(axis=0) + 1
    cropped = masks[:, :, top:bottom, left:right]
    for z in range(depth - 1):
        both = (counts[:, z] > 0) & (counts[:, z + 1] > 0)
        if numbers[z + 1] == numbers[z] + 1 and both.any():
            _step(steps, z, cropped[:, z], cropped[:, z + 1], both, spacing)
    return steps


def _step(steps: Steps, z: int, here: np.ndarray, there: np.ndarray, both: np.ndarray, spacing) -> None:
    smaller = np.minimum(here[both].sum(axis=(1, 2)), there[both].sum(axis=(1, 2)))
    moves = [_place(b) - _place(a) for a, b in zip(here[both], there[both], strict=True)]
    move = np.average(moves, axis=0, weights=smaller)
    steps.overlap[z] = _dice(here[both], there[both])
    steps.area[z] = smaller.sum() * spacing[1] * spacing[2]
    steps.shift[z] = move * spacing[1:]
    dy, dx = np.rint(move).astype(int)
    steps.gain[z] = _dice(*_moved(here[both], there[both], dy, dx)) - steps.overlap[z]
    crossed = [
        _dice(here[[i, j]], there[[j, i]]) - _dice(here[[i, j]], there[[i, j]])
        if here[[i, j]].any(axis=(1, 2)).all() or there[[i, j]].any(axis=(1, 2)).all()
        else 0.0
        for i, j in _PAIRS
    ]
    best = int(np.argmax(crossed))
    steps.exchange[z], steps.exchanged[z] = crossed[best], _PAIRS[best]


def _place(mask: np.ndarray) -> np.ndarray:
    return np.array([_mean_place(mask.sum(axis=1)), _mean_place(mask.sum(axis=0))])


def _moved(a: np.ndarray, b: np.ndarray, dy: int, dx: int) -> tuple[np.ndarray, np.ndarray]:
    """`a` moved by (dy, dx), and `b`, on a field that holds both."""
    edges = ((0, 0), (abs(dy), abs(dy)), (abs(dx), abs(dx)))
    return np.roll(np.pad(a, edges), (dy, dx), (1, 2)), np.pad(b, edges)


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / total if total else 0.0
