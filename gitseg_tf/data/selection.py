"""Select and reorder the labels of an annotation."""

import numpy as np

from gitseg_tf.data.volume import Annotation
from gitseg_tf.labels import LabelSet


def select_labels(annotation: Annotation, own: LabelSet, wanted: LabelSet) -> Annotation:
    """Select labels of an annotation.

    Args:
        annotation: the annotation of a scan.
        own: the labels of the annotation.
        wanted: labels in the order of the result, matched by their names and aliases; a label without a match becomes
            unannotated.

    Returns:
        The annotation of the wanted labels; the same object if both label sets have the same names.

    Example:
        >>> masks = np.zeros((2, 1, 2, 2), bool)
        >>> masks[1] = True
        >>> own, wanted = LabelSet.of("liver", "spleen"), LabelSet.of("spleen", "eye")
        >>> selected = select_labels(Annotation.complete(masks), own, wanted)
        >>> selected.masks.any(axis=(1, 2, 3)).tolist(), selected.annotated.tolist()
        ([True, False], [True, False])
    """
    if own.names == wanted.names:
        return annotation
    matches = [own.match(label.name) for label in wanted]
    indices = [None if match is None else own.index(match.name) for match in matches]
    masks = np.zeros((len(wanted), *annotation.masks.shape[1:]), bool)
    annotated = np.zeros(len(wanted), bool)
    for k, index in enumerate(indices):
        if index is not None:
            masks[k], annotated[k] = annotation.masks[index], annotation.annotated[index]
    return Annotation(masks, annotated, annotation.ignore)
