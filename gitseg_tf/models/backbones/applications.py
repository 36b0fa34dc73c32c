"""Encoders that keras.applications builds."""

import tf_keras as keras

from gitseg_tf.sections.model import ModelConfig


def application(inputs, config: ModelConfig, network: str, layers: tuple[str, ...]) -> dict:
    """A network of keras.applications, cut behind its last stage.

    Args:
        inputs: Keras tensor [N, H, W, K].
        config: not used.
        network: its name in keras.applications.
        layers: those whose outputs are the features of stride 2, 4, 8, ...

    Returns:
        Keras tensors by stride.
    """
    build = getattr(keras.applications, network)
    model = build(include_top=False, weights=None, input_tensor=inputs, include_preprocessing=False)
    return {2 ** (i + 1): model.get_layer(name).output for i, name in enumerate(layers)}
