"""The decoder of SegFormer."""

import tf_keras as keras

from gitseg_tf.config.model import ModelConfig
from gitseg_tf.models.layers import bilinear, normalized

_WIDTH = 256


def segformer(features: dict, config: ModelConfig):
    """Decode with the all-MLP head (Xie et al. 2021, arXiv:2105.15203).

    The paper concatenates the upsampled levels and mixes them with a 1x1 convolution. Here each level is multiplied by
    its part of that kernel before it is upsampled and added, which gives the same result with less work, because
    upsampling and a 1x1 convolution commute. The width is 256, or the number of channels of the deepest feature if that
    is smaller.

    Args:
        features: Keras tensors by stride; the four deepest are used.
        config: not used.

    Returns:
        Keras tensor [N, H/s, W/s, 256] at the lowest stride s used: 4 for most encoders.
    """
    strides = sorted(features)[-4:]
    width = min(_WIDTH, features[strides[-1]].shape[-1])
    parts = []
    for stride in strides:
        x = keras.layers.Dense(width, name=f"decoder{stride}_mlp")(features[stride])
        # He initialization for a sum over the channels of all levels.
        mixing = keras.initializers.RandomNormal(stddev=(2 / (width * len(strides))) ** 0.5)
        x = keras.layers.Dense(width, use_bias=False, kernel_initializer=mixing, name=f"decoder{stride}_mix")(x)
        parts.append(bilinear(x, stride // strides[0], f"decoder{stride}_up"))
    return normalized(keras.layers.Add(name="decoder_sum")(parts), "decoder")
