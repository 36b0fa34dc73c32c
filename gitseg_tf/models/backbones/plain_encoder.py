"""The encoder of the original U-Net."""

import tf_keras as keras

from gitseg_tf.config.model import ModelConfig
from gitseg_tf.models.backbones.backbone import Backbone
from gitseg_tf.models.layers import conv_block


def plain_encoder(inputs, config: ModelConfig) -> dict:
    """Build the encoder of the original U-Net, with batch normalization (Ronneberger et al. 2015, arXiv:1505.04597).

    Args:
        inputs: Keras tensor [N, H, W, K].
        config: `filters` is the number of channels at full resolution; it doubles at each of the `levels`.

    Returns:
        Keras tensors by stride: 1 [N, H, W, filters], 2 [N, H/2, W/2, 2 filters], 4, ...
    """
    features, x = {}, inputs
    for level in range(config.levels):
        if level:
            x = keras.layers.MaxPooling2D(name=f"encoder{level}_pool")(x)
        for i in (1, 2):
            x = conv_block(x, config.filters * 2**level, f"encoder{level}_{i}")
        features[2**level] = x
    return features


plain = Backbone(plain_encoder, "Ronneberger et al. 2015, arXiv:1505.04597", "this package", dilates=False)
