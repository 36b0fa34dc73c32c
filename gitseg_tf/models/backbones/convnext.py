"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545).

The layers are named and ordered as in keras.applications, whose weights fit. Its own network does the depthwise
convolutions as grouped ones, which TensorFlow trains on no CPU without XLA, and many times slower with it.
"""

import numpy as np
import tf_keras as keras

from gitseg_tf.sections.model import ModelConfig


@keras.utils.register_keras_serializable("gitseg_tf")
class LayerScale(keras.layers.Layer):
    """A trained factor a channel (Touvron et al. 2021, arXiv:2103.17239), at first 1e-6.

    Input [..., C], output the same.
    """

    def build(self, input_shape):
        self.gamma = self.add_weight("gamma", (input_shape[-1],), initializer=keras.initializers.Constant(1e-6))

    def call(self, inputs):
        return inputs * self.gamma


def convnext(inputs, config: ModelConfig, name: str, blocks: tuple[int, ...]) -> dict:
    """The four stages of a ConvNeXt with 96 to 768 channels, without its classifier.

    Args:
        inputs: Keras tensor [N, H, W, K].
        config: not used.
        name: prefix of the layers' names, as in keras.applications.
        blocks: in each stage.

    Returns:
        Keras tensors by stride: 4 (96 channels), 8 (192), 16 (384), 32 (768).
    """
    features, x = {}, inputs
    for stage, count in enumerate(blocks):
        channels = 96 * 2**stage
        x = _downsampling(x, channels, name, stage)
        for i in range(count):
            x = _block(x, channels, f"{name}_stage_{stage}_block_{i}")
        features[4 * 2**stage] = x
    return features


def _downsampling(x, channels: int, name: str, stage: int):
    size = 2 if stage else 4
    names = ("stem_conv", "stem_layernorm")
    if stage:
        names = (f"downsampling_conv_{stage - 1}", f"downsampling_layernorm_{stage - 1}")
    convolution = keras.layers.Conv2D(
        channels, size, strides=size, kernel_initializer=_normal(), name=f"{name}_{names[0]}"
    )
    normalization = keras.layers.LayerNormalization(epsilon=1e-6, name=f"{name}_{names[1]}")
    return convolution(normalization(x)) if stage else normalization(convolution(x))


def _block(inputs, channels: int, name: str):
    layers = [
        keras.layers.DepthwiseConv2D(7, padding="same", depthwise_initializer=_normal(), name=f"{name}_depthwise_conv"),
        keras.layers.LayerNormalization(epsilon=1e-6, name=f"{name}_layernorm"),
        keras.layers.Dense(4 * channels, kernel_initializer=_normal(), name=f"{name}_pointwise_conv_1"),
        keras.layers.Activation("gelu", name=f"{name}_gelu"),
        keras.layers.Dense(channels, kernel_initializer=_normal(), name=f"{name}_pointwise_conv_2"),
        LayerScale(name=f"{name}_layer_scale"),
    ]
    x = inputs
    for layer in layers:
        x = layer(x)
    return keras.layers.Add(name=f"{name}_add")([inputs, x])


def from_applications(layers: dict[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    """Weights of keras.applications' ConvNeXt for this one.

    Args:
        layers: weights by keras.applications' layer names; the stem and each downsampling are a layer of four.

    Returns:
        Weights by the names of this module.
    """
    converted = {}
    for name, weights in layers.items():
        if name.endswith("_depthwise_conv"):
            kernel, bias = weights  # [7, 7, 1, C], one group a channel
            converted[name] = [kernel.swapaxes(2, 3), bias]
        elif name.endswith("_stem"):
            converted[f"{name}_conv"], converted[f"{name}_layernorm"] = weights[:2], weights[2:]
        elif "_downsampling_block_" in name:
            converted[name.replace("_block_", "_layernorm_")] = weights[:2]
            converted[name.replace("_block_", "_conv_")] = weights[2:]
        else:
            converted[name] = weights
    return converted


def _normal():  # one for each weight: an initialiser draws the same numbers again
    return keras.initializers.TruncatedNormal(stddev=0.02)
