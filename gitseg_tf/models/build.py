"""From the config to a network."""

from contextlib import contextmanager

import tf_keras as keras

from gitseg_tf.config import Config
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.models.backbones import BACKBONES
from gitseg_tf.models.unet import unet
from gitseg_tf.models.unet3d import NETWORKS_3D, build_volume_model

DECODERS = {"unet": unet}


def build_model(config: Config, precision: str = "float32", synchronized: bool = False) -> keras.Model:
    """Build the network of an experiment, weights from config.seed by keras's initialisers.

    Args:
        config: the experiment; data.size and data.slices give the input, the section model the network.
        precision: keras's dtype policy: float32, mixed_float16 or mixed_bfloat16.
        synchronized: batch normalisation over all replicas of the strategy in scope, not each on its own.

    Returns:
        Model from float32 [N, H, W, slices] to float32 logits [N, H, W, 3], organs in the order of ORGANS, whatever
        the precision. A 3-D network: see `build_volume_model`; it normalises each sample, whatever `synchronized`.
    """
    with _dtype_policy(precision):
        if config.model.architecture in NETWORKS_3D:
            return build_volume_model(config)
        inputs = keras.Input((*config.data.size, config.data.slices), name="windows")
        features = BACKBONES[config.model.backbone](inputs, config.model)
        decoded = DECODERS[config.model.architecture](features, config.model)
        # Organs are rare: starting at a probability of 5% spares the first steps (Lin et al. 2017, arXiv:1708.02002).
        rare = keras.initializers.Constant(-3.0)
        logits = keras.layers.Conv2D(len(ORGANS), 1, bias_initializer=rare, dtype="float32", name="logits")(decoded)
        model = keras.Model(inputs, logits, name=f"{config.model.architecture}_{config.model.backbone}")
        return _with_synchronized_normalization(model) if synchronized else model


@contextmanager
def _dtype_policy(name: str):
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def _with_synchronized_normalization(model: keras.Model) -> keras.Model:
    def copy(layer):
        settings = layer.get_config()
        if isinstance(layer, keras.layers.BatchNormalization):
            settings["synchronized"] = True
        return type(layer).from_config(settings)

    copied = keras.models.clone_model(model, clone_function=copy)
    copied.set_weights(model.get_weights())
    return copied
