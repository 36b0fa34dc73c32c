"""Application of a network to whole scans.

A 2.5-D network gets one window per slice, split into tiles where slices are larger than its input; a 3-D network gets
patches.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow as tf

from gitseg_tf.config import Config
from gitseg_tf.config.data import DataConfig
from gitseg_tf.data.pipeline.geometry import (
    at_scale,
    field_of,
    from_model,
    normalize,
    place,
    stack_windows,
    to_model,
    window_indices,
    window_offsets,
)
from gitseg_tf.data.pipeline.planes import AXES, fill_gaps, from_plane, volume_in_plane
from gitseg_tf.data.pipeline.tiles import tile_slices
from gitseg_tf.data.volume import Volume
from gitseg_tf.inference.sliding_window.blend import blend_patches, blend_tiles

# The index of a part of a scan [D, H, W]: a range of slices, or of another axis for networks with another data.plane.
Part = slice | tuple[slice, ...]
# Takes a scan and yields one (part, its probabilities float32 [..., L] at the scan's size) after the other.
View = Callable[[Volume], Iterator[tuple[Part, tf.Tensor]]]

_PLACEMENT = {"box": tf.TensorSpec([4], tf.int32), "fitted": tf.TensorSpec([2], tf.int32)}
_PLANES = tf.TensorSpec([None, None, None, None], tf.float32)

# `from_model` as a graph.
at_scan_size = tf.function(from_model, input_signature=[_PLANES, _PLACEMENT, tf.TensorSpec([2], tf.int32)])


def make_views(network: Callable, config: Config, scales: Iterable[float] = (1.0,)) -> list[View]:
    """Build functions that apply a network to a whole scan, one for each scale.

    Besides the scan, memory holds its input at the model's size (4 bytes per voxel and channel), for a 3-D network also
    its probabilities at that size (4 bytes per voxel and label), and one batch.

    Args:
        network: function from float32 windows [N, height, width, K * C] to probabilities [N, height, width, L]; with
            data.patch from patches [N, D, H, W, C] to probabilities [N, D, H, W, L].
        config: provides window or patch, size, batch size and overlap.
        scales: in-plane factors by which the scan is enlarged in the model's input.

    Returns:
        The views, in the order of the scales.
    """
    prepare = make_prepare(config.data)
    make_view = _plane_view if config.data.patch is None else _patch_view
    made = [make_view(network, config, prepare, scale) for scale in scales]
    return made if config.data.plane == "axial" else [_along(config.data.plane, view) for view in made]


def _along(plane: str, view: View) -> View:
    """Apply a view to a scan's slices along another axis."""
    axis = AXES[plane][0]

    def along(volume):
        index, rows = fill_gaps(tf.constant(volume.numbers, tf.int64))
        for part, probabilities in view(volume_in_plane(volume, index.numpy(), plane)):
            where = tuple(part if k == axis else slice(None) for k in range(3))
            yield where, from_plane(probabilities, rows, plane)

    return along


def _plane_view(network: Callable, config: Config, prepare: Callable, scale: float) -> View:
    data, evaluation = config.data, config.evaluation

    def view(volume):
        field, placement, numbers, spacing = prepare(volume, scale)
        windows = window_indices(numbers, window_offsets(spacing, data))
        for part in batches_of(volume.shape[0], evaluation.batch_size):
            found = blend_tiles(network, stack_windows(field, windows[part]), data.input_size, evaluation.overlap)
            yield part, at_scan_size(found, placement, volume.shape[1:])

    return view


def _patch_view(network: Callable, config: Config, prepare: Callable, scale: float) -> View:
    data, evaluation = config.data, config.evaluation

    def of_patches(patches):
        return network(tf.constant(patches))

    def view(volume):
        field, placement, numbers, spacing = prepare(volume, scale)
        slices = tile_slices(numbers, window_offsets(spacing, data), evaluation.overlap).numpy()
        blended = blend_patches(
            of_patches, field.numpy(), slices,
            patch=data.patch_shape, batch_size=evaluation.batch_size, overlap=evaluation.overlap,
        )  # fmt: skip
        for part in batches_of(volume.shape[0], evaluation.batch_size):
            yield part, at_scan_size(blended[part], placement, volume.shape[1:])

    return view


def make_prepare(data: DataConfig) -> Callable:
    """Build a function that normalizes a scan and resamples it to the model's pixels.

    Nothing is cut off: a scan that is larger than data.input_size gets a larger field, see `field_of`.

    Args:
        data: provides size, crop, pixel_mm and intensity.

    Returns:
        A function from (Volume, scale) to the field (float32 [D, height, width, C]), its placement, the slice numbers
        (int64 [D]) and the spacing (float32 [3], z, y, x in mm).
    """

    @tf.function(autograph=False, reduce_retracing=True)
    def bring(image, percentiles, moments, spacing, scale):
        placement = at_scale(place(image, percentiles, spacing, data), scale)
        normal = normalize(image, {"percentiles": percentiles, "moments": moments}, data)
        return to_model(normal, placement, field_of(placement, data.input_size)), placement

    # One graph for scans of all shapes, because retracing for a second shape would happen in the middle of a cohort.
    graphs: dict[tuple, Callable] = {}

    def prepare(volume: Volume, scale: float):
        image = volume.with_channels
        key = image.dtype, volume.channels
        if key not in graphs:
            specs = [tf.TensorSpec([None, None, None, volume.channels], image.dtype)]
            specs += [tf.TensorSpec([volume.channels, None], tf.float32)] * 2
            specs += [tf.TensorSpec([3], tf.float32), tf.TensorSpec([], tf.float32)]
            graphs[key] = bring.get_concrete_function(*specs)
        spacing = tf.constant(volume.spacing, tf.float32)
        given = tf.constant(image), tf.constant(volume.percentiles, tf.float32), tf.constant(volume.moments, tf.float32)
        field, placement = graphs[key](*given, spacing, tf.constant(scale, tf.float32))
        return field, placement, tf.constant(volume.numbers, tf.int64), spacing

    return prepare


def batches_of(depth: int, batch_size: int) -> list[slice]:
    """Split a scan's slices into ranges of up to batch_size."""
    return [slice(start, start + batch_size) for start in range(0, depth, batch_size)]


def labels_first(parts: Iterable[tuple[Part, np.ndarray]], shape: tuple[int, int, int]) -> np.ndarray:
    """Join the parts of a scan, with the labels as the first axis.

    Args:
        parts: (index, its values [..., L]), together covering all voxels.
        shape: the shape of the scan, (D, H, W).

    Returns:
        [L, D, H, W] of the parts' dtype.
    """
    scan = None
    for part, planes in parts:
        if scan is None:
            scan = np.empty((planes.shape[-1], *shape), planes.dtype)
        where = part if isinstance(part, tuple) else (part,)
        scan[(slice(None), *where)] = np.moveaxis(planes, -1, 0)
    if scan is None:
        raise ValueError("the scan has no slices")
    return scan
