"""Whole scans by a 3-D network: patches that overlap, blended with Gaussian weights."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from gitseg_tf.config import Config
from gitseg_tf.data.geometry import at_scale, field_of, from_model, normalize, place, to_model, window_offsets
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.data.tiles import tile_slices, tile_starts
from gitseg_tf.sections.data import DataConfig

# Of (image uint16 [D, H, W], slice numbers [D], percentiles float32 [11] of the scan, spacing (z, y, x) in mm), gives
# one after the other (which slices, their probabilities float32 [N, H, W, 3] at the scan's size).
View = Callable[[np.ndarray, Sequence[int], np.ndarray, Sequence[float]], Iterator[tuple[slice, tf.Tensor]]]

_LEAST_WEIGHT = 1e-3
_PLACEMENT = {"box": tf.TensorSpec([4], tf.int32), "fitted": tf.TensorSpec([2], tf.int32)}
_PLANES = tf.TensorSpec([None, None, None, len(ORGANS)], tf.float32)

# `from_model` as a graph.
at_own_size = tf.function(from_model, input_signature=[_PLANES, _PLACEMENT, tf.TensorSpec([2], tf.int32)])


def make_volume_view(network: Callable, config: Config, scale: float = 1.0) -> View:
    """Look at whole scans by a 3-D network.

    Memory: besides the scan, its input and probabilities at the model's size (20 bytes a voxel), and one batch.

    Args:
        network: function from float32 patches [N, D, H, W, 1] to probabilities [N, D, H, W, 3].
        config: patch, size, batch size and overlap.
        scale: factor by which the scan is larger in the model's input, in the plane.

    Returns:
        The view.
    """
    data, evaluation = config.data, config.evaluation
    prepare = make_prepare(
        data, scale, lambda numbers, spacing: tile_slices(numbers, window_offsets(spacing, data), evaluation.overlap)
    )

    def of_patches(patches):
        return network(tf.constant(patches))

    def view(image, numbers, percentiles, spacing):
        depth, height, width = image.shape
        prepared, placement, slices = prepare(image, numbers, percentiles, spacing)
        found = blend(
            of_patches, prepared.numpy(), slices.numpy(), data.patch, evaluation.batch_size, evaluation.overlap
        )
        for part in batches_of(depth, evaluation.batch_size):
            yield part, at_own_size(found[part], placement, (height, width))

    return view


def make_prepare(data: DataConfig, scale: float, chosen_slices: Callable) -> Callable:
    """A function that brings a scan to the model's pixels.

    Nothing is cut: where the scan is larger than data.size, so is what it becomes, see `field_of`.

    Args:
        data: size, crop and pixel_mm.
        scale: as in `make_volume_view`.
        chosen_slices: function of the slices' numbers and the spacing to the slices that belong together.

    Returns:
        Function of a scan, as `View`, to float32 [D, height, width], its placement and the chosen slices.
    """
    fits = data.pixel_mm is None
    bring = _bringing(data.crop, fits)
    settings = (data.size, 1.0 if fits else data.pixel_mm, scale)

    def prepare(image, numbers, percentiles, spacing):
        spacing = tf.constant(spacing, tf.float32)
        prepared, placement = bring(image, percentiles, spacing, *settings)
        return prepared, placement, chosen_slices(tf.constant(numbers, tf.int64), spacing)

    return prepare


class _Placing(NamedTuple):
    """What `place` looks at of a DataConfig."""

    crop: str
    size: tf.Tensor
    pixel_mm: tf.Tensor | None


@cache
def _bringing(crop: str, fits: bool) -> Callable:
    # What else views differ in is given to the graph, so that an ensemble of many sizes traces it no more often.
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None], tf.uint16),
            tf.TensorSpec([None], tf.float32),
            tf.TensorSpec([3], tf.float32),
            tf.TensorSpec([2], tf.int32),
            tf.TensorSpec([], tf.float32),
            tf.TensorSpec([], tf.float32),
        ]
    )
    def bring(image, percentiles, spacing, size, pixel_mm, scale):
        placing = _Placing(crop, size, None if fits else pixel_mm)
        placement = at_scale(place(image, percentiles, spacing, placing), scale)
        return to_model(normalize(image, percentiles), placement, field_of(placement, size)), placement

    return bring


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
    overlap: float,
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


def tile_places(plane: Sequence[int], tile: Sequence[int], overlap: float) -> list[tuple[slice, slice]]:
    """The rows and columns of tiles that cover a plane.

    Args:
        plane: its height and width, at least the tile's.
        tile: height and width.
        overlap: share of a tile that the next one covers again, 0 to below 1.

    Returns:
        (rows, columns) of each tile; one where the plane is of the tile's size.
    """
    rows, columns = (
        [slice(start, start + size) for start in tile_starts(extent, size, overlap)]
        for extent, size in zip(plane, tile, strict=True)
    )
    return list(product(rows, columns))


def _batches(slices, plane: tuple[int, int], patch: tuple[int, int], batch_size: int, overlap: float) -> Iterator[list]:
    """Lists of up to batch_size places: slices, and the rows and columns of the plane."""
    places = [(which, *place) for which, place in product(slices, tile_places(plane, patch, overlap))]
    for start in range(0, len(places), batch_size):
        yield places[start : start + batch_size]
