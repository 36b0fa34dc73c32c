"""Pictures of a scan for the report: a few of its slices to print, and all of them to look through."""

import base64
import json
from dataclasses import dataclass

import cv2
import numpy as np

from gitseg_tf.data.scans import ORGANS
from gitseg_tf.inference.pictures import to_grey
from gitseg_tf.pages import close_up, outline

# Bytes that the JPEG pictures of one scan may take, before base64 makes four of three: with as many scans as
# `chosen.choose_scans` gives, and their masks, a report stays below 20 MB.
_PICTURE_BYTES = 1_300_000
# What is tried until a scan's pictures fit: JPEG quality, and the side of a picture as a share of the slice's.
_STEPS = ((85, 1.0), (75, 1.0), (65, 1.0), (55, 1.0), (45, 1.0), (60, 0.5), (40, 0.5), (40, 0.25), (30, 0.125))
_SAMPLE = 8


@dataclass(frozen=True)
class ScanPictures:
    """A scan as the report shows it.

    Attributes:
        scan: the scan's name, as in the rows of the evaluation.
        slices: drawings of a few slices, see `draw_slice`.
        scroller: JSON with all slices, see `encode_scan`.
    """

    scan: str
    slices: list[dict]
    scroller: str


def picture_scan(scan: dict, truth: np.ndarray, prediction: np.ndarray) -> ScanPictures:
    """Draw a scan's most telling slices, and encode all for the scroller.

    Args:
        scan: with id, image (uint16 [D, H, W]) and numbers (int [D]), as `read_scans` gives it.
        truth, prediction: bool [3, D, H, W], the organs in the order of `ORGANS`.

    Returns:
        The pictures.
    """
    grey = to_grey(scan["image"])
    numbers = [int(number) for number in scan["numbers"]]
    slices = [draw_slice(numbers[z], grey[z], truth[:, z], prediction[:, z]) for z in pick_slices(truth)]
    return ScanPictures(scan["id"], slices, json.dumps(encode_scan(numbers, grey, truth, prediction)))


def pick_slices(truth: np.ndarray, count: int = 3) -> list[int]:
    """Choose the slices of a scan that are worth showing.

    Args:
        truth: bool array [3, depth, height, width].
        count: how many slices, at least 1.

    Returns:
        Slice indices, ascending: one from each of `count` ranges spread over the slices that hold an organ, the one
        where the organs' areas, each as a share of that organ's volume, are largest together. Fewer where fewer slices
        hold an organ; spread over the whole scan where none does.
    """
    areas = np.count_nonzero(truth, axis=(2, 3))
    annotated = np.flatnonzero(areas.any(axis=0))
    if not annotated.size:
        return np.unique(np.linspace(0, areas.shape[1] - 1, count + 2).round().astype(int)[1:-1]).tolist()
    shares = (areas / np.maximum(areas.sum(axis=1, keepdims=True), 1)).sum(axis=0)
    # Every other one of twice as many ranges, so that two neighbouring ranges never give two neighbouring slices.
    ranges = np.array_split(annotated, 2 * count + 1)[1::2]
    if annotated.size < 2 * count + 1:
        ranges = np.array_split(annotated, min(count, annotated.size))
    return [int(indices[shares[indices].argmax()]) for indices in ranges]


def draw_slice(number: int, image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> dict:
    """A slice and both sets of contours, as the report's template takes them.

    Args:
        number: as the reader should see it.
        image: uint8 [H, W].
        truth, prediction: bool [3, H, W].

    Returns:
        slice_number, width, height, close_up (an SVG view box), png (in base64), and truth and prediction, {organ: SVG
        path}.
    """
    height, width = image.shape
    return {
        "slice_number": number,
        "width": width,
        "height": height,
        "close_up": close_up(truth | prediction),
        "png": _base64(cv2.imencode(".png", image)[1]),
        "truth": dict(zip(ORGANS, map(outline, truth), strict=True)),
        "prediction": dict(zip(ORGANS, map(outline, prediction), strict=True)),
    }


def encode_scan(numbers: list[int], image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> dict:
    """All slices of a scan in as few bytes as let the disagreement be seen.

    Args:
        numbers: of the slices, as the reader should see them.
        image: uint8 [D, H, W].
        truth, prediction: bool [3, D, H, W].

    Returns:
        width, height; numbers; start, the index of the slice with the most voxels in one of the masks alone; box, the
        [left, top, right, bottom] around all masks, the whole slice where they are empty; images, JPEG in base64, a
        slice each, smaller and coarser where the scan would take too many bytes; truth and prediction, [organ][slice],
        as `run_lengths`; missed and extra, [organ][slice], voxels of the truth or of the prediction alone; and both,
        [organ][slice], voxels of both.
    """
    height, width = image.shape[1:]
    missed, extra, both = (
        np.count_nonzero(mask, axis=(2, 3)) for mask in (truth & ~prediction, prediction & ~truth, truth & prediction)
    )
    return {
        "width": width,
        "height": height,
        "numbers": numbers,
        "start": int((missed + extra).sum(axis=0).argmax()),
        "box": _box_of(truth, prediction),
        "images": _jpegs(image),
        "truth": [[run_lengths(plane) for plane in organ] for organ in truth],
        "prediction": [[run_lengths(plane) for plane in organ] for organ in prediction],
        "missed": missed.tolist(),
        "extra": extra.tolist(),
        "both": both.tolist(),
    }


def run_lengths(mask: np.ndarray) -> str:
    """How many pixels are outside, inside, outside, ... row after row, up to the last one inside; "" for an empty mask.

    Args:
        mask: bool [H, W].
    """
    changes = np.flatnonzero(np.diff(mask.ravel(), prepend=False, append=False))
    return " ".join(map(str, np.diff(changes, prepend=0).tolist()))


def _box_of(truth: np.ndarray, prediction: np.ndarray) -> list[int]:
    flat = truth.any(axis=(0, 1)) | prediction.any(axis=(0, 1))
    if not flat.any():
        return [0, 0, flat.shape[1], flat.shape[0]]
    rows, columns = np.flatnonzero(flat.any(axis=1)), np.flatnonzero(flat.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def _jpegs(image: np.ndarray) -> list[str]:
    sample = image[:: max(1, len(image) // _SAMPLE)]
    for quality, share in _STEPS:
        size = np.mean([len(_jpeg(plane, quality, share)) for plane in sample]) * len(image)
        if size <= _PICTURE_BYTES:
            break
    return [_base64(_jpeg(plane, quality, share)) for plane in image]


def _jpeg(plane: np.ndarray, quality: int, share: float) -> np.ndarray:
    if share < 1:
        size = [max(1, round(side * share)) for side in plane.shape[::-1]]
        plane = cv2.resize(plane, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", plane, [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1])[1]


def _base64(encoded: np.ndarray) -> str:
    return base64.b64encode(encoded.tobytes()).decode("ascii")
