"""Pairs of masks for tests of scores, built with integers only so that they are the same on every machine."""

import numpy as np
from scipy import ndimage

SHAPE = (18, 40, 44)
SPACING = (3.0, 1.5, 1.25)


def bowel():
    """A bent tube with a side branch, a hole and a separate piece."""
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    tube = 4 * (z - 8) ** 2 + (y - 18 - (x - 20) ** 2 // 40) ** 2 <= 60
    tube = tube & (x > 6) & (x < 36)
    branch = (z - 8) ** 2 * 3 + (x - 14) ** 2 <= 20
    branch = branch & (y > 8) & (y < 18)
    hole = (z - 8) ** 2 + (y - 19) ** 2 + (x - 24) ** 2 <= 4
    piece = (z - 13) ** 2 * 4 + (y - 33) ** 2 + (x - 8) ** 2 <= 16
    return (tube | branch | piece) & ~hole


def pairs():
    """{what: (truth, prediction)}, of shape `SHAPE`."""
    truth = bowel()
    touching = np.zeros(SHAPE, bool)
    touching[:6, :14, 30:] = True
    blob = truth.copy()
    blob[1:4, 2:6, 38:42] = True
    speckle = truth ^ (np.add.outer(np.add.outer(np.arange(18) * 7, np.arange(40) * 11), np.arange(44) * 13) % 101 == 0)
    return {
        "shifted": (truth, np.roll(truth, (1, 2, -3), (0, 1, 2))),
        "eroded": (truth, ndimage.binary_erosion(truth)),
        "dilated": (truth, ndimage.binary_dilation(truth, iterations=2)),
        "blob added": (truth, blob),
        "far apart": (truth & (np.arange(44) < 15), truth & (np.arange(44) > 30)),
        "touching the border": (touching, np.roll(touching, (-1, -3, 2), (0, 1, 2))),
        "full": (np.ones(SHAPE, bool), truth),
        "one voxel": (truth, (np.arange(np.prod(SHAPE)) == 20000).reshape(SHAPE)),
        "speckle": (truth, speckle),
    }
