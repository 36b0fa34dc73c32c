"""From the config to a loss."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from gitseg_tf.sections.loss import LossConfig
from gitseg_tf.training.losses.pixels import bce, focal, top_k
from gitseg_tf.training.losses.regions import boundary, dice, focal_tversky, lovasz, tversky

PIXEL_TERMS = {"bce": bce, "focal": focal, "top_k": top_k}
REGION_TERMS = {
    "dice": dice,
    "tversky": tversky,
    "focal_tversky": focal_tversky,
    "lovasz": lovasz,
    "boundary": boundary,
}


def build_loss(loss: LossConfig) -> Callable:
    """The weighted sum of the terms of a config, as a function.

    Args:
        loss: the terms; those of weight 0 are not computed. With empty_organs "skip" a region term is the mean over the
            organs that the reference has, in the batch or the sample by what the term counts together, and 0 without
            any; with "count" it is the mean over all organs.

    Returns:
        Function of (mask [N, ..., 3] of 0 to 1, logits [N, ..., 3] of any float type) to the loss, float32 [N]. All but
        N must be static.
    """

    def total(mask, logits):
        mask, logits = tf.cast(mask, tf.float32), tf.cast(logits, tf.float32)
        cost = tf.zeros(tf.shape(logits)[:1])
        for name, section in loss.terms.items():
            if name in PIXEL_TERMS:
                term = PIXEL_TERMS[name](mask, logits, section)
            else:
                term = _over_organs(*REGION_TERMS[name](mask, logits, section), loss.empty_organs == "skip")
            cost += section.weight * term
        return cost

    return total


def training_loss(loss: LossConfig) -> Callable:
    """`build_loss` for networks with more than one output.

    Args:
        loss: presence.weight is the factor of the binary cross-entropy of the presence head; an organ is present that
            has a pixel in the sample's mask. deep.factor is the weight of each output at a lower resolution over that
            of the one above; their sum is 1, as in nnU-Net (Isensee et al. 2021).

    Returns:
        Function of (mask [N, ..., 3], outputs) to the loss, float32 [N]; outputs are logits [N, ..., 3], or a dict of
        "logits", "presence" [N, 3] and "deep1", "deep2", ... [N, ..., 3], of whose sizes the mask's are multiples.
    """
    of_logits = build_loss(loss)

    def total(mask, outputs):
        if not isinstance(outputs, dict):
            return of_logits(mask, outputs)
        mask = tf.cast(mask, tf.float32)
        deep = sorted((name for name in outputs if name.startswith("deep")), key=lambda name: int(name[4:]))
        weights = loss.deep.factor ** np.arange(1 + len(deep))
        weights /= weights.sum()
        levels = zip(weights.tolist(), [outputs[name] for name in ("logits", *deep)], strict=True)
        cost = tf.add_n([w * of_logits(_at_resolution_of(level, mask), level) for w, level in levels if w > 0])
        if "presence" in outputs and loss.presence.weight > 0:
            present = tf.reduce_max(mask, axis=list(range(1, mask.shape.rank - 1)))
            seen = tf.cast(outputs["presence"], tf.float32)
            crossed = tf.nn.sigmoid_cross_entropy_with_logits(present, seen)
            cost += loss.presence.weight * tf.reduce_mean(crossed, axis=1)
        return cost

    return total


def _over_organs(costs, sizes, skip: bool):
    if not skip:
        return tf.reduce_mean(costs, axis=1)
    there = tf.cast(sizes > 0.0, tf.float32)
    return tf.math.divide_no_nan(tf.reduce_sum(costs * there, axis=1), tf.reduce_sum(there, axis=1))


def _at_resolution_of(level, mask):
    """The mask's pixel nearest to the middle of each of the level's.

    A mean over the block would be no mask: a perfect prediction would have a cross-entropy, and distances no meaning.
    """
    index = [slice(None)]
    for fine, coarse in zip(mask.shape[1:-1], level.shape[1:-1], strict=True):
        if fine % coarse:
            raise ValueError(f"an output of {level.shape[1:-1]} pixels does not divide a mask of {mask.shape[1:-1]}")
        index.append(slice(fine // coarse // 2, None, fine // coarse))
    return mask[tuple(index)]
