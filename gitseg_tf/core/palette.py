"""A color palette for any number of labels."""

import functools
import itertools

import numpy as np


@functools.cache
def palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """Choose colors that remain distinguishable with common color vision deficiencies and stand out on gray images.

    The first six are the bright colors of Okabe and Ito (https://jfly.uni-koeln.de/color/), with a lighter green. Each
    further one is the grid color farthest in Oklab from all before it under normal vision, protanopia and deuteranopia.

    Args:
        count: the number of colors.

    Returns:
        (red, green, blue) tuples, each value from 0 to 255; palette(n) begins with palette(n - 1).

    Example:
        >>> palette(2)
        ((230, 159, 0), (86, 180, 233))
    """
    first = [(230, 159, 0), (86, 180, 233), (0, 214, 150), (204, 121, 167), (240, 228, 66), (213, 94, 0)]
    levels = (0, 40, 80, 120, 160, 200, 230, 255)
    candidates = np.array(list(itertools.product(levels, repeat=3)), float)
    seen = _as_seen(candidates)
    bright = seen[0][:, 0] > 0.55
    candidates, seen = candidates[bright], seen[:, bright]
    gray = np.ptp(candidates, axis=1) < 60  # looks like tissue
    chosen = first[:count]
    distance = np.full(len(candidates), np.inf)
    distance[gray] = -np.inf
    for color in chosen:
        distance = np.minimum(distance, _apart(seen, _as_seen(np.array([color], float))))
    while len(chosen) < count:
        best = int(distance.argmax())
        red, green, blue = map(int, candidates[best])
        chosen.append((red, green, blue))
        distance = np.minimum(distance, _apart(seen, seen[:, best : best + 1]))
        distance[best] = -np.inf
    return tuple(chosen)


# Linear RGB as seen with protanopia and deuteranopia: Viénot, Brettel and Mollon 1999, Color Research & Application 24,
# 243-252.
_PROTANOPIA = np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]])
_DEUTERANOPIA = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
# Oklab, https://bottosson.github.io/posts/oklab/
_TO_LMS = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
_TO_LAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]]
)  # fmt: skip


def _as_seen(colors: np.ndarray) -> np.ndarray:
    """Convert sRGB [N, 3] to Oklab [3, N, 3], as seen with normal vision, protanopia and deuteranopia."""
    share = colors / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    views = [linear, *(np.clip(linear @ matrix.T, 0, 1) for matrix in (_PROTANOPIA, _DEUTERANOPIA))]
    return np.stack([np.cbrt(view @ _TO_LMS.T) @ _TO_LAB.T for view in views])


def _apart(seen: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Return the distance of each color [3, N, 3] from one color [3, 1, 3], the smallest over the three visions."""
    return np.linalg.norm(seen - one, axis=2).min(0)
