"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545).

The layers are named and ordered as in keras.applications, so that its weights fit. keras.applications implements
depthwise convolutions as grouped ones, which TensorFlow cannot train on a CPU without XLA, and trains much more slowly
with it.
"""

from functools import partial

import numpy as np
import tf_keras as keras

from gitseg_tf.config.model import ModelConfig
from gitseg_tf.models.backbones.backbone import KERAS_APPLICATIONS, STANDARDIZED, Backbone, Published


@keras.utils.register_keras_serializable("gitseg_tf")
class LayerScale(keras.layers.Layer):
    """A trained factor per channel (Touvron et al. 2021, arXiv:2103.17239), initially 1e-6.

    Input [..., C], output the same.
    """

    def build(self, input_shape):
        self.gamma = self.add_weight("gamma", (input_shape[-1],), initializer=keras.initializers.Constant(1e-6))

    def call(self, inputs):
        return inputs * self.gamma


def convnext(inputs, config: ModelConfig, name: str, blocks: tuple[int, ...]) -> dict:
    """Build the four stages of a ConvNeXt with 96 to 768 channels, without its classifier.

    Args:
        inputs: Keras tensor [N, H, W, K].
        config: not used.
        name: prefix of the layers' names, as in keras.applications.
        blocks: number of blocks in each stage.

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
    """Convert weights of keras.applications' ConvNeXt to the layers of this one.

    Args:
        layers: weights by keras.applications' layer names; the stem and each downsampling step are one layer with four
            weights.

    Returns:
        Weights by the names of this module.
    """
    converted = {}
    for name, weights in layers.items():
        if name.endswith("_depthwise_conv"):
            kernel, bias = weights  # [7, 7, 1, C], one group per channel
            converted[name] = [kernel.swapaxes(2, 3), bias]
        elif name.endswith("_stem"):
            converted[f"{name}_conv"], converted[f"{name}_layernorm"] = weights[:2], weights[2:]
        elif "_downsampling_block_" in name:
            converted[name.replace("_block_", "_layernorm_")] = weights[:2]
            converted[name.replace("_block_", "_conv_")] = weights[2:]
        else:
            converted[name] = weights
    return converted


def _normal():  # create one per weight, because an initializer returns the same numbers every time
    return keras.initializers.TruncatedNormal(stddev=0.02)


def _backbone(name: str, sha256: str, blocks: tuple[int, ...]) -> Backbone:
    weights = Published(f"{KERAS_APPLICATIONS}/convnext/{name}_notop.h5", sha256, convert=from_applications)
    build, paper = partial(convnext, name=name, blocks=blocks), "Liu et al. 2022, arXiv:2201.03545"
    return Backbone(build, paper, "this package", **STANDARDIZED, published=weights, dilates=False)


convnext_tiny = _backbone(
    "convnext_tiny", "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1", (3, 3, 9, 3)
)
convnext_small = _backbone(
    "convnext_small", "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab", (3, 3, 27, 3)
)
