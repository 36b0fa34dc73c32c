"""Losses on logits, weighted by the config. A global batch has the same loss and gradient on any number of replicas.

The training step sums the losses [N] of a replica's samples and divides by the global batch size. This is sufficient
for a term per sample; a term per batch is computed from sums over all replicas and assigned to each sample.
"""

from gitseg_tf.training.losses.build import build_loss, training_loss

__all__ = ["build_loss", "training_loss"]
