"""Building blocks of the 3-D networks."""

import tensorflow as tf
import tf_keras as keras


@keras.utils.register_keras_serializable("gitseg_tf")
class InstanceNormalization(keras.layers.Layer):
    """Instance normalization with a learned scale and shift (Ulyanov et al. 2016, arXiv:1607.08022).

    It is independent of the batch, which has only about two patches in 3-D. It is computed in float32 for any policy,
    because the sum of squares overflows float16; the gradient keeps only the input, in the policy's dtype.

    Input and output have the same shape [N, ..., C] and the policy's dtype.
    """

    def __init__(self, epsilon: float = 1e-5, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape):
        self.gamma = self.add_weight("gamma", shape=[input_shape[-1]], initializer="ones")
        self.beta = self.add_weight("beta", shape=[input_shape[-1]], initializer="zeros")
        super().build(input_shape)

    def call(self, inputs):
        return _normalize(inputs, tf.cast(self.gamma, tf.float32), tf.cast(self.beta, tf.float32), self.epsilon)

    def get_config(self):
        return super().get_config() | {"epsilon": self.epsilon}


def _normalize(x, gamma, beta, epsilon: float):
    space = list(range(1, x.shape.rank - 1))

    @tf.custom_gradient
    def normalize(x, gamma, beta):
        wide = tf.cast(x, tf.float32)
        mean, variance = tf.nn.moments(wide, space, keepdims=True)
        inverse = tf.math.rsqrt(variance + epsilon)

        def gradient(upstream):
            # Recompute from the input: keeping three float32 tensors per layer would dominate the network's memory.
            normal, slope = (tf.cast(x, tf.float32) - mean) * inverse, tf.cast(upstream, tf.float32)
            along = tf.reduce_mean(slope * normal, space, keepdims=True)
            level = tf.reduce_mean(slope, space, keepdims=True)
            voxels = tf.cast(tf.reduce_prod(tf.shape(x)[1:-1]), tf.float32)
            of_x = gamma * inverse * (slope - level - normal * along)
            sums = (tf.reshape(tf.reduce_sum(part * voxels, 0), tf.shape(gamma)) for part in (along, level))
            return tf.cast(of_x, x.dtype), *sums

        return tf.cast((wide - mean) * (inverse * gamma) + beta, x.dtype), gradient

    return normalize(x, gamma, beta)


def normalized_convolution(x, filters: int, name: str, size: int = 3, strides: tuple[int, int, int] = (1, 1, 1)):
    """Apply a 3-D convolution and instance normalization.

    Args:
        x: Keras tensor [N, D, H, W, C].
        filters: number of channels of the output.
        name: prefix of the layers' names.
        size: size of the kernel along each axis.
        strides: strides along depth, height and width.

    Returns:
        Keras tensor [N, D / strides, H / strides, W / strides, filters].
    """
    x = keras.layers.Conv3D(
        filters,
        size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    return InstanceNormalization(name=f"{name}_norm")(x)


def leaky_relu(x, name: str):
    """Apply a leaky ReLU with slope 0.01, as in nnU-Net."""
    return keras.layers.LeakyReLU(alpha=0.01, name=f"{name}_relu")(x)


def residual_block(x, filters: int, name: str, strides: tuple[int, int, int] = (1, 1, 1)):
    """Apply two 3x3x3 convolutions with a shortcut (He et al. 2015, arXiv:1512.03385; type B).

    Args:
        x: Keras tensor [N, D, H, W, C].
        filters: number of channels of the output.
        name: prefix of the layers' names.
        strides: strides of the first convolution; the shortcut is average-pooled accordingly, and projected if the
            number of channels changes (He et al. 2018, arXiv:1812.01187, ResNet-D).

    Returns:
        Keras tensor [N, D / strides, H / strides, W / strides, filters].
    """
    shortcut = x
    if strides != (1, 1, 1):
        shortcut = keras.layers.AveragePooling3D(strides, name=f"{name}_shortcut_pool")(shortcut)
    if x.shape[-1] != filters:
        shortcut = normalized_convolution(shortcut, filters, f"{name}_shortcut", 1)
    x = leaky_relu(normalized_convolution(x, filters, f"{name}_1", 3, strides), f"{name}_1")
    x = normalized_convolution(x, filters, f"{name}_2")
    return leaky_relu(keras.layers.Add(name=f"{name}_add")([x, shortcut]), name)
