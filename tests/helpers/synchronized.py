"""Run by test_decoders in a separate process, because TensorFlow configures its devices once per process.

Prints JSON: the difference of an SGD step on two replicas from one on a single device, relative to the largest change,
with normalization per replica and synchronized. The normalization layers are inside keras-cv blocks.
"""

import json

import numpy as np
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.models.build import synchronize_normalization


def change(strategy, synchronized):
    from keras_cv.src.layers.fusedmbconv import FusedMBConvBlock
    from keras_cv.src.layers.mbconv import MBConvBlock

    keras.utils.set_random_seed(0)
    image = np.random.default_rng(0).normal(size=(8, 8, 8, 4)).astype(np.float32)
    image[4:] += 3  # the halves of the batch differ in mean
    with strategy.scope():
        inputs = keras.Input((8, 8, 4))
        blocks = [block(4, 4, survival_probability=0) for block in (FusedMBConvBlock, MBConvBlock)]
        encoder = keras.Model(inputs, blocks[1](blocks[0](inputs)))
        model = keras.Model(encoder.inputs, keras.layers.Conv2D(1, 1)(encoder(encoder.inputs)))
        if synchronized:
            synchronize_normalization(model)
        model.compile(keras.optimizers.SGD(1.0), "mse")
    # Not the moving averages: the fused normalization on one device corrects the variance for the size of the sample.
    before = [variable.numpy() for variable in model.trainable_variables]
    model.fit(tf.data.Dataset.from_tensor_slices((image, image[..., :1])).batch(8, drop_remainder=True), verbose=0)
    return np.concatenate([(a - b.numpy()).ravel() for a, b in zip(before, model.trainable_variables, strict=True)])


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    expected = change(tf.distribute.get_strategy(), synchronized=False)
    replicas = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    actual = {name: change(replicas, name == "synchronized") for name in ("alone", "synchronized")}
    print(json.dumps({name: float(np.abs(f - expected).max() / np.abs(expected).max()) for name, f in actual.items()}))


if __name__ == "__main__":
    main()
