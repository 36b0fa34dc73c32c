"""Reference losses by the formulas of their papers, in float64 and written for clarity.

Each maps (mask, logits), [N, H, W, 3], to the loss [N].
"""

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.special import expit, log_expit


def bce(mask, logits):
    return -(mask * log_expit(logits) + (1 - mask) * log_expit(-logits)).mean((1, 2, 3))


def focal(mask, logits, alpha=0.25, gamma=2.0):
    right = np.where(mask == 1, expit(logits), expit(-logits))
    weight = np.where(mask == 1, alpha, 1 - alpha)
    return (-weight * (1 - right) ** gamma * np.log(right)).mean((1, 2, 3))


def top_k(mask, logits, fraction=0.1):
    costs = np.sort(np.logaddexp(0, np.where(mask == 1, -logits, logits)).reshape(len(mask), -1))
    return costs[:, costs.shape[1] - round(fraction * costs.shape[1]) :].mean(1)


def tversky_index(p, t, alpha, beta):
    both, extra, missed = (p * t).sum(), (p * (1 - t)).sum(), ((1 - p) * t).sum()
    return (both + 0.5) / (both + alpha * extra + beta * missed + 0.5)


def of_labels(mask, logits, cost, reduce_over):
    """Mean over labels of cost(probability, mask), over the batch or each sample."""
    parts = [slice(None)] * len(mask) if reduce_over == "batch" else [slice(n, n + 1) for n in range(len(mask))]
    return np.array(
        [np.mean([cost(expit(logits[n, ..., k]), mask[n, ..., k]) for k in range(mask.shape[-1])]) for n in parts]
    )


def tversky(mask, logits, alpha=0.3, beta=0.7, reduce_over="batch"):
    return of_labels(mask, logits, lambda p, t: 1 - tversky_index(p, t, alpha, beta), reduce_over)


def focal_tversky(mask, logits, alpha=0.3, beta=0.7, gamma=1.333, reduce_over="batch"):
    return of_labels(mask, logits, lambda p, t: (1 - tversky_index(p, t, alpha, beta)) ** (1 / gamma), reduce_over)


def dice(mask, logits, reduce_over="batch"):
    return of_labels(mask, logits, lambda p, t: 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1), reduce_over)


def lovasz(mask, logits):
    """The Lovasz extension of the Jaccard loss as a Choquet integral over thresholds, without sorting the pixels."""

    def extension(t, z):
        errors = np.maximum(1 - z * (2 * t - 1), 0)
        steps = np.unique([0, *errors])
        wrong = [errors >= step for step in steps[1:]]
        jaccard_loss = [w.sum() / (w | (t == 1)).sum() for w in wrong]
        return np.sum(np.diff(steps) * jaccard_loss)

    planes = [np.moveaxis(part, -1, 1).reshape(*part.shape[::3], -1) for part in (mask, logits)]
    return np.array(
        [np.mean([extension(*plane) for plane in zip(*sample, strict=True)]) for sample in zip(*planes, strict=True)]
    )


def outline_distance(mask, reach):
    distance = np.full(mask.shape, float(reach))
    for n, k in np.ndindex(len(mask), mask.shape[-1]):
        inside = mask[n, ..., k] == 1
        if inside.any() and not inside.all():
            depth = np.where(inside, distance_transform_edt(inside) - 1, distance_transform_edt(~inside))
            distance[n, ..., k] = np.minimum(depth, reach)
    return distance


def boundary(mask, logits, reach=16):
    # Kervadec's signed distance map times the probability, plus the constant that makes a perfect prediction cost 0.
    signed = np.where(mask == 1, -1, 1) * outline_distance(mask, reach)
    return (signed * (expit(logits) - mask)).mean((1, 2, 3))
