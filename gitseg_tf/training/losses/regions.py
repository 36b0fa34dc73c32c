"""Losses of regions: functions of mask and logits [N, ..., 3] in float32, and their section, to the costs of organs.

Each gives (costs, sizes), float32 [N, 3], or [1, 3] when all samples are counted together: what each organ costs, and
how many pixels of it the reference has.
"""

import math

import tensorflow as tf

from gitseg_tf.sections.loss import BoundaryConfig, DiceConfig, FocalTverskyConfig, LovaszConfig, TverskyConfig
from gitseg_tf.training.losses.distance import distance_to_outline


def dice(mask, logits, section: DiceConfig):
    """1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1) (Milletari et al. 2016, arXiv:1606.04797).

    Per batch it is what nnU-Net calls batch Dice (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z): slices that an
    organ barely touches do not outweigh those that it fills. The added ones make an organ that is absent and not
    predicted cost nothing.
    """
    return _tversky(mask, logits, 0.5, 0.5, section.per)


def tversky(mask, logits, section: TverskyConfig):
    """1 - (TP + 1/2) / (TP + alpha FP + beta FN + 1/2) (Salehi et al. 2017, arXiv:1706.05721)."""
    return _tversky(mask, logits, section.alpha, section.beta, section.per)


def focal_tversky(mask, logits, section: FocalTverskyConfig):
    """The Tversky loss to the power of 1 / gamma (Abraham and Khan 2018, arXiv:1810.07842)."""
    costs, sizes = tversky(mask, logits, section)
    # The slope of the power at 0 is infinite: below `small` its chord stands for it.
    power, small = 1.0 / section.gamma, 1e-6
    return tf.where(costs > small, tf.maximum(costs, small) ** power, costs * small ** (power - 1.0)), sizes


def lovasz(mask, logits, section: LovaszConfig):
    """Lovasz hinge: the convex surrogate of 1 - Jaccard index (Berman et al. 2018, arXiv:1705.08790, algorithm 1).

    A mask of MixUp counts as organ from one half on. It is of each sample: one of the batch is no sum over replicas.
    """
    pixels = math.prod(logits.shape[1:-1])
    labels, scores = (tf.transpose(tf.reshape(x, [-1, pixels, x.shape[-1]]), [0, 2, 1]) for x in (mask, logits))
    labels = tf.cast(labels >= 0.5, tf.float32)
    errors, order = tf.math.top_k(1.0 - scores * (2.0 * labels - 1.0), pixels)
    labels = tf.gather(labels, order, batch_dims=2)
    sizes, found = tf.reduce_sum(labels, axis=2, keepdims=True), tf.cumsum(labels, axis=2)
    # What the Jaccard loss grows by with each pixel, as a fraction of counts: its difference would round away.
    inside, union = sizes - found, sizes + tf.range(1.0, pixels + 1.0) - found
    growth = tf.where(labels > 0.0, 1.0 / union, tf.math.divide_no_nan(inside, union * (union - 1.0)))
    growth += tf.where(sizes == 0.0, tf.one_hot(0, pixels), 0.0)  # without an organ the first false pixel is all
    return tf.reduce_sum(tf.nn.relu(errors) * growth, axis=2), sizes[..., 0]


def boundary(mask, logits, section: BoundaryConfig):
    """Mean over pixels of |p - t| times the distance from the organ's outline, in pixels.

    It has the gradient of the boundary loss (Kervadec et al. 2019, arXiv:1812.07032), of which the constant that the
    paper leaves out is kept, so that a right prediction costs 0.
    """
    distance = distance_to_outline(mask, section.reach)
    return tf.reduce_mean(distance * tf.abs(tf.sigmoid(logits) - mask), _pixels(mask)), tf.reduce_sum(
        mask, _pixels(mask)
    )


def over_replicas(value):
    """The sum of a tensor over all replicas that run this step."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def _tversky(mask, logits, alpha: float, beta: float, per: str):
    probability = tf.sigmoid(logits)
    sums = tf.stack([tf.reduce_sum(x, _pixels(mask)) for x in (probability * mask, probability, mask)])
    if per == "batch":
        sums = over_replicas(tf.reduce_sum(sums, axis=1, keepdims=True))
    both, predicted, sizes = tf.unstack(sums)
    wrong = alpha * (predicted - both) + beta * (sizes - both)
    return wrong / (both + wrong + 0.5), sizes


def _pixels(tensor) -> list[int]:
    return list(range(1, tensor.shape.rank - 1))
