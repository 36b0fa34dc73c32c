"""Post-processing, from a label's probabilities to its mask.

The steps are, in this order: smooth across slices, threshold, fill holes, remove small components, keep the largest
component, remove slices far from the others. Volumes are measured after holes are filled, and small components are
removed first so that they cannot bridge a gap.

`gitseg_tf.export.postprocess` implements the same steps as TensorFlow operations; tests/export/test_graph.py checks
that both agree. The NumPy and SciPy implementation is kept for speed: on a mask of 80 x 160 x 160 voxels, all steps but
smoothing take a fifth of the CPU time of the graph (0.10 s instead of 0.49 s).
"""

from collections.abc import Sequence

import cv2
import numpy as np
from scipy import ndimage

from gitseg_tf.config import Config
from gitseg_tf.config.postprocess import LabelPostprocess
from gitseg_tf.data.masks import bounding_box

_TOUCHING = np.ones((3, 3, 3), bool)


def label_settings(config: Config) -> list[LabelPostprocess]:
    """List the post-processing of each label, with evaluation.threshold for labels without their own threshold.

    Raises:
        ConfigError: a section for a label that the config does not have, or a config without labels.
    """
    labels = config.label_set
    config.postprocess.check_labels(labels)
    return [with_threshold(config.postprocess.of(name), config.evaluation.threshold) for name in labels.names]


def with_threshold(settings: LabelPostprocess, default: float) -> LabelPostprocess:
    """Fill in the default threshold if a label's settings have none."""
    return settings if settings.threshold is not None else settings.model_copy(update={"threshold": default})


def postprocess(
    probabilities: np.ndarray, settings: Sequence[LabelPostprocess], numbers: Sequence[int], spacing: Sequence[float]
) -> np.ndarray:
    """Apply all steps to all labels. Besides the result, this takes at most three float32 per voxel of one label.

    Args:
        probabilities: float32 [L, D, H, W].
        settings: settings of each label, with thresholds, from `label_settings`.
        numbers: int [D], the slice numbers in ascending order.
        spacing: (z, y, x) in mm.

    Returns:
        bool [L, D, H, W].
    """
    masks = np.empty(probabilities.shape, bool)
    for k, steps in enumerate(settings):
        masks[k] = label_mask(probabilities[k], steps, numbers, spacing)
    return masks


def label_mask(
    probabilities: np.ndarray, settings: LabelPostprocess, numbers: Sequence[int], spacing: Sequence[float]
) -> np.ndarray:
    """Apply all steps to one label.

    Args:
        probabilities: float32 [D, H, W].
        settings: settings of the label, with a threshold.
        numbers: int [D], the slice numbers in ascending order.
        spacing: (z, y, x) in mm.

    Returns:
        bool [D, H, W].
    """
    threshold = settings.threshold
    if threshold is None:
        raise ValueError("threshold is missing; take the settings from label_settings")
    if not settings.smooth_mm:
        return clean_mask(probabilities >= threshold, settings, spacing)
    # A weighted mean across slices never exceeds their maximum, so other columns cannot reach the threshold.
    box = columns_reaching(probabilities, threshold)
    smooth = smooth_across_slices(probabilities[box], numbers, spacing[0], settings.smooth_mm)
    mask = np.zeros(probabilities.shape, bool)
    mask[box] = smooth >= threshold
    return clean_mask(mask, settings, spacing)


def clean_mask(mask: np.ndarray, settings: LabelPostprocess, spacing: Sequence[float]) -> np.ndarray:
    """Apply the steps after the threshold to one label, within the mask's bounding box.

    Args:
        mask: bool [D, H, W].
        settings: settings of the label; threshold and smoothing are not used.
        spacing: (z, y, x) in mm.

    Returns:
        bool [D, H, W]; the mask itself if every step is off.
    """
    if not (settings.fill_holes or settings.min_component_ml or settings.keep_largest_component or settings.max_gap_mm):
        return mask
    box = bounding_box(mask)
    inside = mask[box]
    if settings.fill_holes:
        inside = fill_holes(inside)
    inside = remove_small_components(inside, spacing, settings.min_component_ml)
    if settings.keep_largest_component:
        inside = keep_largest_component(inside)
    inside = remove_far_slices(inside, spacing[0], settings.max_gap_mm)
    cleaned = np.zeros(mask.shape, bool)
    cleaned[box] = inside
    return cleaned


def smooth_across_slices(
    probabilities: np.ndarray, numbers: Sequence[int], thickness: float, sigma_mm: float
) -> np.ndarray:
    """Average each voxel with those above and below it, with Gaussian weights.

    The weights of a slice sum to 1 over the existing slices, so that values do not drop at the ends of the scan. Slices
    beyond a gap in the numbers are excluded.

    Args:
        probabilities: float32 [D, H, W].
        numbers: int [D], the slice numbers in ascending order.
        thickness: distance in mm between slices with successive numbers.
        sigma_mm: standard deviation of the Gaussian in mm; 0 changes nothing.

    Returns:
        float32 [D, H, W].
    """
    if not sigma_mm:
        return probabilities
    positions = np.asarray(numbers)
    run = np.cumsum(np.diff(positions, prepend=positions[:1]) > 1)
    distance = (positions[:, None] - positions) * float(thickness)
    weights = np.exp(-0.5 * (distance / sigma_mm) ** 2) * (run[:, None] == run)
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return (weights @ probabilities.reshape(len(numbers), -1)).reshape(probabilities.shape)


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Fill holes slice by slice.

    Args:
        mask: bool [D, H, W].

    Returns:
        bool [D, H, W], including the background that is not edge-connected to the border of its slice.
    """
    filled = mask.copy()
    for z in np.flatnonzero(mask.any((1, 2))):
        plane = np.pad(mask[z].astype(np.uint8), 1)
        cv2.floodFill(plane, None, (0, 0), 2)
        filled[z] = plane[1:-1, 1:-1] != 2
    return filled


def remove_small_components(mask: np.ndarray, spacing: Sequence[float], min_component_ml: float) -> np.ndarray:
    """Remove 3-D components below a volume. Voxels that share a face, an edge or a corner are connected.

    Args:
        mask: bool [D, H, W].
        spacing: (z, y, x) in mm.
        min_component_ml: the smallest volume to keep, in ml; 0 removes nothing.

    Returns:
        bool [D, H, W]; empty if all components are smaller.
    """
    if not min_component_ml:
        return mask
    numbered, volumes = _components(mask)
    # The margin allows for rounding: a component of exactly this volume is kept.
    return _voxels_of(
        numbered, volumes * (float(np.prod(spacing, dtype=float)) / 1000) >= min_component_ml * (1 - 1e-6)
    )


def keep_largest_component(mask: np.ndarray) -> np.ndarray:
    """Remove all 3-D components but the largest, connected as in `remove_small_components`.

    Args:
        mask: bool [D, H, W].

    Returns:
        bool [D, H, W]; among equally large components the one with the first voxel is kept.
    """
    numbered, volumes = _components(mask)
    return _voxels_of(numbered, np.arange(len(volumes)) == volumes.argmax()) if volumes.size else mask


def remove_far_slices(mask: np.ndarray, thickness: float, max_gap_mm: float) -> np.ndarray:
    """Remove slices far from the others with the label, where false positives increase the Hausdorff distance most.

    Slices with the label that are at most max_gap_mm apart form a group, and the group with the most voxels is kept.
    The distance is measured in slices of the scan, as in the competition's score; missing numbers are ignored.

    Args:
        mask: bool [D, H, W].
        thickness: slice thickness in mm.
        max_gap_mm: the largest distance in mm between two slices of a group; 0 removes nothing.

    Returns:
        bool [D, H, W].
    """
    voxels = np.count_nonzero(mask, axis=(1, 2))
    occupied = np.flatnonzero(voxels)
    if not max_gap_mm or not occupied.size:
        return mask
    # The margin allows for rounding, such as with a thickness of 3.3.
    groups = np.split(occupied, np.flatnonzero(np.diff(occupied) * float(thickness) > max_gap_mm * (1 + 1e-6)) + 1)
    kept = max(groups, key=lambda group: voxels[group].sum())
    near = np.zeros(mask.shape, bool)
    near[kept] = mask[kept]
    return near


def columns_reaching(probabilities: np.ndarray, threshold: float) -> tuple[slice, slice, slice]:
    """Find the box, over all slices, of the columns [:, y, x] that contain a voxel at or above a threshold.

    Args:
        probabilities: float32 or bool [D, H, W].
        threshold: the minimum probability.

    Returns:
        Three slices; if there is no such column, the last two are empty.
    """
    rows, columns = bounding_box(probabilities.max(0) >= threshold)
    return slice(None), rows, columns


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label components with numbers from 1, int32 [D, H, W], and count the voxels of each."""
    numbered, count = ndimage.label(mask, _TOUCHING)
    return numbered, np.bincount(numbered.ravel(), minlength=count + 1)[1:]


def _voxels_of(numbered: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return np.concatenate([[False], kept])[numbered]
