"""Geometric operations on masks."""

import numpy as np


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Find the bounding box of a mask.

    Args:
        mask: bool array with at least one axis.

    Returns:
        One slice per axis; all empty for an empty mask.
    """
    occupied = np.flatnonzero(mask.reshape(len(mask), -1).any(1)) if mask.size else mask
    if not occupied.size:
        return (slice(0, 0),) * mask.ndim
    first, stop = int(occupied[0]), int(occupied[-1]) + 1
    return (slice(first, stop), *(bounding_box(np.any(mask[first:stop], axis=0)) if mask.ndim > 1 else ()))
