"""Planes through a scan, as they are looked at."""

import numpy as np

from gitseg_tf.viewer.library import Voxels

PLANES = ("axial", "coronal", "sagittal")


def describe(voxels: Voxels) -> dict[str, dict]:
    """The size of each plane's pictures.

    Args:
        voxels: of a scan.

    Returns:
        Plane to count (of pictures), width and height in pixels, and mm: (width, height) of a pixel.
    """
    (depth, height, width), (z, y, x) = voxels.image.shape, voxels.spacing
    rows = _place(voxels.numbers)[-1] + 1
    return {
        "axial": {"count": depth, "width": width, "height": height, "mm": (x, y)},
        "coronal": {"count": height, "width": width, "height": int(rows), "mm": (x, z)},
        "sagittal": {"count": width, "width": height, "height": int(rows), "mm": (y, z)},
    }


def cut(volume: np.ndarray, numbers: tuple[int, ...], plane: str, index: int) -> np.ndarray:
    """Cut a plane out of a volume.

    Args:
        volume: [D, H, W].
        numbers: of the slices, rising; slices that are left out are rows of zeros in coronal and sagittal planes.
        plane: of PLANES.
        index: of the picture, from 0: slice, row or column of the volume.

    Returns:
        Array [rows, columns] of the volume's dtype, contiguous: axial ones as the slices are; coronal ones with the
        head above, the patient's right on the left; sagittal ones with the head above, anterior on the left.

    Raises:
        IndexError: no such picture.
    """
    axis = PLANES.index(plane)
    if not 0 <= index < volume.shape[axis]:
        raise IndexError(f"{plane} has pictures 0 to {volume.shape[axis] - 1}, not {index}")
    picture = volume.take(index, axis)
    if axis == 0:
        return picture
    place = _place(numbers)
    whole = np.zeros((place[-1] + 1, picture.shape[1]), volume.dtype)
    whole[place] = picture
    return whole


def organs_shown(bits: np.ndarray) -> dict[str, list[int]]:
    """Which organs each picture shows.

    Args:
        bits: uint8 [D, H, W], bit k is organ k.

    Returns:
        Plane to the organs of each of its pictures, as bits.
    """
    over_rows = np.bitwise_or.reduce(bits, axis=1)
    return {
        "axial": np.bitwise_or.reduce(over_rows, axis=1).tolist(),
        "coronal": np.bitwise_or.reduce(np.bitwise_or.reduce(bits, axis=0), axis=1).tolist(),
        "sagittal": np.bitwise_or.reduce(over_rows, axis=0).tolist(),
    }


def _place(numbers: tuple[int, ...]) -> np.ndarray:
    return np.asarray(numbers) - numbers[0]
