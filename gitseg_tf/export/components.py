"""Connected components in a TensorFlow graph.

Components are computed over runs of voxels along x, of which there are 100 times fewer than voxels. Each run takes the
lowest number of the runs that it touches, and then that run's number, until nothing changes. This takes few rounds even
if a component winds through the whole scan, because numbers jump from root to root (Zhang, Azad, Hu 2020, FastSV,
doi:10.1137/1.9781611976137.5).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import tensorflow as tf

# Offsets (slices, rows) of the later rows that touch a row. Along x, runs that share a corner touch too.
TOUCHING = ((0, 1), (1, -1), (1, 0), (1, 1))


@dataclass(frozen=True)
class Components:
    """The components of a mask, as runs along x in the order of the voxels.

    Attributes:
        mask: bool [D, H + 2, W + 2], the mask with a border of False in each slice.
        starts: int64 [R], index of each run's first voxel in the flat mask.
        volumes: int64 [R], number of voxels of each run.
        roots: int64 [R], the first run of the component to which each run belongs.
    """

    mask: tf.Tensor
    starts: tf.Tensor
    volumes: tf.Tensor
    roots: tf.Tensor

    def sizes(self):
        """Return int64 [R], the number of voxels of each component at its first run, and 0 at the other runs."""
        return tf.math.unsorted_segment_sum(self.volumes, self.roots, tf.size(self.roots))

    def keep(self, kept):
        """Build the mask of a selection of runs.

        Args:
            kept: bool [R].

        Returns:
            bool [D, H, W].
        """
        flat = tf.reshape(self.mask, [-1])
        number = tf.where(flat, tf.cumsum(tf.cast(_run_starts(flat), tf.int32)), 0)
        chosen = tf.gather(tf.concat([[False], kept], 0), number)
        return tf.reshape(chosen, tf.shape(self.mask))[:, 1:-1, 1:-1]


def components(mask, neighbors: Sequence[tuple[int, int]] = TOUCHING, diagonal: bool = True) -> Components:
    """Find the components of a mask.

    Args:
        mask: bool [D, H, W]; extents may be 0.
        neighbors: offsets (slices, rows) of the later rows that a row can touch.
        diagonal: whether runs that share only a corner along x touch; otherwise they must share a face.

    Returns:
        The components.
    """
    return Components(*_find_components(mask, tuple(neighbors), diagonal))


# A separate function, so that a graph that finds components several times contains it once.
@tf.function(autograph=False, reduce_retracing=True)
def _find_components(mask, neighbors: tuple[tuple[int, int], ...], diagonal: bool):
    mask = tf.pad(mask, [[0, 0], [1, 1], [1, 1]])
    width = tf.shape(mask, tf.int64)[2]
    plane = tf.shape(mask, tf.int64)[1] * width
    flat = tf.reshape(mask, [-1])
    starts, ends = tf.where(_run_starts(flat))[:, 0], tf.where(flat & ~tf.concat([flat[1:], [False]], 0))[:, 0]
    reach = tf.constant(int(diagonal), tf.int64)
    pairs = [_overlaps(starts, ends, dz * plane + dy * width, reach) for dz, dy in neighbors]
    ones, others = (tf.concat(side, 0) for side in zip(*pairs, strict=True))
    return mask, starts, ends - starts + 1, _roots(tf.size(starts, tf.int64), ones, others)


def _run_starts(flat):
    return flat & ~tf.concat([[False], flat[:-1]], 0)


def _overlaps(starts, ends, shift, reach):
    """Find pairs of runs, int64 [E] each: a run, and a run that it touches in the row `shift` voxels further."""
    # Runs are sorted and rows end in a border, so the runs that touch a run are consecutive.
    first = tf.searchsorted(ends, starts + (shift - reach), out_type=tf.int64)
    last = tf.searchsorted(starts, ends + (shift + reach), side="right", out_type=tf.int64)
    upto = tf.cumsum(last - first)
    number = tf.range(tf.reduce_max(tf.concat([[0], upto[-1:]], 0)))
    ones = tf.searchsorted(upto, number, side="right", out_type=tf.int64)
    return ones, number - tf.gather(upto - last, ones)


def _roots(count, ones, others):
    def step(roots, _):
        a, b = tf.gather(roots, ones), tf.gather(roots, others)
        indices = tf.concat([a, b, ones, others], 0)[:, None]
        lower = tf.tensor_scatter_nd_min(roots, indices, tf.tile(tf.minimum(a, b), [4]))
        lower = tf.gather(lower, lower)
        return lower, tf.reduce_any(lower != roots)

    roots, _ = tf.while_loop(lambda _, changed: changed, step, [tf.range(count), tf.size(ones) > 0])
    return roots
