"""The decoder of U-Net++."""

from gitseg_tf.config.model import ModelConfig
from gitseg_tf.models.decoders.unet import decoder_width, up_block


def unetplusplus(features: dict, config: ModelConfig):
    """Decode with nested, densely connected decoders (Zhou et al. 2018, arXiv:1807.10165, and 2019, arXiv:1912.05074).

    Node (i, j) of the paper concatenates all previous nodes at its stride and the upsampled node (i + 1, j - 1). The
    last node at each stride has the width of the U-Net's decoder, the others that of the encoder.

    Args:
        features: Keras tensors by stride, each half the size of the previous one. Below the lowest stride the decoder
            upsamples without skip connections.
        config: with deep_supervision, the last nodes at strides 2, 4 and 8 are returned too; the paper supervises nodes
            at full resolution, which do not exist if the encoder starts at stride 2.

    Returns:
        Keras tensor [N, H, W, C] at the resolution of the model's input; with deep supervision a list of this tensor
        and the nodes at half, a quarter and an eighth of the resolution.
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
