"""The U-Net's decoder."""

import tf_keras as keras

from gitseg_tf.models.layers import Upsample, conv_block
from gitseg_tf.sections.model import ModelConfig

_WIDTHS = {16: 256, 8: 128, 4: 64, 2: 32, 1: 16}


def unet(features: dict, config: ModelConfig):
    """Decode features to full resolution, joining the encoder's at each level (Ronneberger et al. 2015).

    Args:
        features: Keras tensors by their stride, each half the size of the one before; where the encoder has none, the
            step upsamples without a join.
        config: the network's options.

    Returns:
        Keras tensor [N, H, W, C] at the resolution of the model's input.
    """
    stride = max(features)
    x = features[stride]
    for level in range(stride.bit_length() - 1):
        stride //= 2
        x, skip = Upsample(name=f"decoder{level}_up")(x), features.get(stride)
        if skip is not None:
            x = keras.layers.Concatenate(name=f"decoder{level}_join")([x, skip])
        width = skip.shape[-1] if config.backbone == "plain" else _WIDTHS[stride]
        for i in (1, 2):
            x = conv_block(x, width, f"decoder{level}_{i}")
    return x
