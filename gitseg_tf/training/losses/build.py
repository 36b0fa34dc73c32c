"""Build the loss from a config."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from gitseg_tf.config.loss import LOSSES, LossConfig
from gitseg_tf.training.losses.distillation import soft_target_loss
from gitseg_tf.training.losses.ignore import split_mask
from gitseg_tf.training.losses.term import LabelCosts, spatial_axes


def build_loss(loss: LossConfig) -> Callable:
    """Build the weighted sum of the terms of a config.

    Args:
        loss: the terms; those with weight 0 are not computed. A region term is the mean over the labels that are
            annotated in the batch or the sample, depending on `reduce_over`. With empty_labels "skip" it also excludes
            labels that are absent from the reference. It is 0 if no label remains.

    Returns:
        Function from (mask [N, ..., L], logits [N, ..., L] of any float type) to the loss, float32 [N]. The mask is 0
        to 1, or negative where a voxel is excluded for a label: it then affects neither the loss nor the gradient. All
        sizes but N must be static.
    """
    terms = [(LOSSES.get(name), section) for name, section in loss.terms.items()]

    def total(mask, logits):
        reference, counted = split_mask(mask)
        # Multiplying by 0 later is not enough, because infinity times 0 is NaN.
        logits = tf.where(counted > 0.0, tf.cast(logits, tf.float32), 0.0)
        cost = tf.zeros(tf.shape(logits)[:1])
        for term, section in terms:
            value = term(reference, logits, counted=counted, section=section)
            if isinstance(value, LabelCosts):
                value = _mean_over_labels(value, loss.empty_labels == "skip")
            cost += section.weight * value
        return cost

    return total


def training_loss(loss: LossConfig) -> Callable:
    """Build the loss of a network with one or more outputs, see `build_loss`.

    Args:
        loss: presence.weight is the factor of the binary cross-entropy of the presence head. A label is present in a
            sample if any of its voxels is inside, and absent if no voxel is inside and none is excluded; otherwise the
            sample does not contribute to that label. deep.decay is the weight of each output at a lower resolution
            relative to the previous one; the weights sum to 1, as in nnU-Net (Isensee et al. 2021). distillation.weight
            is w of (1 - w) * loss(annotation) + w * loss(teacher), for each output (Hinton et al. 2015,
            arXiv:1503.02531, at temperature 1); see `soft_target_loss`.

    Returns:
        Function from (mask [N, ..., L], outputs) to the loss, float32 [N]; outputs are logits [N, ..., L], or a dict of
        "logits", "presence" [N, L] and "deep1", "deep2", ... [N, ..., L], whose sizes divide those of the mask. The
        mask may have L more channels with the probabilities of a teacher; validation has none.
    """
    plain, share = build_loss(loss), loss.distillation.weight

    def of_logits(mask, logits):
        labels = logits.shape[-1]
        if mask.shape[-1] is None:
            raise ValueError("the number of channels of the mask must be known, to tell whether it has a teacher's")
        if mask.shape[-1] == labels:
            return plain(mask, logits)
        annotation, teacher = mask[..., :labels], mask[..., labels:]
        return (1.0 - share) * plain(annotation, logits) + share * soft_target_loss(teacher, logits)

    def total(mask, outputs):
        if not isinstance(outputs, dict):
            return of_logits(mask, outputs)
        mask = tf.cast(mask, tf.float32)
        deep = sorted((name for name in outputs if name.startswith("deep")), key=lambda name: int(name[4:]))
        weights = loss.deep.decay ** np.arange(1 + len(deep))
        weights /= weights.sum()
        levels = zip(weights.tolist(), [outputs[name] for name in ("logits", *deep)], strict=True)
        cost = tf.add_n([w * of_logits(_at_resolution_of(level, mask), level) for w, level in levels if w > 0])
        if "presence" in outputs and loss.presence.weight > 0:
            cost += loss.presence.weight * _presence_loss(
                mask[..., : outputs["presence"].shape[-1]], tf.cast(outputs["presence"], tf.float32)
            )
        return cost

    return total


def _mean_over_labels(term: LabelCosts, skip_empty: bool):
    """Average the costs over the labels that count: float32 [N], or [1] for costs of the batch."""
    kept = term.counted > 0.0
    if skip_empty:
        kept &= term.sizes > 0.0
    kept = tf.cast(kept, tf.float32)
    return tf.math.divide_no_nan(tf.reduce_sum(term.costs * kept, axis=1), tf.reduce_sum(kept, axis=1))


def _presence_loss(mask, logits):
    """Average the cross-entropy over the labels whose presence in the sample is known: float32 [N]."""
    reference, counted = split_mask(mask)
    axes = spatial_axes(mask)
    present = tf.reduce_max(reference, axes)
    known = tf.maximum(tf.cast(present > 0.0, tf.float32), tf.reduce_min(counted, axes))
    costs = tf.nn.sigmoid_cross_entropy_with_logits(present, tf.where(known > 0.0, logits, 0.0))
    return tf.math.divide_no_nan(tf.reduce_sum(costs * known, axis=1), tf.reduce_sum(known, axis=1))


def _at_resolution_of(level, mask):
    """Sample the mask at the center of each voxel of a lower resolution.

    Averaging blocks would not give a binary mask: a perfect prediction would have a nonzero cross-entropy, and
    distances would be meaningless.
    """
    index = [slice(None)]
    for fine, coarse in zip(mask.shape[1:-1], level.shape[1:-1], strict=True):
        if fine % coarse:
            raise ValueError(f"an output of {level.shape[1:-1]} voxels does not divide a mask of {mask.shape[1:-1]}")
        index.append(slice(fine // coarse // 2, None, fine // coarse))
    return mask[tuple(index)]
