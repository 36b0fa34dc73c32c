"""Layer-wise learning rates for an encoder."""

import tf_keras as keras

from gitseg_tf.config.training import TrainingConfig
from gitseg_tf.errors import ConfigError


def rate_shares(model: keras.Model, config: TrainingConfig) -> list[float]:
    """Compute the learning rate factor of each variable.

    Args:
        model: its encoder consists of the layers whose names begin with "encoder"; one of them may be a model.
        config: encoder_lr_multiplier is the factor of the encoder's deepest stage; the factor of each earlier stage is
            layer_lr_decay times that of the next. A stage comprises all layers at one resolution (layer-wise decay:
            Howard & Ruder 2018, arXiv:1801.06146; Clark et al. 2020, arXiv:2003.10555).

    Returns:
        One float for each of model.trainable_variables.

    Raises:
        ConfigError: the config sets a learning rate for an encoder, but the model has none.
    """
    if config.encoder_lr_multiplier == config.layer_lr_decay == 1.0:
        return [1.0] * len(model.trainable_variables)
    stages = _stages(model)
    if not stages:
        raise ConfigError(
            f"training.encoder_lr_multiplier and training.layer_lr_decay: {model.name} has no encoder; leave them at 1"
        )
    lowest = max(stages.values())
    shares = {
        key: config.encoder_lr_multiplier * config.layer_lr_decay ** (lowest - stage) for key, stage in stages.items()
    }
    return [shares.get(id(variable), 1.0) for variable in model.trainable_variables]


def _stages(model: keras.Model) -> dict[int, int]:
    """Map the id of each encoder variable to its stage: how often the resolution is halved at its layer."""
    stages, stage = {}, 0
    whole = model.inputs[0].shape
    for layer in _encoder_layers(model):
        shape = layer.output_shape
        # A sequence of tokens keeps the stage of the feature map from which it was reshaped.
        if isinstance(shape, tuple) and len(shape) == len(whole):
            stage = (max(whole[1:-1]) // max(shape[1:-1])).bit_length() - 1
        for variable in layer.trainable_variables:
            stages[id(variable)] = stage
    return stages


def _encoder_layers(model: keras.Model) -> list:
    layers = [layer for layer in model.layers if layer.name.startswith("encoder")]
    return [inner for layer in layers for inner in (layer.layers if isinstance(layer, keras.Model) else [layer])]
