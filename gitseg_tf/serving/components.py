"""Connected components in a TensorFlow graph.

Components are found over runs of voxels along x, of which there are a hundredth as many as voxels. Each run takes the
lowest number of those that it touches, and the number of that one, until nothing changes: few rounds even where a
component winds through the whole scan, for numbers jump from root to root (Zhang, Azad, Hu 2020, FastSV,
doi:10.1137/1.9781611976137.5).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import tensorflow as tf

# Rows that come later and touch a row: (slices, rows) further. Along x, runs that share a corner touch too.
TOUCHING = ((0, 1), (1, -1), (1, 0), (1, 1))


@dataclass(frozen=True)
class Components:
    """The components of a mask, by its runs along x in the order of the voxels.

    Attributes:
        mask: bool [D, H + 2, W + 2], the mask with a border of False in each slice.
        starts: int64 [R], index of each run's first voxel in the flat mask.
        volumes: int64 [R], voxels of each run.
        roots: int64 [R], the first run of the component of each run.
    """

    mask: tf.Tensor
    starts: tf.Tensor
    volumes: tf.Tensor
    roots: tf.Tensor

    def sizes(self):
        """int64 [R]: voxels of each component at its first run, 0 at the other runs."""
        return tf.math.unsorted_segment_sum(self.volumes, self.roots, tf.size(self.roots))

    def keep(self, kept):
        """The mask of some runs.

        Args:
            kept: bool [R].

        Returns:
            bool [D, H, W].
        """
        flat = tf.reshape(self.mask, [-1])
        number = tf.where(flat, tf.cumsum(tf.cast(_begins(flat), tf.int32)), 0)
        chosen = tf.gather(tf.concat([[False], kept], 0), number)
        return tf.reshape(chosen, tf.shape(self.mask))[:, 1:-1, 1:-1]


def components(mask, neighbours: Sequence[tuple[int, int]] = TOUCHING, diagonal: bool = True) -> Components:
    """Find the components of a mask.

    Args:
        mask: bool [D, H, W], also of no extent.
        neighbours: which rows, of those that come later, a row can touch: (slices, rows) further.
        diagonal: along x, runs touch where they share a corner; else where they share a face.

    Returns:
        The components.
    """
    return Components(*_found(mask, tuple(neighbours), diagonal))


# A function of its own: a graph that finds components many times holds what finds them once.
@tf.function(autograph=False, reduce_retracing=True)
def _found(mask, neighbours: tuple[tuple[int, int], ...], diagonal: bool):
    mask = tf.pad(mask, [[0, 0], [1, 1], [1, 1]])
    width = tf.shape(mask, tf.int64)[2]
    plane = tf.shape(mask, tf.int64)[1] * width
    flat = tf.reshape(mask, [-1])
    starts, ends = tf.where(_begins(flat))[:, 0], tf.where(flat & ~tf.concat([flat[1:], [False]], 0))[:, 0]
    reach = tf.constant(int(diagonal), tf.int64)
    pairs = [_overlaps(starts, ends, dz * plane + dy * width, reach) for dz, dy in neighbours]
    ones, others = (tf.concat(side, 0) for side in zip(*pairs, strict=True))
    return mask, starts, ends - starts + 1, _roots(tf.size(starts, tf.int64), ones, others)


def _begins(flat):
    return flat & ~tf.concat([[False], flat[:-1]], 0)


def _overlaps(starts, ends, shift, reach):
    """Pairs of runs, int64 [E] each: a run, and one that it touches in the row `shift` voxels further."""
    # Runs are sorted and rows end in a border: those that touch a run stand side by side.
    first = tf.searchsorted(ends, starts + (shift - reach), out_type=tf.int64)
    last = tf.searchsorted(starts, ends + (shift + reach), side="right", out_type=tf.int64)
    upto = tf.cumsum(last - first)
    number = tf.range(tf.reduce_max(tf.concat([[0], upto[-1:]], 0)))
    ones = tf.searchsorted(upto, number, side="right", out_type=tf.int64)
    return ones, number - tf.gather(upto - last, ones)


def _roots(count, ones, others):
    def step(roots, _):
        a, b = tf.gather(roots, ones), tf.gather(roots, others)
        places = tf.concat([a, b, ones, others], 0)[:, None]
        lower = tf.tensor_scatter_nd_min(roots, places, tf.tile(tf.minimum(a, b), [4]))
        lower = tf.gather(lower, lower)
        return lower, tf.reduce_any(lower != roots)

    roots, _ = tf.while_loop(lambda _, changed: changed, step, [tf.range(count), tf.size(ones) > 0])
    return roots
