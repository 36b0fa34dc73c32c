"""Fold batch normalization into the preceding layers, for inference."""

from collections.abc import Iterator

import numpy as np
import tf_keras as keras

from gitseg_tf.models.layers import AtrousSeparableConv, UpsampleConv

# Linear layer class to the weight that scales its output channels, and the axis of the channels in that weight.
_KERNELS = {
    keras.layers.Conv2D: ("kernel", -1),
    keras.layers.DepthwiseConv2D: ("depthwise_kernel", -2),
    UpsampleConv: ("kernel", -1),
    AtrousSeparableConv: ("pointwise", -1),
}


def fold_normalization(model: keras.Model) -> None:
    """Multiply the factors of batch normalization into the preceding kernels; each normalization becomes a bias.

    The output in inference stays the same except for rounding; the model must not be trained afterward. A normalization
    is kept if its input is also used elsewhere (by other layers, or as an output of the model), if its input comes from
    a nonlinear layer, or if it is applied several times.

    Args:
        model: functional model with the weights for inference; it is modified in place.
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
        # Make the normalization subtract the mean and nothing else; gamma and beta may not exist.
        norm.moving_mean.assign(-bias)
        norm.moving_variance.assign(np.full(bias.shape, 1 - norm.epsilon))
        if norm.gamma is not None:
            norm.gamma.assign(np.ones(bias.shape))
        if norm.beta is not None:
            norm.beta.assign(np.zeros(bias.shape))


def _normalizations(model: keras.Model) -> Iterator[tuple[keras.layers.BatchNormalization, list]]:
    """Yield each batch normalization, with the outputs of the (nested) model that contains it."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _normalizations(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            yield layer, model.outputs


def _is_linear(layer) -> bool:
    """Check that the layer is one of `_KERNELS` without an activation, and that a single layer uses its output."""
    linear = getattr(layer, "activation", keras.activations.linear) is keras.activations.linear
    # With a depth multiplier, the output channels would be spread over two axes of the kernel.
    single = getattr(layer, "depth_multiplier", 1) == 1
    alone = len(layer.inbound_nodes) == len(layer.outbound_nodes) == 1
    return type(layer) in _KERNELS and linear and single and alone
