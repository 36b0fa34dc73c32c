"""A preview image of a cohort: a few slices of a few scans with outlined labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from gitseg_tf.labels import UWMGI

if TYPE_CHECKING:
    from gitseg_tf.phantom.scan import PhantomScan

TILE = (228, 310)
FIELD_MM = (280.0, 380.0)
GAP = 8
HEADER = 44
BACKGROUND = (18, 18, 20)
LEVELS = (0.13, 0.36, 0.55, 0.80)
MAX_BYTES = 690_000


def save_preview(path: str | Path, scans: Mapping[str, "PhantomScan"]) -> None:
    """Write an image with one row per scan: axial slices from head to feet, and one coronal slice.

    Args:
        path: 8-bit PNG file to write, 1600 pixels wide, under 700 kB for up to four scans.
        scans: title to scan.

    Raises:
        OSError: the file cannot be written.
    """
    rows = [_row(title, scan) for title, scan in scans.items()]
    picture = np.full((HEADER, rows[0].shape[1], 3), BACKGROUND, np.uint8)
    _legend(picture)
    picture = np.concatenate([picture, *rows])
    # Noise makes the file large; coarser gray levels preserve more detail than a blur that saves as much.
    for step in (4, 6, 8, 12, 16):
        coarse = np.minimum((picture.astype(np.uint16) + step // 2) // step * step, 255).astype(np.uint8)
        _, data = cv2.imencode(".png", coarse[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
        if data.size < MAX_BYTES:
            break
    Path(path).write_bytes(data.tobytes())


def _row(title, scan):
    white = max(float(np.percentile(scan.image, 99.7)), 1.0)
    labeled = np.flatnonzero(scan.masks.any(axis=(0, 2, 3)))
    first, last = (labeled[0], labeled[-1]) if labeled.size else (0, len(scan.image) - 1)
    tiles = []
    for level in LEVELS:
        number = round(first + level * (last - first))
        tile = _tile(scan.image[number] / white, scan.masks[:, number], scan.spacing[1:])
        tiles.append(_write(tile, f"slice {number + 1}", (TILE[1] - 76, 18)))
    _write(tiles[0], title, (8, 18), bold=True)
    # Choose the coronal plane that shows all three labels best.
    plane = int(np.argmax(np.sqrt(scan.masks.sum(axis=(1, 3))).sum(axis=0)))
    tile = _tile(scan.image[:, plane] / white, scan.masks[:, :, plane], (scan.spacing[0], scan.spacing[2]))
    tiles.append(_write(tile, "coronal", (TILE[1] - 66, 18)))
    margin = np.full((TILE[0], GAP, 3), BACKGROUND, np.uint8)
    row = np.concatenate([part for tile in tiles for part in (margin, tile)] + [margin], axis=1)
    return np.concatenate([row, np.full((GAP, row.shape[1], 3), BACKGROUND, np.uint8)])


def _tile(plane, masks, spacing):
    gray = np.clip(_resample(plane.astype(np.float32), spacing, cv2.INTER_CUBIC), 0, 1)
    gray = np.clip(cv2.GaussianBlur(gray, (0, 0), 0.8) ** 0.85 * 255 - 14, 0, 255).astype(np.uint8)
    tile = cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB)
    for label, mask in zip(UWMGI, masks, strict=True):
        smooth = cv2.GaussianBlur(_resample(mask.astype(np.float32), spacing, cv2.INTER_LINEAR), (0, 0), 1.2)
        outline, _ = cv2.findContours((smooth > 0.5).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tile, outline, -1, label.color, 1, cv2.LINE_AA)
    return tile


def _resample(plane, spacing, interpolation):
    scale = [pixel * tile / field for pixel, tile, field in zip(spacing, TILE, FIELD_MM, strict=True)]
    middle = [(size - 1) / 2 for size in plane.shape]
    matrix = np.array(
        [
            [scale[1], 0, (TILE[1] - 1) / 2 - scale[1] * middle[1]],
            [0, scale[0], (TILE[0] - 1) / 2 - scale[0] * middle[0]],
        ]
    )
    return cv2.warpAffine(plane, matrix, TILE[::-1], flags=interpolation)


def _write(tile, text, at, bold=False):
    cv2.putText(tile, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (235, 235, 235), 1 + bold, cv2.LINE_AA)
    return tile


def _legend(header):
    cv2.putText(
        header,
        "synthetic abdomen, T1-like MR",
        (GAP, 28),
        cv2.FONT_HERSHEY_SIMPLEX,
        0.6,
        (235, 235, 235),
        1,
        cv2.LINE_AA,
    )
    x = header.shape[1] - 500
    for label in UWMGI:
        cv2.line(header, (x, 23), (x + 26, 23), label.color, 3, cv2.LINE_AA)
        cv2.putText(
            header,
            label.title,
            (x + 36, 28),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.55,
            (235, 235, 235),
            1,
            cv2.LINE_AA,
        )
        x += 172
