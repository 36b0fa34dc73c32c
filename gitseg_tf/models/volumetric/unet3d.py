"""3-D U-Nets with their own encoders.

A 3-D network is a function of the input tensor [N, D, H, W, C], the ModelConfig and the pooling factors of its stages.
It returns the decoder's Keras tensors, starting at full resolution. config.model.NETWORKS_3D lists all networks.
"""

import tf_keras as keras

from gitseg_tf.config.model import ModelConfig
from gitseg_tf.models.volumetric.layers import leaky_relu, normalized_convolution, residual_block

_MOST_FILTERS = 320
_RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6)  # of each level


def unet3d(inputs, config: ModelConfig, steps: list[tuple[int, int, int]]) -> list:
    """Build the 3-D U-Net (Cicek et al. 2016, arXiv:1606.06650), with the normalization and activation of nnU-Net.

    Args:
        inputs: Keras tensor [N, D, H, W, C].
        config: `filters` is the number of channels at full resolution; it doubles at each stage, up to 320.
        steps: pooling factors from `poolings`, one for each stage but the first.

    Returns:
        Keras tensors: [N, D, H, W, filters], followed by those at lower resolutions.
    """
    features, x = [], inputs
    for stage, step in enumerate([None, *steps]):
        if step:
            x = keras.layers.MaxPooling3D(step, name=f"encoder{stage}_pool")(x)
        x = _convolutions(x, _width(config, stage), f"encoder{stage}", 2)
        features.append(x)
    return _decode(features, steps, 2)


def residual_unet3d(inputs, config: ModelConfig, steps: list[tuple[int, int, int]]) -> list:
    """Build a 3-D U-Net with a residual encoder (Zhang et al. 2018, arXiv:1711.10684), like nnU-Net's ResEnc.

    The encoder has 1, 3, 4, 6, 6 and 6 residual blocks, as far as there are levels; the decoder has one convolution per
    stage (Isensee et al. 2024, arXiv:2404.09556).

    Args:
        inputs: Keras tensor [N, D, H, W, C].
        config: `filters`, as for `unet3d`.
        steps: pooling factors from `poolings`, one for each stage but the first.

    Returns:
        Keras tensors: [N, D, H, W, filters], followed by those at lower resolutions.
    """
    x = _convolutions(inputs, config.filters, "encoder_stem", 1)
    features = []
    for stage, (step, blocks) in enumerate(zip([(1, 1, 1), *steps], _RESIDUAL_BLOCKS, strict=False)):
        for block in range(blocks):
            strides = step if block == 0 else (1, 1, 1)
            x = residual_block(x, _width(config, stage), f"encoder{stage}_{block + 1}", strides)
        features.append(x)
    return _decode(features, steps, 1)


def _width(config: ModelConfig, stage: int) -> int:
    return min(config.filters * 2**stage, _MOST_FILTERS)


def _convolutions(x, filters: int, name: str, count: int):
    for i in range(1, count + 1):
        x = leaky_relu(normalized_convolution(x, filters, f"{name}_{i}"), f"{name}_{i}")
    return x


def _decode(features: list, steps: list[tuple[int, int, int]], convolutions: int) -> list:
    x = features[-1]
    decoded: list = []
    for stage in reversed(range(len(steps))):
        skip, name = features[stage], f"decoder{stage}"
        # A kernel as large as its stride avoids overlap and checkerboard artifacts, and XLA supports its gradient.
        x = keras.layers.Conv3DTranspose(skip.shape[-1], steps[stage], steps[stage], name=f"{name}_up")(x)
        x = keras.layers.Concatenate(name=f"{name}_join")([x, skip])
        x = _convolutions(x, skip.shape[-1], name, convolutions)
        decoded.insert(0, x)
    return decoded
