"""Region losses: terms (see `term`) that return the cost of each label, `LabelCosts`."""

import math

import tensorflow as tf

from gitseg_tf.config.loss import BoundaryConfig, DiceConfig, FocalTverskyConfig, LovaszConfig, TverskyConfig
from gitseg_tf.training.losses.distance import distance_to_outline
from gitseg_tf.training.losses.term import LabelCosts, over_replicas, spatial_axes


def dice(mask, logits, *, counted, section: DiceConfig) -> LabelCosts:
    """Compute 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1), soft Dice (Milletari et al. 2016, arXiv:1606.04797).

    Reduced over the batch, it is the batch Dice of nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z):
    slices that barely contain a label do not outweigh those that it fills. The added ones make the loss 0 if a label is
    neither present nor predicted.
    """
    return _tversky(mask, logits, counted, alpha=0.5, beta=0.5, reduce_over=section.reduce_over)


def tversky(mask, logits, *, counted, section: TverskyConfig) -> LabelCosts:
    """Compute 1 - (TP + 1/2) / (TP + alpha FP + beta FN + 1/2) (Salehi et al. 2017, arXiv:1706.05721)."""
    return _tversky(mask, logits, counted, alpha=section.alpha, beta=section.beta, reduce_over=section.reduce_over)


def focal_tversky(mask, logits, *, counted, section: FocalTverskyConfig) -> LabelCosts:
    """Compute the Tversky loss to the power of 1 / gamma (Abraham and Khan 2018, arXiv:1810.07842)."""
    plain = tversky(mask, logits, counted=counted, section=section)
    # The slope of the power at 0 is infinite, so a chord replaces it below `small`.
    power, small = 1.0 / section.gamma, 1e-6
    costs = tf.where(plain.costs > small, tf.maximum(plain.costs, small) ** power, plain.costs * small ** (power - 1.0))
    return plain._replace(costs=costs)


def lovasz(mask, logits, *, counted, section: LovaszConfig) -> LabelCosts:
    """Compute the Lovasz hinge, a convex surrogate of 1 - Jaccard index (Berman et al. 2018, arXiv:1705.08790, alg. 1).

    A soft mask, such as from MixUp, is thresholded at 0.5. The loss is computed per sample, because the loss of a batch
    could not be computed from sums over replicas.
    """
    voxels = math.prod(logits.shape[1:-1])
    reference, scores, counts = (
        tf.transpose(tf.reshape(x, [-1, voxels, x.shape[-1]]), [0, 2, 1]) for x in (mask, logits, counted)
    )
    reference = tf.cast(reference >= 0.5, tf.float32)
    # Negative errors cost nothing, so excluded voxels can be ranked last with -1.
    errors, order = tf.math.top_k(tf.where(counts > 0.0, 1.0 - scores * (2.0 * reference - 1.0), -1.0), voxels)
    reference = tf.gather(reference, order, batch_dims=2)
    sizes, cumulated = tf.reduce_sum(reference, axis=2, keepdims=True), tf.cumsum(reference, axis=2)
    # Compute each voxel's increment of the Jaccard loss from counts: a difference of losses would round to 0.
    inside, union = sizes - cumulated, sizes + tf.range(1.0, voxels + 1.0) - cumulated
    growth = tf.where(reference > 0.0, 1.0 / union, tf.math.divide_no_nan(inside, union * (union - 1.0)))
    growth += tf.where(sizes == 0.0, tf.one_hot(0, voxels), 0.0)  # without the label, the hardest voxel is the loss
    return LabelCosts(tf.reduce_sum(tf.nn.relu(errors) * growth, axis=2), sizes[..., 0], tf.reduce_sum(counts, axis=2))


def boundary(mask, logits, *, counted, section: BoundaryConfig) -> LabelCosts:
    """Compute the mean over voxels of |p - t| times the distance from the label's outline, in voxels.

    It has the gradient of the boundary loss (Kervadec et al. 2019, arXiv:1812.07032). The constant omitted in the paper
    is kept, so that a perfect prediction costs 0.
    """
    axes = spatial_axes(mask)
    distance = distance_to_outline(mask, section.reach, counted)
    voxels = tf.reduce_sum(counted, axes)
    total = tf.reduce_sum(distance * tf.abs(tf.sigmoid(logits) - mask) * counted, axes)
    return LabelCosts(tf.math.divide_no_nan(total, voxels), tf.reduce_sum(mask, axes), voxels)


def _tversky(mask, logits, counted, *, alpha: float, beta: float, reduce_over: str) -> LabelCosts:
    probability = tf.sigmoid(logits) * counted
    axes = spatial_axes(mask)
    sums = tf.stack([tf.reduce_sum(x, axes) for x in (probability * mask, probability, mask, counted)])
    if reduce_over == "batch":
        sums = over_replicas(tf.reduce_sum(sums, axis=1, keepdims=True))
    both, predicted, sizes, voxels = tf.unstack(sums)
    wrong = alpha * (predicted - both) + beta * (sizes - both)
    return LabelCosts(wrong / (both + wrong + 0.5), sizes, voxels)
