"""Freeze the loaded layers of a network at first, so that the new ones adapt to them."""

from dataclasses import dataclass

import tensorflow as tf
import tf_keras as keras

from gitseg_tf.config.training import TrainingConfig
from gitseg_tf.models.transfer import weighted_layers


@dataclass(frozen=True)
class Freezing:
    """How long the loaded layers are held back.

    While they are frozen, the optimizer still follows their gradients: otherwise its moments would be zero afterwards,
    and the first updates of Adam several times too large.

    Attributes:
        variables: ids of their variables.
        normalizations: their batch normalization layers, which use their moving statistics while they are frozen.
        epochs: number of epochs in which they are frozen.
        steps: the same in steps.
        warmup_steps: steps over which their learning rate then rises from zero.
    """

    variables: frozenset[int]
    normalizations: tuple
    epochs: int
    steps: int
    warmup_steps: int

    def share(self, step):
        """Compute the factor of their learning rate in a step, counted from 0: float32, 0 to 1."""
        after = tf.cast(step, tf.float32) - self.steps + 1.0
        return tf.clip_by_value(after / max(self.warmup_steps, 1), 0.0, 1.0)

    def active(self, variables: list, gradients: list, step) -> list:
        """Return the gradients with those of frozen variables set to 0."""
        live = tf.cast(tf.cast(step, tf.int64) >= self.steps, tf.float32)
        pairs = zip(variables, gradients, strict=True)
        return [g * tf.cast(live, g.dtype) if id(v) in self.variables else g for v, g in pairs]

    def apply(self, epoch: int) -> bool:
        """Switch batch normalization to an epoch, counted from 0; return whether the training step must be traced."""
        trainable = epoch >= self.epochs
        changed = [layer for layer in self.normalizations if layer.trainable != trainable]
        for layer in changed:
            layer.trainable = trainable
        return bool(changed)


def freezing_of(
    model: keras.Model, loaded: frozenset[str], config: TrainingConfig, steps_per_epoch: int
) -> Freezing | None:
    """Create the freezing of a config.

    Args:
        model: the network.
        loaded: names of the layers whose weights were loaded.
        config: freeze_epochs and unfreeze_warmup_epochs.
        steps_per_epoch: number of training steps per epoch.

    Returns:
        The freezing; None if nothing is held back.
    """
    if not loaded or not (config.freeze_epochs or config.unfreeze_warmup_epochs):
        return None
    layers = [layer for name, layer in weighted_layers(model).items() if name in loaded]
    variables = frozenset(id(variable) for layer in layers for variable in layer.trainable_variables)
    normalizations = tuple(layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization))
    steps = config.freeze_epochs * steps_per_epoch
    warmup = round(config.unfreeze_warmup_epochs * steps_per_epoch)
    return Freezing(variables, normalizations, config.freeze_epochs, steps, warmup)
