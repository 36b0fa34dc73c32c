"""Losses on logits, weighted by the config. A global batch gives the same loss and gradient on any number of replicas.

The training step adds up the losses [N] of a replica's samples and divides by the global batch size. A term of each
sample is right as it is; a term of the batch is made of sums over all replicas and given to each sample.
"""

from gitseg_tf.training.losses.build import build_loss, training_loss

__all__ = ["build_loss", "training_loss"]
