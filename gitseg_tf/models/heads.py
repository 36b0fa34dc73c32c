"""From decoded features to logits."""

import tf_keras as keras

from gitseg_tf.data.scans import ORGANS
from gitseg_tf.models.layers import ReplayedDropout, bilinear

# Organs are rare: starting at a probability of 5% spares the first steps (Lin et al. 2017, arXiv:1708.02002).
INITIAL_LOGIT = -3.0


def segmentation_logits(decoded, size: tuple[int, int], dropout: float, seed: int):
    """Logits of each organ, float32 whatever the policy.

    A decoder that stops below the input's resolution has its logits upsampled, not its many more channels: a 1x1
    convolution and bilinear upsampling may change places.

    Args:
        decoded: Keras tensor [N, h, w, C], or a list of such for deep supervision.
        size: height and width of the model's input, multiples of h and w of the first.
        dropout: share of the decoded values that are dropped in training.
        seed: of what is dropped.

    Returns:
        Keras tensors by name: logits [N, H, W, 3], and deep1, deep2, ... [N, h, w, 3] of the others.
    """
    first, *others = decoded if isinstance(decoded, list) else [decoded]
    low = organ_logits(first, dropout, seed, "logits")
    upsampled = {"logits": bilinear(low, size[0] // low.shape[1], "logits_up")}
    return upsampled | {f"deep{k}": organ_logits(x, dropout, seed + k, f"deep{k}") for k, x in enumerate(others, 1)}


def presence_logits(features: dict):
    """Logits of whether each organ is in the window at all, from the deepest feature.

    Args:
        features: Keras tensors by their stride.

    Returns:
        Keras tensor float32 [N, 3].
    """
    pooled = keras.layers.GlobalAveragePooling2D(dtype="float32", name="presence_pool")(features[max(features)])
    return keras.layers.Dense(len(ORGANS), dtype="float32", name="presence")(pooled)


def organ_logits(x, dropout: float, seed: int, name: str):
    """Logits of each organ at the decoded resolution, float32 whatever the policy.

    Args:
        x: Keras tensor [N, h, w, C] or [N, d, h, w, C].
        dropout, seed: as of `segmentation_logits`.
        name: of the layer that gives them.

    Returns:
        Keras tensor of the same rank with 3 channels.
    """
    if dropout:
        x = ReplayedDropout(dropout, seed, name=f"{name}_dropout")(x)
    rare = keras.initializers.Constant(INITIAL_LOGIT)
    convolution = keras.layers.Conv2D if len(x.shape) == 4 else keras.layers.Conv3D
    return convolution(len(ORGANS), 1, bias_initializer=rare, dtype="float32", name=name)(x)
