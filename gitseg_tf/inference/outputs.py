"""Predictions as files."""

import io
from collections.abc import Iterable

import cv2
import numpy as np
import pandas as pd

from gitseg_tf.data.contours import draw_outlines
from gitseg_tf.data.rle import mask_to_rle
from gitseg_tf.data.scans import ORGANS, Scan
from gitseg_tf.files import AnyPath, as_path, write_atomically


def submission_rows(scan: Scan, masks: np.ndarray) -> list[tuple[str, str, str]]:
    """A scan's rows of the competition's table.

    Args:
        scan: its slice ids.
        masks: bool [3, D, H, W] at the scan's size.

    Returns:
        (id, class, predicted) a slice and organ; predicted is "" where the organ is absent.
    """
    return [
        (slice_id, organ, mask_to_rle(masks[k, z]))
        for z, slice_id in enumerate(scan.slice_ids)
        for k, organ in enumerate(ORGANS)
    ]


def write_submission(path: str | AnyPath, rows: Iterable[tuple[str, str, str]]) -> None:
    """Write submission.csv: id, class, predicted.

    Args:
        path: the file; written whole or not at all.
        rows: from `submission_rows`.
    """
    text = io.StringIO()
    pd.DataFrame(rows, columns=["id", "class", "predicted"]).to_csv(text, index=False)
    write_atomically(as_path(path), text.getvalue().encode())


def to_grey(image: np.ndarray) -> np.ndarray:
    """A scan as people look at it: uint16 [D, H, W] to uint8, the 1st to the 99.5th percentile from black to white."""
    low, high = np.percentile(image, [1, 99.5])
    return np.clip((image.astype(np.float32) - low) / max(high - low, 1) * 255, 0, 255).astype(np.uint8)


def write_overlays(folder: str | AnyPath, scan: Scan, image: np.ndarray, masks: np.ndarray) -> None:
    """Write a PNG a slice, grey with the organs' contours.

    Args:
        folder: gets SLICE_ID.png.
        scan: its slice ids.
        image: uint16 [D, H, W].
        masks: bool [3, D, H, W].
    """
    folder = as_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    grey = to_grey(image)
    for z, slice_id in enumerate(scan.slice_ids):
        picture = cv2.cvtColor(cv2.resize(grey[z], None, fx=2, fy=2), cv2.COLOR_GRAY2RGB)
        draw_outlines(picture, masks[:, z])
        _, png = cv2.imencode(".png", picture[..., ::-1])
        write_atomically(folder / f"{slice_id}.png", png.tobytes())
