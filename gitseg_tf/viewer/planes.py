"""Planes through a scan in radiological orientation."""

import numpy as np

from gitseg_tf.data.volume import Volume

PLANES = ("axial", "coronal", "sagittal")


def describe(volume: Volume) -> dict[str, dict]:
    """Describe the images of each plane.

    Args:
        volume: the volume of a scan.

    Returns:
        Plane to count (of images), width and height in pixels, and mm: (width, height) of a pixel.
    """
    (depth, height, width), (z, y, x) = volume.shape, volume.spacing
    rows = _row_indices(volume.numbers)[-1] + 1
    return {
        "axial": {"count": depth, "width": width, "height": height, "mm": (x, y)},
        "coronal": {"count": height, "width": width, "height": int(rows), "mm": (x, z)},
        "sagittal": {"count": width, "width": height, "height": int(rows), "mm": (y, z)},
    }


def cut(volume: np.ndarray, numbers: tuple[int, ...], plane: str, index: int, *, fill: float = 0) -> np.ndarray:
    """Cut a plane out of a volume.

    Args:
        volume: [D, H, W].
        numbers: slice numbers in ascending order; missing slices become rows of the fill value in coronal and sagittal
            planes.
        plane: one of PLANES.
        index: index of the image, from 0: slice, row or column of the volume.
        fill: value of the rows of missing slices.

    Returns:
        Contiguous array [rows, columns] of the volume's dtype: axial images are slices; coronal images have the head
        at the top and the patient's right on the left; sagittal images have the head at the top and anterior on the
        left.

    Raises:
        IndexError: no such image.
    """
    axis = PLANES.index(plane)
    if not 0 <= index < volume.shape[axis]:
        raise IndexError(f"{plane} has pictures 0 to {volume.shape[axis] - 1}, not {index}")
    picture = volume.take(index, axis)
    if axis == 0:
        return picture
    rows = _row_indices(numbers)
    whole = np.full((rows[-1] + 1, picture.shape[1]), fill, volume.dtype)
    whole[rows] = picture
    return whole


def _row_indices(numbers: tuple[int, ...]) -> np.ndarray:
    return np.asarray(numbers) - numbers[0]
