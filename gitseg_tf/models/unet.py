"""The U-Net's decoder."""

from gitseg_tf.models.layers import UpsampleConv, conv_block, normalized
from gitseg_tf.sections.model import ModelConfig

_WIDTHS = {16: 256, 8: 128, 4: 64, 2: 32, 1: 16}


def unet(features: dict, config: ModelConfig):
    """Decode features to full resolution, joining the encoder's at each level (Ronneberger et al. 2015).

    Args:
        features: Keras tensors by their stride, each half the size of the one before; where the encoder has none, the
            step upsamples without a join.
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
    """Channels of a U-Net's decoder at a stride: the encoder's if it begins at full resolution, else fixed ones."""
    return features[stride].shape[-1] if 1 in features else _WIDTHS[stride]


def up_block(x, skips: list, filters: int, name: str):
    """Twice the resolution, joined with what the encoder or other nodes have there, two convolutions.

    Args:
        x: Keras tensor [N, H, W, C].
        skips: Keras tensors [N, 2H, 2W, *], may be none.
        filters: channels of the result.
        name: prefix of the layers' names.

    Returns:
        Keras tensor [N, 2H, 2W, filters].
    """
    x = UpsampleConv(filters, name=f"{name}_1_conv")([x, *skips])
    return conv_block(normalized(x, f"{name}_1"), filters, f"{name}_2")
