"""Images of a scan for the report: a few slices for print, and all slices for the scroller."""

import base64
import json
from dataclasses import dataclass

import cv2
import numpy as np

from gitseg_tf.data.volume import LoadedScan
from gitseg_tf.html.pages import close_up, outline, to_gray
from gitseg_tf.labels import LabelSet

# Maximum size of the JPEG images of one scan before base64, which adds a third: with the scans chosen by
# `selection.choose_scans`, and their masks, a report stays below 20 MB.
_PICTURE_BYTES = 1_300_000
# Settings to try until a scan's images fit: JPEG quality, and the scale of an image relative to the slice.
_STEPS = ((85, 1.0), (75, 1.0), (65, 1.0), (55, 1.0), (45, 1.0), (60, 0.5), (40, 0.5), (40, 0.25), (30, 0.125))
_SAMPLE = 8


@dataclass(frozen=True)
class ScanPictures:
    """The images of a scan in the report.

    Attributes:
        scan: the scan's id, as in the rows of the evaluation.
        slices: drawings of a few slices, see `draw_slice`.
        scroller: JSON with all slices, see `encode_scan`.
    """

    scan: str
    slices: list[dict]
    scroller: str


def picture_scan(scan: LoadedScan, prediction: np.ndarray, labels: LabelSet) -> ScanPictures:
    """Draw a scan's most informative slices, and encode all slices for the scroller.

    Args:
        scan: the scan with its annotation; the first channel is drawn. Unannotated labels and ignored voxels, which are
            not scored, are not shown.
        prediction: bool [L, D, H, W].
        labels: the labels of the masks, in order.

    Returns:
        The images.
    """
    annotation = scan.reference
    truth = annotation.masks
    if not annotation.annotated.all() or annotation.ignore is not None:
        counted = annotation.annotated[:, None, None, None]
        counted = counted if annotation.ignore is None else counted & ~annotation.ignore
        truth, prediction = truth & counted, prediction & counted
    # Gray levels range from the 1st percentile (black) to the 99.5th (white).
    low, high = map(float, scan.volume.percentiles[0, [2, 9]])
    gray = to_gray(scan.volume.with_channels[..., 0], low, high)
    numbers = list(scan.volume.numbers)
    slices = [
        draw_slice(numbers[z], gray[z], truth=truth[:, z], prediction=prediction[:, z], labels=labels)
        for z in pick_slices(truth)
    ]
    return ScanPictures(scan.id, slices, json.dumps(encode_scan(numbers, gray, truth, prediction)))


def pick_slices(truth: np.ndarray, count: int = 3) -> list[int]:
    """Choose the most informative slices of a scan.

    Args:
        truth: bool array [L, depth, height, width].
        count: number of slices, at least 1.

    Returns:
        Ascending slice indices: from each of `count` ranges spread over the slices with a label, the slice with the
        largest sum of label areas, each relative to that label's volume. Fewer indices if fewer slices show a label;
        indices spread over the whole scan if none does.
    """
    areas = np.count_nonzero(truth, axis=(2, 3))
    annotated = np.flatnonzero(areas.any(axis=0))
    if not annotated.size:
        return np.unique(np.linspace(0, areas.shape[1] - 1, count + 2).round().astype(int)[1:-1]).tolist()
    shares = (areas / np.maximum(areas.sum(axis=1, keepdims=True), 1)).sum(axis=0)
    # Use every other of twice as many ranges, so that adjacent ranges never give adjacent slices.
    ranges = np.array_split(annotated, 2 * count + 1)[1::2]
    if annotated.size < 2 * count + 1:
        ranges = np.array_split(annotated, min(count, annotated.size))
    return [int(indices[shares[indices].argmax()]) for indices in ranges]


def draw_slice(number: int, image: np.ndarray, *, truth: np.ndarray, prediction: np.ndarray, labels: LabelSet) -> dict:
    """Encode a slice and the contours of reference and prediction for the report's template.

    Args:
        number: the slice number to show.
        image: uint8 [H, W].
        truth, prediction: bool [L, H, W].
        labels: the labels of the masks, in order.

    Returns:
        dict of slice_number, width, height, close_up (an SVG view box), png (in base64), and truth and prediction,
        {label: SVG path}.
    """
    height, width = image.shape
    return {
        "slice_number": number,
        "width": width,
        "height": height,
        "close_up": close_up(truth | prediction),
        "png": _base64(cv2.imencode(".png", image)[1]),
        "truth": dict(zip(labels.names, map(outline, truth), strict=True)),
        "prediction": dict(zip(labels.names, map(outline, prediction), strict=True)),
    }


def encode_scan(numbers: list[int], image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> dict:
    """Encode all slices of a scan compactly for the scroller.

    Args:
        numbers: the slice numbers to show.
        image: uint8 [D, H, W].
        truth, prediction: bool [L, D, H, W].

    Returns:
        dict of width, height; numbers; start, the index of the slice with the most voxels in only one of the masks;
        box, the [left, top, right, bottom] around all masks, or the whole slice if they are empty; images, one JPEG in
        base64 per slice, smaller and coarser if the scan would take too many bytes; truth and prediction,
        [label][slice], from `run_lengths`; missed and extra, [label][slice], the number of voxels only in the reference
        or only in the prediction; and both, [label][slice], the number of voxels in both.
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
        "truth": [[run_lengths(plane) for plane in mask] for mask in truth],
        "prediction": [[run_lengths(plane) for plane in mask] for mask in prediction],
        "missed": missed.tolist(),
        "extra": extra.tolist(),
        "both": both.tolist(),
    }


def run_lengths(mask: np.ndarray) -> str:
    """Encode a mask as alternating counts of pixels outside and inside in row-major order; "" if it is empty.

    Args:
        mask: bool [H, W].

    Returns:
        The counts, separated by spaces, up to the last pixel inside.
    """
    changes = np.flatnonzero(np.diff(mask.ravel(), prepend=False, append=False))
    return " ".join(map(str, np.diff(changes, prepend=0).tolist()))


def _box_of(truth: np.ndarray, prediction: np.ndarray) -> list[int]:
    flat = np.any(truth, axis=(0, 1)) | np.any(prediction, axis=(0, 1))
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
