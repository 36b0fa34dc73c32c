"""The U-Net's decoder."""

from gitseg_tf.config.model import ModelConfig
from gitseg_tf.models.layers import UpsampleConv, conv_block, normalized

_WIDTHS = {16: 256, 8: 128, 4: 64, 2: 32, 1: 16}


def unet(features: dict, config: ModelConfig):
    """Decode features to full resolution, with skip connections at each level (Ronneberger et al. 2015).

    Args:
        features: Keras tensors by stride, each half the size of the previous one; at strides without a feature the
            decoder upsamples without a skip connection.
        config: not used.

    Returns:
        Keras tensor [N, H, W, C] at the resolution of the model's input.
    """
    stride = max(features)
    x = features[stride]
    while stride > 1:
        stride //= 2
        skips = [features[stride]] if stride in features else []
        x = up_block(x, skips, decoder_width(features, stride), f"decoder{stride}")
    return x


def decoder_width(features: dict, stride: int) -> int:
    """Return the decoder's width at a stride: the encoder's if it starts at full resolution, otherwise a fixed one."""
    return features[stride].shape[-1] if 1 in features else _WIDTHS[stride]


def up_block(x, skips: list, filters: int, name: str):
    """Upsample by 2, concatenate skip connections, and apply two convolutions.

    Args:
        x: Keras tensor [N, H, W, C].
        skips: Keras tensors [N, 2H, 2W, *]; may be empty.
        filters: number of channels of the result.
        name: prefix of the layers' names.

    Returns:
        Keras tensor [N, 2H, 2W, filters].
    """
    x = UpsampleConv(filters, name=f"{name}_1_conv")([x, *skips])
    return conv_block(normalized(x, f"{name}_1"), filters, f"{name}_2")
