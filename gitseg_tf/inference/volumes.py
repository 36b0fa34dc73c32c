"""Whole scans by a 3-D network: patches that overlap, blended with Gaussian weights."""

from collections.abc import Callable, Iterable, Iterator
from itertools import product

import numpy as np
import tensorflow as tf

from gitseg_tf.config import Config
from gitseg_tf.data.geometry import from_model, normalize, place, to_model, window_offsets
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.data.tiles import tile_slices, tile_starts

OVERLAP = 0.5
_LEAST_WEIGHT = 1e-3


def make_volume_function(
    probabilities: Callable, config: Config, finish: Callable
) -> Callable[[np.ndarray, list[int], np.ndarray, tuple], np.ndarray]:
    """Run a 3-D network over whole scans; see `make_scan_function`, whose interface this has.

    Memory: besides the scan, its input and probabilities at the model's size (20 bytes a voxel), and one batch.

    Args:
        probabilities: function from float32 patches [N, D, H, W, 1] to probabilities [N, D, H, W, 3].
        config: patch, size and batch size.
        finish: as in `make_scan_function`.

    Returns:
        Function of (image uint16 [D, H, W], slice numbers [D], percentiles float32 [11] of the scan, spacing
        (z, y, x) in mm) to [3, D, H, W] of what `finish` gives.
    """
    data, evaluation = config.data, config.evaluation

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None], tf.uint16),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None], tf.float32),
            tf.TensorSpec([3], tf.float32),
        ]
    )
    def prepare(image, numbers, percentiles, spacing):
        placement = place(image, percentiles, spacing, data)
        prepared = to_model(normalize(image, percentiles), placement, data.size)
        return prepared, placement, tile_slices(numbers, window_offsets(spacing, data), OVERLAP)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, *data.size, len(ORGANS)], tf.float32),
            {"box": tf.TensorSpec([4], tf.int32), "fitted": tf.TensorSpec([2], tf.int32)},
            tf.TensorSpec([2], tf.int32),
        ]
    )
    def at_own_size(found, placement, shape):
        return finish(from_model(found, placement, shape))

    patches = tf.TensorSpec([evaluation.batch_size, *data.patch, 1], tf.float32)
    network = tf.function(probabilities, input_signature=[patches])

    def over_scan(image, numbers, percentiles, spacing):
        depth, height, width = image.shape
        prepared, placement, slices = prepare(image, numbers, percentiles, spacing)
        found = blend(network, prepared.numpy(), slices.numpy(), data.patch, evaluation.batch_size)
        batches = batches_of(depth, evaluation.batch_size)
        planes = ((part, at_own_size(found[part], placement, (height, width)).numpy()) for part in batches)
        return organs_first(planes, image.shape)

    return over_scan


def batches_of(depth: int, batch_size: int) -> list[slice]:
    """A scan's slices in parts of up to batch_size."""
    return [slice(start, start + batch_size) for start in range(0, depth, batch_size)]


def organs_first(parts: Iterable[tuple[slice, np.ndarray]], shape: tuple[int, int, int]) -> np.ndarray:
    """Put the parts of a scan together.

    Args:
        parts: which slices, and what was found of them [N, H, W, 3]; together all slices.
        shape: (D, H, W) of the scan.

    Returns:
        [3, D, H, W] of the parts' dtype.
    """
    scan = None
    for part, planes in parts:
        if scan is None:
            scan = np.empty((len(ORGANS), *shape), planes.dtype)
        scan[:, part] = np.moveaxis(planes, -1, 0)
    return scan


def blend(
    network: Callable,
    volume: np.ndarray,
    slices: np.ndarray,
    patch: tuple[int, int, int],
    batch_size: int,
    overlap: float = OVERLAP,
) -> np.ndarray:
    """Run a network over a volume patch by patch, and average what it says of a voxel with `gaussian_weights`.

    Args:
        network: function from float32 [batch_size, D, H, W, 1] to float32 [batch_size, D, H, W, C].
        volume: float32 [depth, height, width], height and width at least the patch's.
        slices: int32 [T, D], which slices each row of patches holds, from `tile_slices`.
        patch: D, H, W.
        batch_size: patches in a call; the last call is filled up.
        overlap: share of height and width by which patches overlap, 0 to below 1.

    Returns:
        float32 [depth, height, width, C].
    """
    weights = gaussian_weights(patch)[..., None]
    blended, total = None, np.zeros((*volume.shape, 1), np.float32)
    for places in _batches(slices, volume.shape[1:], patch[1:], batch_size, overlap):
        batch = np.zeros((batch_size, *patch, 1), np.float32)
        for i, (rows, y, x) in enumerate(places):
            batch[i, ..., 0] = volume[rows, y, x]
        found = np.asarray(network(batch))
        if blended is None:
            blended = np.zeros((*volume.shape, found.shape[-1]), np.float32)
        for (rows, y, x), of_patch in zip(places, found, strict=False):
            weighted = of_patch * weights
            # One after the other: a slice may be in a patch more than once.
            for k, z in enumerate(rows):
                blended[z, y, x] += weighted[k]
                total[z, y, x] += weights[k]
    blended /= total
    return blended


def gaussian_weights(patch: tuple[int, int, int]) -> np.ndarray:
    """How much each voxel of a patch counts: most in the middle, where the network sees the most around it.

    A Gaussian of an eighth of the patch along each axis (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z), with
    MONAI's least weight of a thousandth.

    Args:
        patch: D, H, W.

    Returns:
        float32 [D, H, W] of at most 1.
    """
    weights = np.ones(())
    for extent in patch:
        distance = np.arange(extent) - (extent - 1) / 2
        weights = np.multiply.outer(weights, np.exp(-0.5 * (distance / (0.125 * extent)) ** 2))
    return np.maximum(weights, _LEAST_WEIGHT).astype(np.float32)


def _batches(slices, plane: tuple[int, int], patch: tuple[int, int], batch_size: int, overlap: float) -> Iterator[list]:
    """Lists of up to batch_size places: slices, and the rows and columns of the plane."""
    rows, columns = (
        [slice(start, start + size) for start in tile_starts(extent, size, overlap)]
        for extent, size in zip(plane, patch, strict=True)
    )
    places = list(product(slices, rows, columns))
    for start in range(0, len(places), batch_size):
        yield places[start : start + batch_size]
