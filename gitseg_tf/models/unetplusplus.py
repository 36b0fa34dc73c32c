"""The decoder of U-Net++."""

from gitseg_tf.models.unet import decoder_width, up_block
from gitseg_tf.sections.model import ModelConfig


def unetplusplus(features: dict, config: ModelConfig):
    """Nested decoders with dense joins (Zhou et al. 2018, arXiv:1807.10165, and 2019, arXiv:1912.05074).

    The node i, j of the paper joins all nodes before it at its stride with the upsampled node i + 1, j - 1. The last
    node at each stride has the U-Net decoder's width, the others the encoder's.

    Args:
        features: Keras tensors by their stride, each half the size of the one before. Below the lowest stride the
            decoder upsamples without joins.
        config: deep_supervision gives the last nodes at strides 2, 4 and 8 too, instead of the paper's at full
            resolution, which an encoder that begins at stride 2 has not.

    Returns:
        Keras tensor [N, H, W, C] at the resolution of the model's input; with deep supervision a list of that and the
        nodes at half, a quarter and an eighth of it.
    """
    nodes = {stride: [feature] for stride, feature in features.items()}
    strides = sorted(features, reverse=True)
    for column in range(1, len(strides)):
        for row, stride in enumerate(strides[column:], column):
            width = decoder_width(features, stride) if column == row else features[stride].shape[-1]
            below = nodes[strides[row - 1]][column - 1]
            nodes[stride].append(up_block(below, nodes[stride], width, f"decoder{stride}_node{column}"))
    path = {stride: row[-1] for stride, row in nodes.items()}
    stride = min(strides)
    while stride > 1:
        stride //= 2
        path[stride] = up_block(path[2 * stride], [], decoder_width(features, stride), f"decoder{stride}")
    return [path[stride] for stride in (1, 2, 4, 8)] if config.deep_supervision else path[1]
