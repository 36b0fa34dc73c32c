"""Networks for inference alone."""

from collections.abc import Callable

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2


def freeze(network: Callable, spec: tf.TensorSpec) -> Callable:
    """Make constants of a network's variables, as they are now.

    TensorFlow then folds batch normalisation and ReLU into the convolutions, and brings their kernels into the
    processor's layout once instead of at each call.

    Args:
        network: function of a tensor to a tensor, as in inference.
        spec: of its argument.

    Returns:
        The same function, in float32 but for rounding.
    """
    traced = tf.function(network, input_signature=[spec]).get_concrete_function()
    constant = convert_variables_to_constants_v2(traced)
    return lambda x: constant(tf.convert_to_tensor(x))[0]
