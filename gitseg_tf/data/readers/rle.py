"""Encode and decode masks in the competition's run-length format."""

import numpy as np

from gitseg_tf.errors import DataError


class RleError(DataError):
    """A string is not a valid run-length encoding of a mask of the given shape."""


def rle_to_mask(rle: str, shape: tuple[int, int]) -> np.ndarray:
    """Decode a competition run-length string into a boolean mask.

    Args:
        rle: "start length start length ...", 1-based over the row-major flattened mask; "" is an empty mask.
        shape: (height, width) in pixels.

    Returns:
        bool array [height, width].

    Raises:
        RleError: an odd number of values, a run that leaves the image or overlaps the previous one.

    Example:
        >>> rle_to_mask("2 3", (2, 3)).astype(int).tolist()
        [[0, 1, 1], [1, 0, 0]]
    """
    height, width = shape
    try:
        numbers = np.array(rle.split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise RleError(f"run-length string {_short(rle)} contains something other than integers") from error
    if numbers.size % 2:
        raise RleError(f"run-length string {_short(rle)} has an odd number of values ({numbers.size})")
    starts, lengths = numbers[0::2] - 1, numbers[1::2]
    _check_runs(rle, starts, lengths, shape)
    ends = starts + lengths
    gaps = np.concatenate([starts, [height * width]]) - np.concatenate([[0], ends])
    spans = np.empty(2 * starts.size + 1, np.int64)
    spans[0::2], spans[1::2] = gaps, lengths
    return np.repeat(np.arange(spans.size) % 2 == 1, spans).reshape(height, width)


def _check_runs(rle, starts, lengths, shape) -> None:
    if (lengths < 1).any():
        raise RleError(f"run-length string {_short(rle)} has a run of length {lengths.min()}")
    size = shape[0] * shape[1]
    # Compare without adding, because start + length may overflow an int64.
    outside = (starts < 0) | (starts >= size) | (lengths > size - starts)
    if outside.any():
        at = int(np.argmax(outside))
        raise RleError(
            f"run-length string {_short(rle)}: run {at + 1} (start {starts[at] + 1}, length {lengths[at]}) leaves the "
            f"image, {shape[0]} x {shape[1]} pixels numbered 1 to {size}"
        )
    early = starts[1:] < starts[:-1] + lengths[:-1]
    if early.any():
        at = int(np.argmax(early))
        raise RleError(f"run-length string {_short(rle)}: run {at + 2} starts before run {at + 1} ends")


def _short(rle: str) -> str:
    return repr(rle if len(rle) <= 40 else rle[:37] + "...")


def mask_to_rle(mask: np.ndarray) -> str:
    """Encode a mask as a competition run-length string.

    Args:
        mask: [height, width], bool or numeric; nonzero is inside.

    Returns:
        "start length ...", 1-based over the row-major flattened mask, runs sorted and disjoint; "" for an empty mask.

    Example:
        >>> mask_to_rle(np.array([[0, 1, 1], [1, 0, 0]]))
        '2 3'
    """
    flat = np.zeros(mask.size + 2, bool)
    flat[1:-1] = np.ravel(mask) != 0
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.empty(edges.size, np.int64)
    runs[0::2] = edges[0::2] + 1
    runs[1::2] = edges[1::2] - edges[0::2]
    return " ".join(map(str, runs.tolist()))
