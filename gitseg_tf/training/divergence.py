"""A loss that is no number: stop, and say where to look."""

import math
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.config import Config
from gitseg_tf.data.dataset import Dataset
from gitseg_tf.data.pipeline import training_batch
from gitseg_tf.errors import InputError

_MOST_SCANS = 4


class StopsAtDivergence(keras.callbacks.Callback):
    """Stops the training with an InputError at the first step whose loss is no number.

    It also stops before an epoch's results are written if the validation loss is no number: the weights are spoilt
    then, and the run must keep what the epoch before it left. Put it before the callbacks that write.

    Args:
        dataset, config: of the training; the step's batch is made once more, to describe it.
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
        loss = logs.get("val_loss", logs["loss"])  # without a fold that is held out there is none
        if not math.isfinite(loss):
            self._stop(f"epoch {epoch + 1}: the validation loss is {loss}", self.params["steps"] - 1)

    def _stop(self, what: str, step: int):
        rate = float(self.model.schedule(self.model.optimizer.iterations - 1))
        parts = [f"{what} at learning rate {rate:.3g}", spoilt_parts(self.model)]
        if self.config.data.service is None:  # a service makes no batch twice
            parts.append(_described(*training_batch(self.dataset, self.config, self.epoch, step)))
        cure = "train anew with another --out and a lower training.learning_rate, or with --precision float32"
        raise InputError("; ".join([*parts, cure]))


def spoilt_parts(model: keras.Model) -> str:
    """Which parts of a network hold values that are no numbers, in a few words.

    The moving statistics of batch normalisation come from the way forward alone. So the first layer whose statistics
    are spoilt is where the activations went wrong; if none is, the loss or its gradient overflowed.

    Args:
        model: after the step that went wrong.
    """
    spoilt = [
        (layer, _spoilt(layer.trainable_weights), _spoilt(layer.non_trainable_weights)) for layer in _leaves(model)
    ]
    weights = sum(trainable for _, trainable, _ in spoilt)
    total = len(model.trainable_weights)
    forward = next((layer.name for layer, _, statistics in spoilt if statistics), None)
    if forward is not None:
        return f"the activations that reach layer {forward} are not finite ({weights} of {total} weights are spoilt)"
    if weights:
        return f"the activations are finite, the loss or its gradient is not ({weights} of {total} weights are spoilt)"
    return "all weights are finite, the loss itself overflowed"


def _leaves(model: keras.Model) -> Iterator[keras.layers.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _leaves(layer)
        else:
            yield layer


def _spoilt(variables: list) -> int:
    values = [tf.convert_to_tensor(variable) for variable in variables]
    return sum(not np.isfinite(value.numpy()).all() for value in values if value.dtype.is_floating)


def _described(scans: list[str], image: np.ndarray, mask: np.ndarray) -> str:
    shown = ", ".join(scans[:_MOST_SCANS]) + (
        f" and {len(scans) - _MOST_SCANS} more" if len(scans) > _MOST_SCANS else ""
    )
    values = f"{image.min():.3g} to {image.max():.3g}" if np.isfinite(image).all() else "not finite"
    return f"its batch shows {shown}: values {values}, {100 * mask.mean():.2g}% inside organs"
