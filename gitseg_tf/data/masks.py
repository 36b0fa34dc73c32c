"""Where a mask is."""

import numpy as np


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Find the smallest box that holds all of a mask.

    Args:
        mask: bool array of one axis or more.

    Returns:
        A slice an axis; all of no extent for an empty mask.
    """
    occupied = np.flatnonzero(mask.reshape(len(mask), -1).any(1)) if mask.size else mask
    if not occupied.size:
        return (slice(0, 0),) * mask.ndim
    first, stop = int(occupied[0]), int(occupied[-1]) + 1
    return (slice(first, stop), *(bounding_box(mask[first:stop].any(0)) if mask.ndim > 1 else ()))
