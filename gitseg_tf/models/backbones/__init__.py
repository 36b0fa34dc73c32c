"""Encoders: from a window to features at falling resolution. A row of BACKBONES each."""

from functools import partial

from gitseg_tf.models.backbones.applications import application
from gitseg_tf.models.backbones.backbone import Backbone, Published, encoder_of, encoder_variables
from gitseg_tf.models.backbones.convnext import convnext
from gitseg_tf.models.backbones.convnext import from_applications as convnext_weights
from gitseg_tf.models.backbones.mit import mit
from gitseg_tf.models.backbones.plain_encoder import plain
from gitseg_tf.models.backbones.resnet import from_applications as resnet_weights
from gitseg_tf.models.backbones.resnet import resnet

__all__ = ["BACKBONES", "Backbone", "Published", "encoder_of", "encoder_variables", "plain"]

_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
# What networks trained on ImageNet expect of an image in [0, 1]: factor and offset, the mean of the three colours.
_STANDARDISED = {"scale": 1 / 0.226, "offset": -0.449 / 0.226}
_CENTRED = {"scale": 2.0, "offset": -1.0}
_CAFFE = {"scale": 255.0, "offset": -114.8}
_RESNET = "He et al. 2015, arXiv:1512.03385"
_EFFICIENTNETV2 = "Tan & Le 2021, arXiv:2104.00298"
_CONVNEXT = "Liu et al. 2022, arXiv:2201.03545"
_MIT = "Xie et al. 2021, arXiv:2105.15203"


def _resnet(blocks: tuple[int, ...], bottleneck: bool, weights: Published | None = None) -> Backbone:
    scaling = _CAFFE if weights else _STANDARDISED
    return Backbone(
        partial(resnet, blocks=blocks, bottleneck=bottleneck), _RESNET, "keras-cv", **scaling, published=weights
    )


def _resnet_weights(name: str, md5: str) -> Published:
    return Published(f"{_KERAS}/resnet/{name}_weights_tf_dim_ordering_tf_kernels_notop.h5", md5, convert=resnet_weights)


def _efficientnetv2(network: str, file: str, md5: str, last_blocks: str) -> Backbone:
    names = last_blocks.split()
    layers = tuple(f"block{block}_{'project_activation' if block == '1a' else 'add'}" for block in names)
    scaling = _STANDARDISED if "-b" in file else _CENTRED
    weights = Published(f"{_KERAS}/efficientnet_v2/efficientnetv2-{file}_notop.h5", md5)
    build = partial(application, network=network, layers=layers)
    return Backbone(build, _EFFICIENTNETV2, "keras.applications", **scaling, published=weights)


def _convnext(name: str, sha256: str, blocks: tuple[int, ...]) -> Backbone:
    weights = Published(f"{_KERAS}/convnext/{name}_notop.h5", sha256, convert=convnext_weights)
    build = partial(convnext, name=name, blocks=blocks)
    return Backbone(build, _CONVNEXT, "this package", **_STANDARDISED, published=weights, dilates=False)


def _mit(widths: tuple[int, ...], blocks: tuple[int, ...]) -> Backbone:
    return Backbone(partial(mit, widths=widths, blocks=blocks), _MIT, "this package", **_STANDARDISED, dilates=False)


BACKBONES = {
    "plain": Backbone(plain, "Ronneberger et al. 2015, arXiv:1505.04597", "this package", dilates=False),
    "resnet18": _resnet((2, 2, 2, 2), bottleneck=False),
    "resnet34": _resnet((3, 4, 6, 3), bottleneck=False),
    "resnet50": _resnet(
        (3, 4, 6, 3), bottleneck=True, weights=_resnet_weights("resnet50", "4d473c1dd8becc155b73f8504c6f6626")
    ),
    "resnet101": _resnet(
        (3, 4, 23, 3), bottleneck=True, weights=_resnet_weights("resnet101", "88cf7a10940856eca736dc7b7e228a21")
    ),
    "efficientnetv2_b0": _efficientnetv2(
        "EfficientNetV2B0", "b0", "893217f2bb855e2983157299931e43ff", "1a 2b 3b 5e 6h"
    ),
    "efficientnetv2_b1": _efficientnetv2(
        "EfficientNetV2B1", "b1", "0e80663031ca32d657f9caa404b6ec37", "1b 2c 3c 5f 6i"
    ),
    "efficientnetv2_b2": _efficientnetv2(
        "EfficientNetV2B2", "b2", "1dfe2e7a5d45b6632553a8961ea609eb", "1b 2c 3c 5f 6j"
    ),
    "efficientnetv2_b3": _efficientnetv2(
        "EfficientNetV2B3", "b3", "f6abf7b5849ac99a89b50dd3fd532856", "1b 2c 3c 5g 6l"
    ),
    "efficientnetv2_s": _efficientnetv2("EfficientNetV2S", "s", "af0682fb74e8c54910f2d4393339c070", "1b 2d 3d 5i 6o"),
    "efficientnetv2_m": _efficientnetv2("EfficientNetV2M", "m", "1b8dc055df72dde80d614482840fe342", "1c 2e 3e 5n 7e"),
    "efficientnetv2_l": _efficientnetv2("EfficientNetV2L", "l", "b0b66b5c863aef5b46e8608fe1711615", "1d 2g 3g 5s 7g"),
    "convnext_tiny": _convnext(
        "convnext_tiny",
        "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
        (3, 3, 9, 3),
    ),
    "convnext_small": _convnext(
        "convnext_small",
        "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab",
        (3, 3, 27, 3),
    ),
    "mobilenetv3": Backbone(
        partial(
            application,
            network="MobileNetV3Large",
            layers=tuple(f"expanded_conv{block}/Add" for block in ("", "_2", "_5", "_11", "_14")),
        ),
        "Howard et al. 2019, arXiv:1905.02244",
        "keras.applications",
        **_CENTRED,
        published=Published(
            f"{_KERAS}/mobilenet_v3/weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
            "07fb09a5933dd0c8eaafa16978110389",
        ),
    ),
    "mit_b0": _mit((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": _mit((64, 128, 320, 512), (2, 2, 2, 2)),
    "mit_b2": _mit((64, 128, 320, 512), (3, 4, 6, 3)),
    "mit_b3": _mit((64, 128, 320, 512), (3, 4, 18, 3)),
}
