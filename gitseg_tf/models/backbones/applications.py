"""Encoders built by keras.applications."""

from functools import partial

import tf_keras as keras

from gitseg_tf.config.model import ModelConfig
from gitseg_tf.models.backbones.backbone import CENTERED, KERAS_APPLICATIONS, STANDARDIZED, Backbone, Published


def application(inputs, config: ModelConfig, network: str, layers: tuple[str, ...]) -> dict:
    """Build a network of keras.applications without its head.

    Args:
        inputs: Keras tensor [N, H, W, K].
        config: not used.
        network: its name in keras.applications.
        layers: names of the layers whose outputs are the features of stride 2, 4, 8, ...

    Returns:
        Keras tensors by stride.
    """
    build = getattr(keras.applications, network)
    model = build(include_top=False, weights=None, input_tensor=inputs, include_preprocessing=False)
    return {2 ** (i + 1): model.get_layer(name).output for i, name in enumerate(layers)}


def _efficientnetv2(size: str, md5: str, last_blocks: str) -> Backbone:
    layers = tuple(f"block{b}_{'project_activation' if b == '1a' else 'add'}" for b in last_blocks.split())
    weights = Published(f"{KERAS_APPLICATIONS}/efficientnet_v2/efficientnetv2-{size}_notop.h5", md5)
    build = partial(application, network=f"EfficientNetV2{size.upper()}", layers=layers)
    scaling = STANDARDIZED if size.startswith("b") else CENTERED
    return Backbone(build, "Tan & Le 2021, arXiv:2104.00298", "keras.applications", **scaling, published=weights)


efficientnetv2_b0 = _efficientnetv2("b0", "893217f2bb855e2983157299931e43ff", "1a 2b 3b 5e 6h")
efficientnetv2_b1 = _efficientnetv2("b1", "0e80663031ca32d657f9caa404b6ec37", "1b 2c 3c 5f 6i")
efficientnetv2_b2 = _efficientnetv2("b2", "1dfe2e7a5d45b6632553a8961ea609eb", "1b 2c 3c 5f 6j")
efficientnetv2_b3 = _efficientnetv2("b3", "f6abf7b5849ac99a89b50dd3fd532856", "1b 2c 3c 5g 6l")
efficientnetv2_s = _efficientnetv2("s", "af0682fb74e8c54910f2d4393339c070", "1b 2d 3d 5i 6o")
efficientnetv2_m = _efficientnetv2("m", "1b8dc055df72dde80d614482840fe342", "1c 2e 3e 5n 7e")
efficientnetv2_l = _efficientnetv2("l", "b0b66b5c863aef5b46e8608fe1711615", "1d 2g 3g 5s 7g")

mobilenetv3 = Backbone(
    partial(
        application,
        network="MobileNetV3Large",
        layers=tuple(f"expanded_conv{block}/Add" for block in ("", "_2", "_5", "_11", "_14")),
    ),
    "Howard et al. 2019, arXiv:1905.02244",
    "keras.applications",
    **CENTERED,
    published=Published(
        f"{KERAS_APPLICATIONS}/mobilenet_v3/weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
        "07fb09a5933dd0c8eaafa16978110389",
    ),
)
