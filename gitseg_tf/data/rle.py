"""The competition's run-length encoding of masks, both ways."""

import numpy as np

from gitseg_tf.errors import InputError


class RleError(InputError):
    """A string that is not a run-length encoding of a mask of the given shape."""


def rle_to_mask(rle: str, shape: tuple[int, int]) -> np.ndarray:
    """Decode a competition run-length string into a boolean mask.

    Args:
        rle: "start length start length ...", 1-based over the row-major flattened mask; "" is an empty mask.
        shape: (height, width) in pixels.

    Returns:
        bool array [height, width].

    Raises:
        RleError: an odd count of numbers, a run that leaves the image or overlaps the one before it.
    """
    height, width = shape
    try:
        numbers = np.array(rle.split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise RleError(f"run-length string {_short(rle)} holds something that is no whole number") from error
    if numbers.size % 2:
        raise RleError(f"run-length string {_short(rle)} has an odd count of numbers ({numbers.size})")
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
    # The end of a run is not computed here: start + length may be more than an int64 holds.
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
        raise RleError(f"run-length string {_short(rle)}: run {at + 2} starts before run {at + 1} has ended")


def _short(rle: str) -> str:
    return repr(rle if len(rle) <= 40 else rle[:37] + "...")


def mask_to_rle(mask: np.ndarray) -> str:
    """Encode a mask as a competition run-length string.

    Args:
        mask: [height, width], bool or numeric; anything that is not zero is inside.

    Returns:
        "start length ...", 1-based over the row-major flattened mask, runs in order and apart; "" for an empty mask.
    """
    flat = np.zeros(mask.size + 2, bool)
    flat[1:-1] = np.ravel(mask) != 0
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.empty(edges.size, np.int64)
    runs[0::2] = edges[0::2] + 1
    runs[1::2] = edges[1::2] - edges[0::2]
    return " ".join(map(str, runs.tolist()))
