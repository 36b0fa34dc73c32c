"""Lower learning rates for the layers of an encoder."""

import re

import tf_keras as keras

from gitseg_tf.sections.training import TrainingConfig

_BEHIND_THE_ENCODER = re.compile(r"(decoder|logits|presence|deep)")


def rate_shares(model: keras.Model, config: TrainingConfig) -> list[float]:
    """Each variable's share of the learning rate.

    Args:
        model: whose decoder's layers have names that begin so.
        config: encoder_rate is the encoder's share, layer_decay its share from one stage to the one above. A stage is
            what lies at one resolution; the lowest has encoder_rate itself (the idea of layer-wise decay: Howard &
            Ruder 2018, arXiv:1801.06146; Clark et al. 2020, arXiv:2003.10555).

    Returns:
        A float for each of model.trainable_variables.
    """
    if config.encoder_rate == config.layer_decay == 1.0:
        return [1.0] * len(model.trainable_variables)
    stages = _stages(model)
    lowest = max(stages.values(), default=0)
    shares = {key: config.encoder_rate * config.layer_decay ** (lowest - stage) for key, stage in stages.items()}
    return [shares.get(id(variable), 1.0) for variable in model.trainable_variables]


def _stages(model: keras.Model) -> dict[int, int]:
    """By the id of each variable of the encoder, how many times its layer's output is halved."""
    stages, stage = {}, 0
    size = max(model.inputs[0].shape[1:-1])
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer) or _BEHIND_THE_ENCODER.match(layer.name):
            continue
        shape = layer.output_shape
        # A sequence of tokens has the resolution of the image that it was made of.
        if isinstance(shape, tuple) and len(shape) == len(model.inputs[0].shape):
            stage = max(size // max(shape[1:-1]), 1).bit_length() - 1
        for variable in layer.trainable_variables:
            stages[id(variable)] = stage
    return stages
