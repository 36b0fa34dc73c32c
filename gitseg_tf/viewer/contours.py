"""The contours of a scan as the viewer stores and sends them: eight labels per byte."""

from dataclasses import dataclass

import numpy as np

from gitseg_tf.data.selection import select_labels
from gitseg_tf.data.volume import Annotation
from gitseg_tf.labels import LabelSet


@dataclass(frozen=True, eq=False)
class Contours:
    """The masks of a scan.

    Attributes:
        bits: uint8 [G, D, H, W] with G = ceil(L / 8): bit k % 8 of bits[k // 8] is label k.
        annotated: bool [L].
    """

    bits: np.ndarray
    annotated: np.ndarray

    @property
    def nbytes(self) -> int:
        """Size in memory in bytes."""
        return self.bits.nbytes


def pack_groups(masks: np.ndarray) -> np.ndarray:
    """Pack bool [L, D, H, W] into `Contours.bits`."""
    bits = np.zeros((-(-len(masks) // 8), *masks.shape[1:]), np.uint8)
    for k, mask in enumerate(masks):
        for z in np.flatnonzero(mask.any(axis=(1, 2))):
            bits[k // 8, z] |= mask[z].view(np.uint8) << (k % 8)
    return bits


def of_annotation(annotation: Annotation, own: LabelSet, wanted: LabelSet) -> Contours:
    """Convert the wanted labels of an annotation to contours.

    Args:
        annotation: the annotation of a scan.
        own: the labels of the annotation.
        wanted: the labels of the page, in order; a label without a match becomes unannotated.

    Returns:
        The contours.
    """
    selected = select_labels(annotation, own, wanted)
    return Contours(pack_groups(selected.masks), selected.annotated)


def labels_shown(bits: np.ndarray, count: int) -> dict[str, list[list[int]]]:
    """Find the labels that each image shows.

    Args:
        bits: uint8 [G, D, H, W], as in `Contours`.
        count: the number of labels.

    Returns:
        Plane to the indices of the labels in each of its images.
    """
    over_rows = np.bitwise_or.reduce(bits, axis=2)  # [G, D, W]
    of_planes = {
        "axial": np.bitwise_or.reduce(over_rows, axis=2),
        "coronal": np.bitwise_or.reduce(np.bitwise_or.reduce(bits, axis=1), axis=2),
        "sagittal": np.bitwise_or.reduce(over_rows, axis=1),
    }
    return {plane: [_set_bits(column, count) for column in shown.T] for plane, shown in of_planes.items()}


def _set_bits(column: np.ndarray, count: int) -> list[int]:
    return np.flatnonzero(np.unpackbits(column, bitorder="little")[:count]).tolist()
