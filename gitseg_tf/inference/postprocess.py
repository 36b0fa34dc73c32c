"""From an organ's probabilities to its mask, without what cannot be the organ.

The steps, in this order: smoothing across slices, threshold, holes, small components, all but the largest component,
slices far from the others. Volumes are measured after holes are filled, and a speck that is gone cannot bridge a gap.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from scipy import ndimage

from gitseg_tf.config import Config
from gitseg_tf.data.masks import bounding_box
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.sections.postprocess import OrganConfig

_TOUCHING = np.ones((3, 3, 3), bool)


def organ_settings(config: Config) -> list[OrganConfig]:
    """The section `postprocess`, organs in the order of ORGANS, with evaluation.threshold where an organ has no own."""
    return [with_threshold(getattr(config.postprocess, organ), config.evaluation.threshold) for organ in ORGANS]


def with_threshold(settings: OrganConfig, default: float) -> OrganConfig:
    """An organ's settings with a threshold: its own, or else the default."""
    return settings if settings.threshold is not None else settings.model_copy(update={"threshold": default})


def postprocess(
    probabilities: np.ndarray, settings: Sequence[OrganConfig], numbers: Sequence[int], spacing: Sequence[float]
) -> np.ndarray:
    """All steps for all organs. Memory: besides probabilities and masks, at most three float32 of one organ a voxel.

    Args:
        probabilities: float32 [3, D, H, W].
        settings: of each organ, with thresholds, as `organ_settings` gives.
        numbers: int [D], the slices' numbers, rising.
        spacing: (z, y, x) in mm.

    Returns:
        bool [3, D, H, W].
    """
    masks = np.empty(probabilities.shape, bool)
    for k, organ in enumerate(settings):
        masks[k] = organ_mask(probabilities[k], organ, numbers, spacing)
    return masks


def organ_mask(
    probabilities: np.ndarray, settings: OrganConfig, numbers: Sequence[int], spacing: Sequence[float]
) -> np.ndarray:
    """All steps for one organ.

    Args:
        probabilities: float32 [D, H, W].
        settings: with a threshold.
        numbers: int [D], the slices' numbers, rising.
        spacing: (z, y, x) in mm.

    Returns:
        bool [D, H, W].
    """
    if not settings.smooth_mm:
        return clean_mask(probabilities >= settings.threshold, settings, spacing)
    # A weighted mean across slices is nowhere above the highest of them: other columns cannot reach the threshold.
    box = columns_reaching(probabilities, settings.threshold)
    smooth = smooth_across_slices(probabilities[box], numbers, spacing[0], settings.smooth_mm)
    mask = np.zeros(probabilities.shape, bool)
    mask[box] = smooth >= settings.threshold
    return clean_mask(mask, settings, spacing)


def clean_mask(mask: np.ndarray, settings: OrganConfig, spacing: Sequence[float]) -> np.ndarray:
    """The steps behind the threshold for one organ, within the mask's bounding box.

    Args:
        mask: bool [D, H, W].
        settings: their threshold and smoothing are not looked at.
        spacing: (z, y, x) in mm.

    Returns:
        bool [D, H, W]; the mask itself where no step is on.
    """
    if not (settings.fill_holes or settings.smallest_ml or settings.largest_only or settings.gap_mm):
        return mask
    box = bounding_box(mask)
    inside = mask[box]
    if settings.fill_holes:
        inside = fill_holes(inside)
    inside = remove_small_components(inside, spacing, settings.smallest_ml)
    if settings.largest_only:
        inside = keep_largest_component(inside)
    inside = remove_far_slices(inside, spacing[0], settings.gap_mm)
    cleaned = np.zeros(mask.shape, bool)
    cleaned[box] = inside
    return cleaned


def smooth_across_slices(
    probabilities: np.ndarray, numbers: Sequence[int], thickness: float, sigma_mm: float
) -> np.ndarray:
    """Average each voxel with those above and below it, with Gaussian weights.

    The weights of a slice sum to 1 over the slices that there are: nothing darkens at the ends of the scan. Slices
    behind a gap in the numbers do not count.

    Args:
        probabilities: float32 [D, H, W].
        numbers: int [D], the slices' numbers, rising.
        thickness: distance of slices with successive numbers, mm.
        sigma_mm: standard deviation of the Gaussian, mm; 0 changes nothing.

    Returns:
        float32 [D, H, W].
    """
    if not sigma_mm:
        return probabilities
    numbers = np.asarray(numbers)
    run = np.cumsum(np.diff(numbers, prepend=numbers[:1]) > 1)
    distance = (numbers[:, None] - numbers) * float(thickness)
    weights = np.exp(-0.5 * (distance / sigma_mm) ** 2) * (run[:, None] == run)
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return (weights @ probabilities.reshape(len(numbers), -1)).reshape(probabilities.shape)


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Fill what an organ encloses in a slice.

    Args:
        mask: bool [D, H, W].

    Returns:
        bool [D, H, W]: also the background that no path over pixel edges joins to the border of its slice.
    """
    filled = mask.copy()
    for z in np.flatnonzero(mask.any((1, 2))):
        plane = np.pad(mask[z].astype(np.uint8), 1)
        cv2.floodFill(plane, None, (0, 0), 2)
        filled[z] = plane[1:-1, 1:-1] != 2
    return filled


def remove_small_components(mask: np.ndarray, spacing: Sequence[float], smallest_ml: float) -> np.ndarray:
    """Remove 3-D components below a volume. Voxels that share a face, an edge or a corner are of one component.

    Args:
        mask: bool [D, H, W].
        spacing: (z, y, x) in mm.
        smallest_ml: the smallest volume that stays, ml; 0 removes nothing.

    Returns:
        bool [D, H, W]; empty where all components are smaller.
    """
    if not smallest_ml:
        return mask
    labels, volumes = _components(mask)
    # The margin is for rounding: a component of just this volume stays.
    return _voxels_of(labels, volumes * (float(np.prod(spacing, dtype=float)) / 1000) >= smallest_ml * (1 - 1e-6))


def keep_largest_component(mask: np.ndarray) -> np.ndarray:
    """Remove all 3-D components, joined as in `remove_small_components`, but the largest.

    Args:
        mask: bool [D, H, W].

    Returns:
        bool [D, H, W]; of equally large components the one whose first voxel comes first.
    """
    labels, volumes = _components(mask)
    return _voxels_of(labels, np.arange(len(volumes)) == volumes.argmax()) if volumes.size else mask


def remove_far_slices(mask: np.ndarray, thickness: float, gap_mm: float) -> np.ndarray:
    """Remove slices that are far from the others with the organ: a false positive there costs the most Hausdorff.

    Slices with organ that are at most gap_mm apart are of one group. The group with the most voxels stays. The distance
    is counted in slices of the scan, as the competition's score counts it; numbers that are missing take no room.

    Args:
        mask: bool [D, H, W].
        thickness: of a slice, mm.
        gap_mm: the longest way from a slice with organ to the next that leaves both in one group, mm; 0 removes
            nothing.

    Returns:
        bool [D, H, W].
    """
    voxels = np.count_nonzero(mask, axis=(1, 2))
    occupied = np.flatnonzero(voxels)
    if not gap_mm or not occupied.size:
        return mask
    # The margin is for rounding, as of a thickness of 3.3.
    groups = np.split(occupied, np.flatnonzero(np.diff(occupied) * float(thickness) > gap_mm * (1 + 1e-6)) + 1)
    kept = max(groups, key=lambda group: voxels[group].sum())
    near = np.zeros(mask.shape, bool)
    near[kept] = mask[kept]
    return near


def columns_reaching(probabilities: np.ndarray, threshold: float) -> tuple[slice, slice, slice]:
    """The box of all slices that holds every column [:, y, x] with a voxel at or above a threshold.

    Args:
        probabilities: float32, or a bool mask, [D, H, W].
        threshold: the least probability.

    Returns:
        Three slices; of no extent where there is no such column.
    """
    return (slice(None), *bounding_box(probabilities.max(0) >= threshold))


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels from 1, int32 [D, H, W], and the number of voxels of each label."""
    labels, count = ndimage.label(mask, _TOUCHING)
    return labels, np.bincount(labels.ravel(), minlength=count + 1)[1:]


def _voxels_of(labels: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return np.concatenate([[False], kept])[labels]
