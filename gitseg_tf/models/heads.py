"""Heads that convert features to logits."""

import tf_keras as keras

from gitseg_tf.models.layers import ReplayedDropout, bilinear

# Labeled voxels are rare: an initial probability of 5% saves the first steps (Lin et al. 2017, arXiv:1708.02002).
INITIAL_LOGIT = -3.0


def segmentation_logits(decoded, size: tuple[int, int], *, labels: int, dropout: float, seed: int):
    """Compute the logits of each label, in float32 for any policy.

    If a decoder ends below the input's resolution, its logits are upsampled instead of its features, which have many
    more channels; a 1x1 convolution and bilinear upsampling commute.

    Args:
        decoded: Keras tensor [N, h, w, C], or a list of several for deep supervision.
        size: height and width of the model's input, multiples of h and w of the first tensor.
        labels: number of labels L.
        dropout: fraction of the decoded values dropped in training.
        seed: seed of the dropout.

    Returns:
        Keras tensors by name: logits [N, H, W, L], and deep1, deep2, ... [N, h, w, L] for the other tensors.
    """
    first, *others = decoded if isinstance(decoded, list) else [decoded]
    low = label_logits(first, "logits", labels=labels, dropout=dropout, seed=seed)
    upsampled = {"logits": bilinear(low, size[0] // low.shape[1], "logits_up")}
    return upsampled | {
        f"deep{k}": label_logits(x, f"deep{k}", labels=labels, dropout=dropout, seed=seed + k)
        for k, x in enumerate(others, 1)
    }


def presence_logits(features: dict, labels: int):
    """Compute logits for the presence of each label in the window's middle slice, from the deepest feature.

    Args:
        features: Keras tensors by stride.
        labels: number of labels L.

    Returns:
        Keras tensor float32 [N, L].
    """
    pooled = keras.layers.GlobalAveragePooling2D(dtype="float32", name="presence_pool")(features[max(features)])
    return keras.layers.Dense(labels, dtype="float32", name="presence")(pooled)


def label_logits(x, name: str, *, labels: int, dropout: float, seed: int):
    """Compute the logits of each label at the decoded resolution, in float32 for any policy.

    Args:
        x: Keras tensor [N, h, w, C] or [N, d, h, w, C].
        name: name of the layer.
        labels, dropout, seed: see `segmentation_logits`.

    Returns:
        Keras tensor of the same rank with a channel per label.
    """
    if dropout:
        x = ReplayedDropout(dropout, seed, name=f"{name}_dropout")(x)
    rare = keras.initializers.Constant(INITIAL_LOGIT)
    convolution = keras.layers.Conv2D if len(x.shape) == 4 else keras.layers.Conv3D
    return convolution(labels, 1, bias_initializer=rare, dtype="float32", name=name)(x)
