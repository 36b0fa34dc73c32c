"""Batch normalisation folded into the layers before it, for inference."""

from collections.abc import Iterator

import numpy as np
import tf_keras as keras

from gitseg_tf.models.layers import AtrousSeparableConv, UpsampleConv

# The weight of each linear layer whose values are factors of its output's channels, and the axis of these.
_KERNELS = {
    keras.layers.Conv2D: ("kernel", -1),
    keras.layers.DepthwiseConv2D: ("depthwise_kernel", -2),
    UpsampleConv: ("kernel", -1),
    AtrousSeparableConv: ("pointwise", -1),
}


def fold_normalization(model: keras.Model) -> None:
    """Multiply the factors of batch normalisation into the kernels before it, which leaves a bias of each.

    The function in inference stays, but for rounding; training goes another way afterwards. A normalisation whose input
    others see too (layers, or whoever takes the model's outputs), or that comes from a layer that is not linear, stays
    as it is, and so does one of several inputs.

    Args:
        model: functional, with the weights that inference is to use; it is changed.
    """
    for norm, outputs in _normalizations(model):
        before = norm.inbound_nodes[0].inbound_layers
        if len(norm.inbound_nodes) > 1 or not _is_linear(before) or any(norm.input is output for output in outputs):
            continue
        mean, variance = (np.float64(v.numpy()) for v in (norm.moving_mean, norm.moving_variance))
        factor = 1 / np.sqrt(variance + norm.epsilon)
        factor = factor if norm.gamma is None else factor * norm.gamma.numpy()
        bias = -mean * factor if norm.beta is None else norm.beta.numpy() - mean * factor
        name, axis = _KERNELS[type(before)]
        kernel = getattr(before, name)
        shape = np.ones(len(kernel.shape), int)
        shape[axis] = -1
        kernel.assign(kernel.numpy() * factor.reshape(shape))
        if getattr(before, "use_bias", False):
            before.bias.assign(before.bias.numpy() * factor)
        # So that it is the input minus the mean; gamma and beta may not be there to be set.
        norm.moving_mean.assign(-bias)
        norm.moving_variance.assign(np.full(bias.shape, 1 - norm.epsilon))
        if norm.gamma is not None:
            norm.gamma.assign(np.ones(bias.shape))
        if norm.beta is not None:
            norm.beta.assign(np.zeros(bias.shape))


def _normalizations(model: keras.Model) -> Iterator[tuple[keras.layers.BatchNormalization, list]]:
    """Each of them, and the outputs of the model that it is in."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _normalizations(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            yield layer, model.outputs


def _is_linear(layer) -> bool:
    """Whether the layer is one of those above, for one normalisation alone."""
    linear = getattr(layer, "activation", keras.activations.linear) is keras.activations.linear
    # Else the factors are in two axes.
    single = getattr(layer, "depth_multiplier", 1) == 1
    alone = len(layer.inbound_nodes) == len(layer.outbound_nodes) == 1
    return type(layer) in _KERNELS and linear and single and alone
