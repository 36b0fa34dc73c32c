"""The U-Net's decoder."""

import tf_keras as keras

from gitseg_tf.config import ModelConfig
from gitseg_tf.models.layers import Upsample, conv_block

_RESNET_DECODER = (256, 128, 64, 32, 16)


def unet(features: list, config: ModelConfig):
    """Decode features to full resolution, joining the encoder's at each level (Ronneberger et al. 2015).

    Args:
        features: Keras tensors from high to low resolution, each half the size of the one before; the first has the
            stride 1 (plain) or 2 (resnet34), and then the last step upsamples without a join.
        config: the network's options.

    Returns:
        Keras tensor [N, H, W, C] at the resolution of the model's input.
    """
    *skips, x = features
    if config.backbone == "plain":
        widths = [skip.shape[-1] for skip in reversed(skips)]
    else:
        widths = list(_RESNET_DECODER)
        skips = [None, *skips]
    for level, (skip, width) in enumerate(zip(reversed(skips), widths, strict=True)):
        x = Upsample(name=f"decoder{level}_up")(x)
        if skip is not None:
            x = keras.layers.Concatenate(name=f"decoder{level}_join")([x, skip])
        for i in (1, 2):
            x = conv_block(x, width, f"decoder{level}_{i}")
    return x
