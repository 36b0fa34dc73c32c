"""Encoders: from a window to features at falling resolution.

A backbone is a function of an input tensor [N, H, W, K] and the ModelConfig; it returns its features by their stride
from the input, from the highest to the lowest resolution, and BACKBONES names it.
"""

import tf_keras as keras

from gitseg_tf.models.layers import conv_block
from gitseg_tf.sections.model import ModelConfig


def plain(inputs, config: ModelConfig, output_stride: int = 32) -> dict:
    """The encoder of the original U-Net with batch normalisation (Ronneberger et al. 2015, arXiv:1505.04597).

    Args:
        inputs: Keras tensor [N, H, W, K].
        config: `filters` is the number of channels at full resolution; it doubles at each level, up to 16 times.

    Returns:
        Keras tensors by stride: 1 [N, H, W, filters], 2 [N, H/2, W/2, 2 filters], ... 16 [N, H/16, W/16, 16 filters].
    """
    features, x = {}, inputs
    for level in range(5):
        if level:
            x = keras.layers.MaxPooling2D(name=f"encoder{level}_pool")(x)
        for i in (1, 2):
            x = conv_block(x, config.filters * 2**level, f"encoder{level}_{i}")
        features[2**level] = x
    return features


def resnet34(inputs, config: ModelConfig, output_stride: int = 32) -> dict:
    """ResNet-34 (He et al. 2015, arXiv:1512.03385) as keras-cv builds it, without pretrained weights.

    Args:
        inputs: Keras tensor [N, H, W, K]; the stem takes any K.
        config: not used.

    Returns:
        Keras tensors by stride: 2 (64 channels), 4 (64), 8 (128), 16 (256) and 32 (512).
    """
    from keras_cv.models import ResNetBackbone

    backbone = ResNetBackbone(
        stackwise_filters=[64, 128, 256, 512],
        stackwise_blocks=[3, 4, 6, 3],
        stackwise_strides=[1, 2, 2, 2],
        block_type="basic_block",
        include_rescaling=False,
        input_tensor=inputs,
    )
    levels = {
        2 ** int(level[1:]): backbone.get_layer(name).output for level, name in backbone.pyramid_level_inputs.items()
    }
    return {2: backbone.get_layer("conv1_relu").output} | levels


BACKBONES = {"plain": plain, "resnet34": resnet34}
