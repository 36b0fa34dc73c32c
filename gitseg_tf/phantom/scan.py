"""Render one synthetic scan."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from gitseg_tf.data.readers.base import SLICE_MM
from gitseg_tf.errors import DataError
from gitseg_tf.labels import UWMGI
from gitseg_tf.phantom.anatomy import Anatomy, build_anatomy, trunk_box
from gitseg_tf.phantom.geometry import Box, Shape, carve, fine_box, make_grid, upsample
from gitseg_tf.phantom.image import draw_tissue, scan_image

PIXEL_MM = 1.5
SIZES = ((310, 360), (266, 266))
MIN_SLICES = 24
LOOP_GAP_MM = 1.6


@dataclass(frozen=True)
class PhantomScan:
    """One synthetic scan.

    Attributes:
        image: uint16 [depth, height, width]; slices from head to feet, the front at the top,
            the patient's left at the right.
        masks: bool [3, depth, height, width] in the order of `labels.UWMGI`.
        spacing: (z, y, x) in mm.
    """

    image: np.ndarray
    masks: np.ndarray
    spacing: tuple[float, float, float]


def render_scan(case: int, day: int, slices: int = 80, seed: int = 0) -> PhantomScan:
    """Render one scan of a synthetic patient.

    The anatomy is 240 mm long. It is centered in a scan of more than 80 slices, and compressed along z in one of fewer.

    Args:
        case: number of the patient, from 1; scans of even ones are 360 x 310 pixels, of odd ones 266 x 266.
        day: the day of the scan, from 0; filling, position and course of the loops differ between days.
        slices: number of slices, 3 mm apart.
        seed: seed of the cohort.

    Returns:
        The scan. The same arguments give the same voxels.

    Raises:
        DataError: an argument out of range.
    """
    _require(case >= 1, f"case must be >= 1, got {case}")
    _require(day >= 0, f"day must be >= 0, got {day}")
    _check(slices, seed)
    size = SIZES[case % 2]
    patient = np.random.default_rng((seed, case, 0))
    today, scanner = (np.random.default_rng((seed, case, day + 1, stream)) for stream in (0, 1))
    shift = today.normal(0, (1.5, 3, 3)).clip((-4, -8, -8), (4, 8, 8))
    grid = make_grid((slices, *size), PIXEL_MM, SLICE_MM, shift)
    # Most of the image is air, and rendering air costs as much as rendering bowel.
    box = trunk_box(grid)
    anatomy = build_anatomy(grid.crop(box), patient, today)
    image = np.zeros((slices, *size), np.float32)
    image[fine_box(box)] = draw_tissue(anatomy, scanner)
    masks = np.zeros((len(UWMGI), slices, *size), bool)
    for mask, (label_box, inside) in zip(masks, _label_masks(anatomy), strict=True):
        mask[fine_box(box)][label_box] = inside
    return PhantomScan(scan_image(image, grid, scanner), masks, (SLICE_MM, PIXEL_MM, PIXEL_MM))


def _label_masks(anatomy: Anatomy) -> Iterator[tuple[Box, np.ndarray]]:
    # The fat between two loops that nearly touch belongs to the label, as in manual contours.
    bowel = Shape(np.minimum(anatomy.bowel.shape.sdf, anatomy.bowel.gap - LOOP_GAP_MM), anatomy.bowel.shape.box)
    colon = carve(anatomy.colon.shape, [anatomy.bowel.shape], 0.0)
    stomach = carve(anatomy.stomach.shape, [anatomy.bowel.shape, anatomy.colon.shape], 0.0)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    for organ in (colon, bowel, stomach):
        inside = (upsample(organ.sdf) < 0).view(np.uint8)
        yield fine_box(organ.box), np.stack([cv2.morphologyEx(plane, cv2.MORPH_OPEN, disc) for plane in inside]) > 0


def _check(slices: int, seed: int) -> None:
    _require(slices >= MIN_SLICES, f"slices must be >= {MIN_SLICES}, got {slices}")
    _require(seed >= 0, f"seed must be >= 0, got {seed}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise DataError(f"phantom: {message}")
