"""The decoder of DeepLabV3+."""

import tf_keras as keras

from gitseg_tf.config.model import ModelConfig
from gitseg_tf.models.layers import BilinearUpsample, conv_block, separable_block

_WIDTH = 256
_LOW_LEVEL_WIDTH = 48
_RATES = (12, 24, 36)


def deeplabv3plus(features: dict, config: ModelConfig):
    """Decode with atrous separable pyramid pooling and a short decoder (Chen et al. 2018, arXiv:1802.02611).

    The rates are those of output stride 16, in pixels of the deepest feature; they are halved if it has stride 32. The
    width is 256, or the number of channels of the deepest feature if that is smaller.

    Args:
        features: Keras tensors by stride; the deepest and the one of stride 4 are used.
        config: not used.

    Returns:
        Keras tensor [N, H/4, W/4, 256].
    """
    stride = max(features)
    width = min(_WIDTH, features[stride].shape[-1])
    x = _pyramid_pooling(features[stride], width, [rate * 16 // stride for rate in _RATES])
    x = separable_block(x, width, "decoder_context")
    x = BilinearUpsample(stride // 4, name="decoder_up")(x)
    low_level = conv_block(features[4], min(_LOW_LEVEL_WIDTH, features[4].shape[-1]), "decoder_low_level", kernel=1)
    x = keras.layers.Concatenate(name="decoder_join")([x, low_level])
    return separable_block(x, width, "decoder_fusion")


def _pyramid_pooling(x, width: int, rates: list[int]):
    branches = [conv_block(x, width, "decoder_aspp1", kernel=1)]
    branches += [separable_block(x, width, f"decoder_aspp{rate}", rate) for rate in rates]
    pooled = keras.layers.GlobalAveragePooling2D(keepdims=True, name="decoder_aspp_pool")(x)
    pooled = conv_block(pooled, width, "decoder_aspp_image", kernel=1)
    branches.append(BilinearUpsample(x.shape[1:3], name="decoder_aspp_spread")(pooled))
    return conv_block(keras.layers.Concatenate(name="decoder_aspp_join")(branches), width, "decoder_aspp", kernel=1)
