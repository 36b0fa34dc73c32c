"""The decoder of the attention U-Net."""

import tf_keras as keras

from gitseg_tf.config.model import ModelConfig
from gitseg_tf.models.decoders.unet import decoder_width, up_block
from gitseg_tf.models.layers import BilinearUpsample


def attention_unet(features: dict, config: ModelConfig):
    """Decode with a U-Net that weights the encoder's features by attention gates (Oktay et al. 2018, arXiv:1804.03999).

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
        name = f"decoder{stride}"
        skips = [attention_gate(features[stride], x, f"{name}_gate")] if stride in features else []
        x = up_block(x, skips, decoder_width(features, stride), name)
    return x


def attention_gate(skip, gating, name: str):
    """Apply the paper's additive gate: one weight per pixel, computed at the coarse resolution and upsampled.

    Args:
        skip: Keras tensor [N, 2H, 2W, C], the features to weight.
        gating: Keras tensor [N, H, W, G], the coarser features.
        name: prefix of the layers' names.

    Returns:
        Keras tensor [N, 2H, 2W, C], `skip` times weights between 0 and 1.
    """
    width = max(1, skip.shape[-1] // 2)
    theta = keras.layers.Conv2D(width, 2, strides=2, use_bias=False, name=f"{name}_theta")(skip)
    phi = keras.layers.Conv2D(width, 1, name=f"{name}_phi")(gating)
    both = keras.layers.ReLU(name=f"{name}_relu")(keras.layers.Add(name=f"{name}_add")([theta, phi]))
    weight = keras.layers.Conv2D(1, 1, activation="sigmoid", name=f"{name}_psi")(both)
    weight = BilinearUpsample(2, name=f"{name}_up")(weight)
    return keras.layers.Multiply(name=name)([skip, weight])
