"""From the config to a network."""

from contextlib import contextmanager

import tf_keras as keras

from gitseg_tf.config import Config
from gitseg_tf.models.attention_unet import attention_unet
from gitseg_tf.models.backbones import BACKBONES
from gitseg_tf.models.deeplab import deeplabv3plus
from gitseg_tf.models.fpn import fpn
from gitseg_tf.models.heads import presence_logits, segmentation_logits
from gitseg_tf.models.segformer import segformer
from gitseg_tf.models.unet import unet
from gitseg_tf.models.unet3d import NETWORKS_3D, build_volume_model
from gitseg_tf.models.unetplusplus import unetplusplus

DECODERS = {
    "unet": unet,
    "unetplusplus": unetplusplus,
    "attention_unet": attention_unet,
    "deeplabv3plus": deeplabv3plus,
    "fpn": fpn,
    "segformer": segformer,
}
# Decoders that want the deepest feature at stride 16, from an encoder that can dilate its last stage.
DILATING = {"deeplabv3plus"}


def build_model(config: Config, precision: str = "float32", synchronized: bool = False) -> keras.Model:
    """Build the network of an experiment, weights from config.seed by keras's initialisers.

    Args:
        config: the experiment; data.size and data.slices give the input, the section model the network.
        precision: keras's dtype policy: float32, mixed_float16 or mixed_bfloat16.
        synchronized: batch normalisation over all replicas of the strategy in scope, not each on its own.

    Returns:
        Model from float32 [N, H, W, slices] to float32 logits [N, H, W, 3], organs in the order of ORGANS, whatever
        the precision. With model.presence or model.deep_supervision a dict of float32: these `logits`, `presence`
        [N, 3], and `deep1`, `deep2`, ... at half the resolution, a quarter, ...

        A 3-D network: see `build_volume_model`; it normalises each sample, whatever `synchronized`.
    """
    settings = config.model
    with _dtype_policy(precision):
        if config.model.architecture in NETWORKS_3D:
            return build_volume_model(config)
        inputs = keras.Input((*config.data.size, config.data.slices), name="windows")
        backbone = BACKBONES[settings.backbone]
        dilate = settings.architecture in DILATING and backbone.dilates
        features = backbone(inputs, settings, output_stride=16 if dilate else 32)
        decoded = DECODERS[settings.architecture](features, settings)
        outputs = segmentation_logits(decoded, config.data.size, settings.dropout, config.seed)
        if settings.presence:
            outputs["presence"] = presence_logits(features)
        name = f"{settings.architecture}_{settings.backbone}"
        model = keras.Model(inputs, outputs if len(outputs) > 1 else outputs["logits"], name=name)
    if synchronized:
        synchronize_normalization(model)
    return model


def logits_of(outputs):
    """The logits among a network's outputs, which are logits alone or a dict of them and others."""
    return outputs["logits"] if isinstance(outputs, dict) else outputs


@contextmanager
def _dtype_policy(name: str):
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def synchronize_normalization(model: keras.Model) -> None:
    """Let each batch normalisation, also one inside of another layer, take its statistics over all replicas.

    Args:
        model: built in the strategy's scope, not yet compiled: layers read what is set here when a step is traced.
    """
    for layer in model.submodules:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized, layer.fused = True, False
