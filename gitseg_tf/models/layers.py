"""Layers and blocks shared by the networks."""

import numpy as np
import tensorflow as tf
import tf_keras as keras


@keras.utils.register_keras_serializable("gitseg_tf")
class Upsample(keras.layers.Layer):
    """Nearest-neighbor upsampling by 2, implemented by concatenation and reshape.

    The gradient of UpSampling2D (ResizeNearestNeighborGrad) has no XLA kernel, so it cannot be trained on a TPU.

    Input [N, H, W, C], output [N, 2H, 2W, C], same dtype.
    """

    def call(self, inputs):
        return _interleave([[inputs, inputs], [inputs, inputs]])


def _interleave(pixels: list[list]):
    """Interleave tensors [N, H, W, C] of the pixels with even and odd row and column to one [N, 2H, 2W, C]."""
    _, height, width, channels = pixels[0][0].shape
    rows = [tf.reshape(tf.concat(row, -1), [-1, height, 2 * width * channels]) for row in pixels]
    return tf.reshape(tf.concat(rows, -1), [-1, 2 * height, 2 * width, channels])


# [4, 3]: which rows (or columns) of a 3x3 kernel contribute to each row (or column) of the equivalent 4x4 kernel.
_SEEN = [[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]]
# [16, 9]: the same for rows and columns together.
_SPREAD = np.kron(_SEEN, _SEEN)


@keras.utils.register_keras_serializable("gitseg_tf")
class UpsampleConv(keras.layers.Layer):
    """Nearest-neighbor upsampling by 2, concatenation with `skips` and a 3x3 convolution without bias, fused.

    Of the nine pixels of an upsampled image under a 3x3 kernel only four differ, so their weights can be summed
    beforehand. The upsampled part therefore becomes a transposed convolution with a 4x4 kernel and a stride of 2, which
    takes 4/9 of the work.

    Input: list of [N, H, W, C] and any number of [N, 2H, 2W, *]. Output [N, 2H, 2W, filters], same dtype.

    Args:
        filters: number of channels of the output.
    """

    def __init__(self, filters: int, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters

    def build(self, input_shape):
        channels = sum(shape[-1] for shape in input_shape)
        self.kernel = self.add_weight("kernel", [3, 3, channels, self.filters], initializer="he_normal")
        super().build(input_shape)

    def call(self, inputs):
        x, *skips = inputs
        channels = x.shape[-1]
        # Use tf.split, because the gradient of a strided slice takes longer than that of the convolution.
        seen, joined = tf.split(self.kernel, [channels, self.kernel.shape[2] - channels], axis=2)
        if not skips:
            _, height, width, _ = x.shape
            return self._convolve_upsampled(x, seen, [tf.shape(x)[0], 2 * height, 2 * width])
        # With the dynamic shape of the skips, TensorFlow fuses the sum and the activation into the convolution below.
        upsampled = self._convolve_upsampled(x, seen, tf.shape(skips[0])[:3])
        return upsampled + tf.nn.conv2d(tf.concat(skips, -1) if len(skips) > 1 else skips[0], joined, 1, "SAME")

    def _convolve_upsampled(self, x, kernel, size):
        channels = x.shape[-1]
        flat = tf.reshape(kernel, [9, channels * self.filters])
        spread = tf.reshape(tf.matmul(tf.constant(_SPREAD, flat.dtype), flat), [4, 4, channels, self.filters])
        shape = tf.concat([size, [self.filters]], 0)
        return tf.nn.conv2d_transpose(x, tf.transpose(spread, [0, 1, 3, 2]), shape, 2, "SAME")

    def get_config(self):
        return super().get_config() | {"filters": self.filters}


@keras.utils.register_keras_serializable("gitseg_tf")
class BilinearUpsample(keras.layers.Layer):
    """Bilinear upsampling by an integer factor with half-pixel centers, implemented by two matrix products.

    The gradient of ResizeBilinear with half-pixel centers has no XLA kernel; that of a matrix product has one on every
    device.

    Input [N, H, W, C], output [N, factor * H, factor * W, C], same dtype and same values as tf.image.resize.

    Args:
        factor: one factor for height and width, or (height, width).
    """

    def __init__(self, factor: int | tuple[int, int], **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs):
        _, height, width, channels = inputs.shape
        taller, wider = (self.factor, self.factor) if isinstance(self.factor, int) else self.factor
        rows = tf.constant(_bilinear_weights(height, taller), inputs.dtype)
        columns = tf.constant(_bilinear_weights(width, wider), inputs.dtype)
        tall = tf.matmul(rows, tf.reshape(inputs, [-1, height, width * channels]))
        wide = tf.matmul(columns, tf.reshape(tall, [-1, width, channels]))
        return tf.reshape(wide, [-1, taller * height, wider * width, channels])

    def get_config(self):
        return super().get_config() | {"factor": self.factor}


def _bilinear_weights(size: int, factor: int) -> np.ndarray:
    """Compute float64 [factor * size, size], the weight of each pixel in each upsampled pixel."""
    position = np.clip((np.arange(factor * size) + 0.5) / factor - 0.5, 0, size - 1)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(size)))


@keras.utils.register_keras_serializable("gitseg_tf")
class AtrousSeparableConv(keras.layers.Layer):
    """A 3x3 atrous depthwise convolution followed by a 1x1 convolution, without biases (Chen et al. 2018).

    If the rate is at least as large as the input, all taps but the central one see only padding: the depthwise part is
    then one factor per channel, which is multiplied into the 1x1 kernel instead of the input.

    Input [N, H, W, C], output [N, H, W, filters], same dtype.

    Args:
        filters: number of channels of the output.
        rate: distance of the depthwise kernel's taps in pixels.
    """

    def __init__(self, filters: int, rate: int, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.rate = filters, rate

    def build(self, input_shape):
        channels = input_shape[-1]
        # This preserves the variance, because an output of the depthwise part is a sum of 9 taps.
        taps = keras.initializers.RandomNormal(stddev=1 / 3)
        self.depthwise = self.add_weight("depthwise", [3, 3, channels, 1], initializer=taps)
        self.pointwise = self.add_weight("pointwise", [1, 1, channels, self.filters], initializer="he_normal")
        super().build(input_shape)

    def call(self, inputs):
        depthwise, pointwise = tf.convert_to_tensor(self.depthwise), tf.convert_to_tensor(self.pointwise)
        _, height, width, _ = inputs.shape
        if self.rate >= max(height, width):
            return tf.nn.conv2d(inputs, depthwise[1, 1] * pointwise, 1, "SAME")
        spread = tf.nn.depthwise_conv2d(inputs, depthwise, [1, 1, 1, 1], "SAME", dilations=[self.rate, self.rate])
        return tf.nn.conv2d(spread, pointwise, 1, "SAME")

    def get_config(self):
        return super().get_config() | {"filters": self.filters, "rate": self.rate}


@keras.utils.register_keras_serializable("gitseg_tf")
class ReplayedDropout(keras.layers.Layer):
    """Dropout whose random numbers depend only on the seed, the number of training steps so far and the replica.

    The random state of Keras's dropout is not saved in checkpoints, so resumed training would differ.

    Args:
        rate: fraction of the values set to 0 in training; the others are scaled up to keep the mean.
        seed: seed of the random numbers.
    """

    def __init__(self, rate: float, seed: int, **kwargs):
        super().__init__(**kwargs)
        self.rate, self.seed = rate, seed

    def build(self, input_shape):
        self.step = self.add_weight(
            "step",
            [],
            tf.int64,
            initializer="zeros",
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        super().build(input_shape)

    def call(self, inputs, training=None):
        if not training:
            return inputs
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        draws = tf.random.experimental.stateless_fold_in(
            tf.stack([tf.constant(self.seed, tf.int64), self.step]), replica
        )
        self.step.assign_add(1)
        return tf.nn.experimental.stateless_dropout(inputs, self.rate, draws)

    def get_config(self):
        return super().get_config() | {"rate": self.rate, "seed": self.seed}


def conv_block(x, filters: int, name: str, kernel: int = 3):
    """Apply convolution, batch normalization and ReLU.

    Args:
        x: Keras tensor [N, H, W, C].
        filters: number of channels of the output.
        name: prefix of the layers' names.
        kernel: height and width of the convolution's kernel.

    Returns:
        Keras tensor [N, H, W, filters].
    """
    x = keras.layers.Conv2D(
        filters, kernel, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv"
    )(x)
    return normalized(x, name)


def separable_block(x, filters: int, name: str, rate: int = 1):
    """Apply `AtrousSeparableConv`, batch normalization and ReLU; arguments and result as for `conv_block`."""
    return normalized(AtrousSeparableConv(filters, rate, name=f"{name}_conv")(x), name)


def normalized(x, name: str):
    """Apply batch normalization and ReLU; arguments and result as for `conv_block`."""
    x = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def bilinear(x, factor: int, name: str):
    """Upsample by `factor` with `BilinearUpsample`; a factor of 1 returns `x` itself."""
    return x if factor == 1 else BilinearUpsample(factor, name=name)(x)
