"""A small network with loaded layers, which are frozen at first; `frozen.py` compares one device with two replicas.

It prints the largest difference of any weight after training, and how far the loaded and the new weights have moved.
"""

import json

import numpy as np
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.training.callbacks.unfreezing import Unfreezes
from gitseg_tf.training.optim.optimizers import build_optimizer
from gitseg_tf.training.optim.schedules import Schedule
from gitseg_tf.training.step import TrainingModel
from helpers.configs import tiny_config

STEPS, FROZEN, WARMUP = 3, 2, 2
IMAGES = np.random.default_rng(0).random((STEPS * 4, 4, 4, 2), np.float32)
MASKS = (np.random.default_rng(1).random((STEPS * 4, 4, 4, 3)) > 0.5).astype(np.float32)
LOADED = frozenset({"encoder_conv", "encoder_bn"})
KEYS = {"learning_rate": 0.05, "warmup": 0, "schedule": "constant", "weight_decay": 0.1, "clip_norm": 0.01, "epochs": 6}


def squared(mask, outputs):
    return tf.reduce_mean((tf.cast(mask, tf.float32) - outputs) ** 2, axis=[1, 2, 3])


def network(optimizer="adamw", jit_compile=False, synchronized=False, **changes):
    """Two convolutions with normalization; `loaded` are the layers of the first one."""
    keys = KEYS | {"optimizer": optimizer} | changes
    config = tiny_config(**{f"training.{key}": value for key, value in keys.items()}, **{"model.init": "runs/other"})
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(5, 3, padding="same", name="encoder_conv")(inputs)
    x = keras.layers.ReLU()(
        keras.layers.BatchNormalization(momentum=0.5, synchronized=synchronized, name="encoder_bn")(x)
    )
    outputs = keras.layers.Conv2D(3, 1, name="logits")(x)
    schedule = Schedule(config.training, 100)
    model = TrainingModel(
        inputs, outputs, config=config, schedule=schedule, loss=squared, loaded=LOADED, steps_per_epoch=STEPS
    )
    model.compile(build_optimizer(config.training, schedule, model.trainable_variables), jit_compile=jit_compile)
    return model


def trained(model, epochs, first=0):
    callbacks = [Unfreezes(model.freezing)] if model.freezing else []
    data = tf.data.Dataset.from_tensor_slices((IMAGES, MASKS)).batch(4, drop_remainder=True)
    model.fit(data, epochs=epochs, initial_epoch=first, verbose=0, callbacks=callbacks)
    return weights_of(model)


def weights_of(model):
    return {layer.name: layer.get_weights() for layer in model.layers if layer.get_weights()}


def compare():
    """Train one frozen and one free epoch on one device and on two replicas, without normalization of the batch."""
    device = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
    keys = {"freeze_epochs": 1, "unfreeze_warmup_epochs": 1, "optimizer": "sgd", "clip_norm": 1.0}
    states = []
    for devices in (["CPU:0"], ["CPU:0", "CPU:1"]):
        with tf.distribute.MirroredStrategy(devices).scope():
            model = network(synchronized=True, **keys)
        before, frozen = weights_of(model), trained(model, 1)
        states.append((before, frozen, trained(model, 3, first=1)))
    (before, frozen, one), (_, also_frozen, two) = states
    moved = {name: float(np.abs(one[name][0] - before[name][0]).max()) for name in one}
    held = max(float(np.abs(a - b).max()) for n in LOADED for a, b in zip(before[n], also_frozen[n], strict=True))
    differ = max(float(np.abs(a - b).max()) for n in one for a, b in zip(one[n], two[n], strict=True))
    print(json.dumps({"held": held, "differ": differ, "moved": moved}))


if __name__ == "__main__":
    compare()
