"""Stop training at a non-finite loss, and report likely causes."""

import math
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.config import Config
from gitseg_tf.data.pipeline.batches import training_batch
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.errors import RunError

_MOST_SCANS = 4


class StopsAtDivergence(keras.callbacks.Callback):
    """Stops training with a RunError at the first step whose loss is not finite.

    If the validation loss is not finite, it stops before the epoch's results are written, because the run must keep the
    weights of the previous epoch. Place it before the callbacks that write.

    Args:
        dataset, config: as used for training; the failing step's batch is reproduced to describe it.
    """

    def __init__(self, dataset: Dataset, config: Config):
        super().__init__()
        self.dataset, self.config, self.epoch = dataset, config, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):
            self._stop(f"epoch {self.epoch + 1}, step {batch + 1}: the loss is {logs['loss']}", batch)

    def on_epoch_end(self, epoch, logs=None):
        loss = logs.get("val_loss", logs["loss"])  # val_loss is missing if no fold is held out
        if not math.isfinite(loss):
            self._stop(f"epoch {epoch + 1}: the validation loss is {loss}", self.params["steps"] - 1)

    def _stop(self, what: str, step: int):
        rate = float(self.model.schedule(self.model.optimizer.iterations - 1))
        parts = [f"{what} at learning rate {rate:.3g}", non_finite_parts(self.model)]
        if self.config.data.service is None:  # batches of a data service cannot be reproduced
            parts.append(_describe_batch(*training_batch(self.dataset, self.config, self.epoch, step)))
        fix = "train again in another run folder, with a lower training.learning_rate or training.precision float32"
        raise RunError("; ".join([*parts, fix]))


def non_finite_parts(model: keras.Model) -> str:
    """Describe which parts of a network contain non-finite values.

    The moving statistics of batch normalization depend on the forward pass only. The first layer with non-finite
    statistics therefore shows where the activations became non-finite; if there is none, the loss or its gradient
    overflowed.

    Args:
        model: the network after the step with the non-finite loss.

    Returns:
        A short description.
    """
    counts = [
        (layer, _non_finite(layer.trainable_weights), _non_finite(layer.non_trainable_weights))
        for layer in _leaves(model)
    ]
    weights = sum(trainable for _, trainable, _ in counts)
    total = len(model.trainable_weights)
    forward = next((layer.name for layer, _, statistics in counts if statistics), None)
    if forward is not None:
        return f"the activations that reach layer {forward} are not finite ({weights} of {total} weights affected)"
    if weights:
        return (
            f"the activations are finite, but the loss or its gradient is not ({weights} of {total} weights affected)"
        )
    return "all weights are finite, so the loss itself overflowed"


def _leaves(model: keras.Model) -> Iterator[keras.layers.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _leaves(layer)
        else:
            yield layer


def _non_finite(variables: list) -> int:
    values = [tf.convert_to_tensor(variable) for variable in variables]
    return sum(not np.isfinite(value.numpy()).all() for value in values if value.dtype.is_floating)


def _describe_batch(scans: list[str], image: np.ndarray, mask: np.ndarray) -> str:
    shown = ", ".join(scans[:_MOST_SCANS]) + (
        f" and {len(scans) - _MOST_SCANS} more" if len(scans) > _MOST_SCANS else ""
    )
    values = f"{image.min():.3g} to {image.max():.3g}" if np.isfinite(image).all() else "not finite"
    return f"its batch shows {shown}: values {values}, {100 * np.maximum(mask, 0).mean():.2g}% inside labels"
