"""Building blocks shared by the networks."""

import tensorflow as tf
import tf_keras as keras


@keras.utils.register_keras_serializable("gitseg_tf")
class Upsample(keras.layers.Layer):
    """Nearest-neighbour upsampling by 2, as concatenation and reshape.

    UpSampling2D's gradient (ResizeNearestNeighborGrad) has no XLA kernel, so it cannot be trained on a TPU.

    Input [N, H, W, C], output [N, 2H, 2W, C], same dtype.
    """

    def call(self, inputs):
        _, height, width, channels = inputs.shape
        pairs = tf.reshape(tf.concat([inputs, inputs], -1), [-1, height, 2 * width * channels])
        return tf.reshape(tf.concat([pairs, pairs], -1), [-1, 2 * height, 2 * width, channels])


def conv_block(x, filters: int, name: str):
    """3x3 convolution, batch normalisation, ReLU.

    Args:
        x: Keras tensor [N, H, W, C].
        filters: channels of the output.
        name: prefix of the layers' names.

    Returns:
        Keras tensor [N, H, W, filters].
    """
    x = keras.layers.Conv2D(
        filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv"
    )(x)
    x = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)
