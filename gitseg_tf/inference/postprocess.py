"""Post-processing, from a label's probabilities to its mask.

The steps are, in this order: smooth across slices, threshold, remove slices without presence, fill single missing
slices, fill holes, remove small components, keep the largest component, remove short runs of slices, remove slices far
from the others. A missing slice is filled before runs are counted, volumes are measured after holes are filled, and
small components and short runs are removed before the last step so that they cannot bridge a gap.

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
    probabilities: np.ndarray,
    settings: Sequence[LabelPostprocess],
    numbers: Sequence[int],
    spacing: Sequence[float],
    *,
    presence: np.ndarray | None = None,
) -> np.ndarray:
    """Apply all steps to all labels. Besides the result, this takes at most three float32 per voxel of one label.

    Args:
        probabilities: float32 [L, D, H, W].
        settings: settings of each label, with thresholds, from `label_settings`.
        numbers: int [D], the slice numbers in ascending order.
        spacing: (z, y, x) in mm.
        presence: float32 [L, D], the probability that the slice shows the label; needed if a label has min_presence.

    Returns:
        bool [L, D, H, W].
    """
    masks = np.empty(probabilities.shape, bool)
    for k, steps in enumerate(settings):
        of_label = None if presence is None else presence[k]
        masks[k] = label_mask(probabilities[k], steps, numbers, spacing, presence=of_label)
    return masks


def label_mask(
    probabilities: np.ndarray,
    settings: LabelPostprocess,
    numbers: Sequence[int],
    spacing: Sequence[float],
    *,
    presence: np.ndarray | None = None,
) -> np.ndarray:
    """Apply all steps to one label.

    Args:
        probabilities: float32 [D, H, W].
        settings: settings of the label, with a threshold.
        numbers: int [D], the slice numbers in ascending order.
        spacing: (z, y, x) in mm.
        presence: float32 [D], as for `postprocess`.

    Returns:
        bool [D, H, W].
    """
    threshold = settings.threshold
    if threshold is None:
        raise ValueError("threshold is missing; take the settings from label_settings")
    if not settings.smooth_mm:
        mask = probabilities >= threshold
        return clean_mask(remove_absent(mask, presence, settings.min_presence), settings, numbers, spacing)
    # A weighted mean across slices never exceeds their maximum, so other columns cannot reach the threshold.
    box = columns_reaching(probabilities, threshold)
    smooth = smooth_across_slices(probabilities[box], numbers, spacing[0], settings.smooth_mm)
    mask = np.zeros(probabilities.shape, bool)
    mask[box] = smooth >= threshold
    return clean_mask(remove_absent(mask, presence, settings.min_presence), settings, numbers, spacing)


def remove_absent(mask: np.ndarray, presence: np.ndarray | None, min_presence: float) -> np.ndarray:
    """Remove a label from the slices that do not show it according to the presence head.

    Args:
        mask: bool [D, H, W].
        presence: float32 [D], the probability that the slice shows the label; needed if min_presence is above 0.
        min_presence: the lowest probability to keep; 0 removes nothing.

    Returns:
        bool [D, H, W].
    """
    if not min_presence:
        return mask
    if presence is None:
        raise ValueError("presence is missing; pass the probabilities of the presence head")
    return mask & (presence >= np.float32(min_presence))[:, None, None]


def is_cleaned(settings: LabelPostprocess) -> bool:
    """Check whether `clean_mask` changes anything."""
    steps = settings.fill_single_gaps, settings.fill_holes, settings.min_component_ml, settings.keep_largest_component
    return any((*steps, settings.min_adjacent_slices > 1, settings.max_gap_mm))


def clean_mask(
    mask: np.ndarray, settings: LabelPostprocess, numbers: Sequence[int], spacing: Sequence[float]
) -> np.ndarray:
    """Apply the steps after the threshold and the presence to one label, within the mask's bounding box.

    Args:
        mask: bool [D, H, W].
        settings: settings of the label; smoothing, threshold and presence are not used.
        numbers: int [D], the slice numbers in ascending order.
        spacing: (z, y, x) in mm.

    Returns:
        bool [D, H, W]; the mask itself if every step is off.
    """
    if not is_cleaned(settings):
        return mask
    box = bounding_box(mask)
    inside, known = mask[box], np.asarray(numbers)[box[0]]
    if settings.fill_single_gaps:
        inside = fill_single_gaps(inside, known)
    if settings.fill_holes:
        inside = fill_holes(inside)
    inside = remove_small_components(inside, spacing, settings.min_component_ml)
    if settings.keep_largest_component:
        inside = keep_largest_component(inside)
    inside = remove_short_runs(inside, known, settings.min_adjacent_slices)
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


def fill_single_gaps(mask: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Fill a slice without the label between two adjacent slices with it: with the voxels inside in both neighbors.

    Args:
        mask: bool [D, H, W].
        numbers: int [D], the slice numbers in ascending order; a slice that the scan lacks separates its neighbors.

    Returns:
        bool [D, H, W].
    """
    empty = ~mask[1:-1].any((1, 2)) & (numbers[2:] - numbers[:-2] == 2)
    gaps = np.flatnonzero(empty) + 1
    filled = mask.copy()
    filled[gaps] = mask[gaps - 1] & mask[gaps + 1]
    return filled


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


def remove_short_runs(mask: np.ndarray, numbers: np.ndarray, min_slices: int) -> np.ndarray:
    """Remove a label from slices that belong to a short run: adjacent slices, by their numbers, that all show it.

    Args:
        mask: bool [D, H, W].
        numbers: int [D], the slice numbers in ascending order; a slice that the scan lacks ends a run.
        min_slices: the length of the shortest run to keep; 0 and 1 remove nothing.

    Returns:
        bool [D, H, W].
    """
    occupied = np.flatnonzero(mask.any((1, 2)))
    if min_slices < 2 or not occupied.size:
        return mask
    kept = np.zeros(mask.shape, bool)
    for run in np.split(occupied, np.flatnonzero(np.diff(numbers[occupied]) > 1) + 1):
        if len(run) >= min_slices:
            kept[run] = mask[run]
    return kept


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
