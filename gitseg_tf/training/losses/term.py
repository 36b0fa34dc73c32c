"""The interface of loss terms.

A term is a function

    term(mask, logits, *, counted, section)

of `mask` float32 [N, ..., L] between 0 and 1 (the reference), `logits` and `counted` float32 of the same shape, and
`section`, its config section. `counted` is 1 where a voxel counts for a label, and 0 where the label is unannotated or
the voxel is ignored; mask and logits are 0 there. All sizes but N are static, and the function must compile with XLA.
It returns

- the loss of each sample, float32 [N], which must not depend on other samples of the batch, or
- `LabelCosts`, which build_loss averages over the labels that count. Costs of the batch are computed from sums over all
  replicas (`over_replicas`), so that the loss does not depend on their number.

`gitseg_tf.config.loss.LOSSES` lists all terms.
"""

from typing import Any, NamedTuple

import tensorflow as tf


class LabelCosts(NamedTuple):
    """The cost of each label.

    Attributes:
        costs: float32 [N, L] for each sample, or [1, L] for the batch.
        sizes: float32 of the same shape, the number of voxels of the label in the reference.
        counted: float32 of the same shape, the number of voxels that count; a label without any is left out.
    """

    costs: Any
    sizes: Any
    counted: Any


def over_replicas(value):
    """Sum a tensor over all replicas that run this step."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def spatial_axes(tensor) -> list[int]:
    """List the axes of [N, ..., L] between the first and the last."""
    return list(range(1, tensor.shape.rank - 1))
