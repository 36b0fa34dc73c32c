"""Whole scans by a 3-D network: patches that overlap, blended with Gaussian weights."""

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import tensorflow as tf

from gitseg_tf.config import Config
from gitseg_tf.data.geometry import from_model, normalize, place, to_model, window_offsets
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.data.tiles import tile_slices, tile_starts

_OVERLAP = 0.5
_LEAST_WEIGHT = 1e-3


def make_volume_predictor(
    probabilities: Callable, config: Config
) -> Callable[[np.ndarray, list[int], np.ndarray, tuple], np.ndarray]:
    """Wrap a 3-D network so that it segments whole scans; see `make_predictor`, whose interface this has.

    Memory: besides the scan, its input and probabilities at the model's size (20 bytes a voxel), and one batch.

    Args:
        probabilities: function from float32 patches [N, D, H, W, 1] to probabilities [N, D, H, W, 3].
        config: patch, size, threshold and batch size.

    Returns:
        Function of (image uint16 [D, H, W], slice numbers [D], percentiles float32 [11] of the scan, spacing
        (z, y, x) in mm) to bool masks [3, D, H, W].
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
        return prepared, placement, tile_slices(numbers, window_offsets(spacing, data), _OVERLAP)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, *data.size, len(ORGANS)], tf.float32),
            {"box": tf.TensorSpec([4], tf.int32), "fitted": tf.TensorSpec([2], tf.int32)},
            tf.TensorSpec([2], tf.int32),
        ]
    )
    def at_own_size(found, placement, shape):
        return from_model(found, placement, shape) >= evaluation.threshold

    patches = tf.TensorSpec([evaluation.batch_size, *data.patch, 1], tf.float32)
    network = tf.function(probabilities, input_signature=[patches])

    def predict(image, numbers, percentiles, spacing):
        depth, height, width = image.shape
        prepared, placement, slices = prepare(image, numbers, percentiles, spacing)
        found = blend(network, prepared.numpy(), slices.numpy(), data.patch, evaluation.batch_size)
        masks = np.empty((len(ORGANS), depth, height, width), bool)
        for start in range(0, depth, evaluation.batch_size):
            part = slice(start, start + evaluation.batch_size)
            masks[:, part] = np.moveaxis(at_own_size(found[part], placement, (height, width)).numpy(), -1, 0)
        return masks

    return predict


def blend(
    network: Callable,
    volume: np.ndarray,
    slices: np.ndarray,
    patch: tuple[int, int, int],
    batch_size: int,
    overlap: float = _OVERLAP,
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
