"""MiT, the mix transformer of SegFormer (Xie et al. 2021, arXiv:2105.15203).

It is built from Keras layers, because keras-cv's MiTBackbone only accepts square windows, and its sequence reduction
reads [C, H W] as [H, W, C], which mixes positions and channels; its weights only fit that network.
"""

from functools import partial

import tf_keras as keras

from gitseg_tf.config.model import ModelConfig
from gitseg_tf.models.backbones.backbone import STANDARDIZED, Backbone

_HEADS = (1, 2, 5, 8)
_REDUCTIONS = (8, 4, 2, 1)


def mit(inputs, config: ModelConfig, widths: tuple[int, ...], blocks: tuple[int, ...]) -> dict:
    """Build the four stages of a mix transformer.

    Args:
        inputs: Keras tensor [N, H, W, K].
        config: not used.
        widths: number of channels of each stage.
        blocks: number of transformer blocks in each stage.

    Returns:
        Keras tensors by stride: 4, 8, 16 and 32, channels as in `widths`.
    """
    features, x = {}, inputs
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        name = f"stage{stage}"
        size, stride = (3, 2) if stage else (7, 4)
        x = keras.layers.Conv2D(width, size, stride, padding="same", name=f"{name}_patch_conv")(x)
        x = _norm(x, f"{name}_patch_norm")
        for i in range(count):
            x = _block(x, _HEADS[stage], _REDUCTIONS[stage], f"{name}_block{i}")
        x = _norm(x, f"{name}_norm")
        features[4 * 2**stage] = x
    return features


def _norm(x, name: str):
    return keras.layers.LayerNormalization(epsilon=1e-6, name=name)(x)


def _block(x, heads: int, reduction: int, name: str):
    attended = _attention(_norm(x, f"{name}_norm1"), heads, reduction, f"{name}_attention")
    x = keras.layers.Add(name=f"{name}_attention_add")([x, attended])
    return keras.layers.Add(name=f"{name}_ffn_add")([x, _mix_ffn(_norm(x, f"{name}_norm2"), f"{name}_ffn")])


def _attention(x, heads: int, reduction: int, name: str):
    """Apply self-attention with keys and values from a map that is `reduction` times smaller along each axis."""
    height, width, channels = x.shape[1:]
    keys = x
    if reduction > 1:
        # A map smaller than the reduction, which only occurs at the smallest input sizes, becomes a single key.
        keys = keras.layers.Conv2D(channels, reduction, reduction, padding="same", name=f"{name}_reduction")(keys)
        keys = _norm(keys, f"{name}_reduction_norm")
    queries = keras.layers.Reshape((height * width, channels), name=f"{name}_queries")(x)
    keys = keras.layers.Reshape((keys.shape[1] * keys.shape[2], channels), name=f"{name}_keys")(keys)
    attend = keras.layers.MultiHeadAttention(heads, channels // heads, kernel_initializer=_normal(), name=name)
    return keras.layers.Reshape((height, width, channels), name=f"{name}_map")(attend(queries, keys))


def _mix_ffn(x, name: str):
    channels = x.shape[-1]
    x = keras.layers.Dense(4 * channels, kernel_initializer=_normal(), name=f"{name}_1")(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same", name=f"{name}_depthwise")(x)
    x = keras.layers.Activation("gelu", name=f"{name}_gelu")(x)
    return keras.layers.Dense(channels, kernel_initializer=_normal(), name=f"{name}_2")(x)


def _normal():  # create one per weight, because an initializer returns the same numbers every time
    return keras.initializers.TruncatedNormal(stddev=0.02)


def _backbone(widths: tuple[int, ...], blocks: tuple[int, ...]) -> Backbone:
    build, paper = partial(mit, widths=widths, blocks=blocks), "Xie et al. 2021, arXiv:2105.15203"
    return Backbone(build, paper, "this package", **STANDARDIZED, dilates=False)


mit_b0 = _backbone((32, 64, 160, 256), (2, 2, 2, 2))
mit_b1 = _backbone((64, 128, 320, 512), (2, 2, 2, 2))
mit_b2 = _backbone((64, 128, 320, 512), (3, 4, 6, 3))
mit_b3 = _backbone((64, 128, 320, 512), (3, 4, 18, 3))
