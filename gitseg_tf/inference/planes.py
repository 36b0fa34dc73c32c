"""Whole scans by a 2-D or 2.5-D network: a window a slice, in tiles where the slices are larger than the network."""

from collections.abc import Callable

import numpy as np

from gitseg_tf.config import Config
from gitseg_tf.data.geometry import stack_windows, window_indices, window_offsets
from gitseg_tf.inference.volumes import (
    View,
    at_own_size,
    batches_of,
    gaussian_weights,
    make_prepare,
    tile_places,
)


def make_plane_view(network: Callable, config: Config, scale: float = 1.0) -> View:
    """Look at whole scans slice by slice.

    Memory: besides the scan, its input at the model's size (4 bytes a voxel), and one batch.

    Args:
        network: function from float32 windows [N, height, width, slices] to probabilities [N, height, width, 3].
        config: window, size, batch size and overlap.
        scale: factor by which the scan is larger in the model's input.

    Returns:
        The view.
    """
    data, evaluation = config.data, config.evaluation
    prepare = make_prepare(data, scale, lambda numbers, spacing: window_indices(numbers, window_offsets(spacing, data)))

    def view(image, numbers, percentiles, spacing):
        depth, height, width = image.shape
        prepared, placement, windows = prepare(image, numbers, percentiles, spacing)
        for part in batches_of(depth, evaluation.batch_size):
            found = blend_tiles(network, stack_windows(prepared, windows[part]), data.size, evaluation.overlap)
            yield part, at_own_size(found, placement, (height, width))

    return view


def blend_tiles(network: Callable, windows, tile: tuple[int, int], overlap: float):
    """Run a network over windows tile by tile, and average what it says of a pixel with `gaussian_weights`.

    Args:
        network: function from float32 [N, h, w, K] to float32 [N, h, w, C].
        windows: float32 tensor [N, H, W, K], H and W at least the tile's.
        tile: h, w.
        overlap: share of height and width by which tiles overlap, 0 to below 1.

    Returns:
        float32 [N, H, W, C]; of windows of the tile's size just what the network gives.
    """
    places = tile_places(windows.shape[1:3], tile, overlap)
    if len(places) == 1:
        return network(windows)
    weights = gaussian_weights(tile)[..., None]
    blended, total = None, np.zeros((*windows.shape[1:3], 1), np.float32)
    for rows, columns in places:
        found = np.asarray(network(windows[:, rows, columns]))
        if blended is None:
            blended = np.zeros((*windows.shape[:3], found.shape[-1]), np.float32)
        blended[:, rows, columns] += found * weights
        total[rows, columns] += weights
    blended /= total
    return blended
