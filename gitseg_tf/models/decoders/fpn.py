"""The decoder of the semantic feature pyramid network."""

from math import gcd

import tf_keras as keras

from gitseg_tf.config.model import ModelConfig
from gitseg_tf.models.layers import Upsample, bilinear

_PYRAMID_WIDTH = 256
_GROUPS = 32


def fpn(features: dict, config: ModelConfig):
    """Decode with a feature pyramid whose levels are upsampled and added (Kirillov et al. 2019, arXiv:1901.02446).

    The pyramid has 256 channels, or as many as the deepest feature if that has fewer; the segmentation branch has half
    as many.

    Args:
        features: Keras tensors by stride; the four deepest are used.
        config: not used.

    Returns:
        Keras tensor [N, H/s, W/s, C] at the lowest stride s used: 4 for most encoders.
    """
    strides = sorted(features)[-4:]
    width = min(_PYRAMID_WIDTH, features[strides[-1]].shape[-1])
    x, levels = None, {}
    for stride in reversed(strides):
        side = keras.layers.Conv2D(width, 1, name=f"decoder{stride}_lateral")(features[stride])
        if x is not None:
            side = keras.layers.Add(name=f"decoder{stride}_add")([side, Upsample(name=f"decoder{stride}_up")(x)])
        levels[stride] = x = side
    return keras.layers.Add(name="decoder_sum")(
        [_segmentation_branch(x, width // 2, stride // strides[0], f"decoder{stride}") for stride, x in levels.items()]
    )


def _segmentation_branch(x, width: int, factor: int, name: str):
    """Repeat convolution, group normalization, ReLU and bilinear upsampling by 2 until `factor` is reached."""
    for i in range(max(1, factor.bit_length() - 1)):
        x = keras.layers.Conv2D(
            width, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"{name}_{i}_conv"
        )(x)
        x = keras.layers.GroupNormalization(gcd(_GROUPS, width), epsilon=1e-5, name=f"{name}_{i}_gn")(x)
        x = keras.layers.ReLU(name=f"{name}_{i}_relu")(x)
        x = bilinear(x, 2 if factor > 1 else 1, f"{name}_{i}_up")
    return x
