"""Lower learning rates for the layers of an encoder."""

import tf_keras as keras

from gitseg_tf.errors import InputError
from gitseg_tf.sections.training import TrainingConfig


def rate_shares(model: keras.Model, config: TrainingConfig) -> list[float]:
    """Each variable's share of the learning rate.

    Args:
        model: its encoder are the layers whose names begin with "encoder"; one of them may be a model of its own.
        config: encoder_rate is the encoder's share, layer_decay its share from one stage to the one above. A stage is
            what lies at one resolution; the lowest has encoder_rate itself (the idea of layer-wise decay: Howard &
            Ruder 2018, arXiv:1801.06146; Clark et al. 2020, arXiv:2003.10555).

    Returns:
        A float for each of model.trainable_variables.

    Raises:
        InputError: the encoder is to have a rate of its own, and there is none.
    """
    if config.encoder_rate == config.layer_decay == 1.0:
        return [1.0] * len(model.trainable_variables)
    stages = _stages(model)
    if not stages:
        raise InputError(
            f"training.encoder_rate and training.layer_decay: {model.name} has no encoder; leave them at 1"
        )
    lowest = max(stages.values())
    shares = {key: config.encoder_rate * config.layer_decay ** (lowest - stage) for key, stage in stages.items()}
    return [shares.get(id(variable), 1.0) for variable in model.trainable_variables]


def _stages(model: keras.Model) -> dict[int, int]:
    """By the id of each variable of the encoder, how many times its layer's output is halved."""
    stages, stage = {}, 0
    whole = model.inputs[0].shape
    for layer in _encoder_layers(model):
        shape = layer.output_shape
        # A sequence of tokens has the resolution of the image that it was made of.
        if isinstance(shape, tuple) and len(shape) == len(whole):
            stage = (max(whole[1:-1]) // max(shape[1:-1])).bit_length() - 1
        for variable in layer.trainable_variables:
            stages[id(variable)] = stage
    return stages


def _encoder_layers(model: keras.Model) -> list:
    layers = [layer for layer in model.layers if layer.name.startswith("encoder")]
    return [inner for layer in layers for inner in (layer.layers if isinstance(layer, keras.Model) else [layer])]
