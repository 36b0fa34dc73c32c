"""ResNet (He et al. 2015, arXiv:1512.03385), built by keras-cv."""

from functools import partial

import numpy as np

from gitseg_tf.config.model import ModelConfig
from gitseg_tf.models.backbones.backbone import CAFFE, KERAS_APPLICATIONS, STANDARDIZED, Backbone, Published


def resnet(inputs, config: ModelConfig, blocks: tuple[int, ...], bottleneck: bool) -> dict:
    """Build the four stages of a ResNet, without its classifier.

    Args:
        inputs: Keras tensor [N, H, W, K].
        config: not used.
        blocks: number of residual blocks in each stage.
        bottleneck: use blocks of 1x1, 3x3 and 1x1 convolutions with four times the channels instead of two 3x3
            convolutions.

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
    """Convert weights of keras.applications' ResNet to keras-cv's, which is the same network without biases.

    A bias before a batch normalization only shifts its mean, so it is subtracted from the moving mean. The stem of
    keras.applications is padded by one more pixel at the left and the top, which only shifts the features by three
    pixels.

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


def _backbone(blocks: tuple[int, ...], bottleneck: bool, weights: Published | None = None) -> Backbone:
    build, paper = partial(resnet, blocks=blocks, bottleneck=bottleneck), "He et al. 2015, arXiv:1512.03385"
    return Backbone(build, paper, "keras-cv", **(CAFFE if weights else STANDARDIZED), published=weights)


def _published(name: str, md5: str) -> Published:
    url = f"{KERAS_APPLICATIONS}/resnet/{name}_weights_tf_dim_ordering_tf_kernels_notop.h5"
    return Published(url, md5, convert=from_applications)


resnet18 = _backbone((2, 2, 2, 2), bottleneck=False)
resnet34 = _backbone((3, 4, 6, 3), bottleneck=False)
resnet50 = _backbone((3, 4, 6, 3), bottleneck=True, weights=_published("resnet50", "4d473c1dd8becc155b73f8504c6f6626"))
resnet101 = _backbone(
    (3, 4, 23, 3), bottleneck=True, weights=_published("resnet101", "88cf7a10940856eca736dc7b7e228a21")
)
