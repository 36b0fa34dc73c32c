"""ResNet (He et al. 2015, arXiv:1512.03385) as keras-cv builds it."""

import numpy as np

from gitseg_tf.sections.model import ModelConfig


def resnet(inputs, config: ModelConfig, blocks: tuple[int, ...], bottleneck: bool) -> dict:
    """The four stages of a ResNet, without its classifier.

    Args:
        inputs: Keras tensor [N, H, W, K].
        config: not used.
        blocks: residual blocks in each stage.
        bottleneck: blocks of 1x1, 3x3 and 1x1 convolutions with four times the channels, not of two 3x3 convolutions.

    Returns:
        Keras tensors by stride: 2 (64 channels), 4, 8, 16 and 32 (64 to 512 channels, with bottlenecks 256 to 2048).
    """
    from keras_cv.models import ResNetBackbone

    network = ResNetBackbone(
        stackwise_filters=[64, 128, 256, 512],
        stackwise_blocks=list(blocks),
        stackwise_strides=[1, 2, 2, 2],
        block_type="block" if bottleneck else "basic_block",
        include_rescaling=False,
        input_tensor=inputs,
    )
    stages = {4 * 2**i: f"v2_stack_{i}_block{count}_out" for i, count in enumerate(blocks)}
    return {stride: network.get_layer(name).output for stride, name in {2: "conv1_relu", **stages}.items()}


def from_applications(layers: dict[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    """Weights of keras.applications' ResNet for keras-cv's, which is the same network without biases.

    A bias before a batch normalisation only shifts its mean: it is taken off the moving mean. keras.applications pads
    the stem by one pixel more at the left and the top, which moves the features by three pixels and changes nothing
    else.

    Args:
        layers: weights by keras.applications' layer names.

    Returns:
        Weights by keras-cv's layer names.
    """
    converted = {}
    for name, weights in layers.items():
        if not name.endswith("_bn"):
            continue
        convolution = name.removesuffix("bn") + "conv"
        kernel, bias = layers[convolution]
        gamma, beta, mean, variance = weights
        converted[_keras_cv_name(convolution)] = [kernel]
        converted[_keras_cv_name(name)] = [gamma, beta, mean - bias, variance]
    return converted


def _keras_cv_name(name: str) -> str:
    stage, _, rest = name.partition("_block")
    return f"v2_stack_{int(stage.removeprefix('conv')) - 2}_block{rest}" if rest else name
