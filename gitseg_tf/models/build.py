"""Build networks from a config."""

from contextlib import contextmanager

import tensorflow as tf
import tf_keras as keras

from gitseg_tf.config import Config
from gitseg_tf.config.model import BACKBONES, DECODERS, NETWORKS_3D
from gitseg_tf.models.heads import presence_logits, segmentation_logits
from gitseg_tf.models.volumetric.build import build_volume_model


def build_model(config: Config, precision: str = "float32", *, synchronized: bool = False) -> keras.Model:
    """Build the network of an experiment, with initial weights drawn from config.seed.

    Args:
        config: an experiment prepared by `Config.for_dataset`. `input_shape` gives the shape of the input, its labels
            are the outputs, and the section model describes the network.
        precision: Keras dtype policy: float32, mixed_float16 or mixed_bfloat16.
        synchronized: synchronize batch normalization over all replicas of the strategy in scope.

    Returns:
        Model from float32 [N, H, W, K * C] (K slices of C channels, slice by slice) to float32 logits [N, H, W, L] in
        the order of config.labels, for any precision. With model.presence_head or model.deep_supervision the output is
        a dict of float32: these `logits`, `presence` [N, L], and `deep1`, `deep2`, ... at half the resolution, a
        quarter, ...

        For a 3-D network see `build_volume_model`; it uses instance normalization and ignores `synchronized`.

    Raises:
        ConfigError: the config has no labels yet, or names a network that is not registered.

    Example:
        >>> from gitseg_tf.config import load_config
        >>> from gitseg_tf.labels import LabelSet
        >>> config = load_config(None, {"data.input_size": [64, 64], "data.window_slices": 3})
        >>> build_model(config.for_dataset(LabelSet.of("liver", "spleen"), ("ct",))).output_shape
        (None, 64, 64, 2)
    """
    settings, labels = config.model, len(config.label_set)
    with _dtype_policy(precision):
        if settings.architecture in NETWORKS_3D:
            return build_volume_model(config, input_shape(config))
        inputs = keras.Input(input_shape(config), name="windows")
        backbone, decoder = BACKBONES.get(settings.backbone), DECODERS.get(settings.architecture)
        dilates = DECODERS.facts(settings.architecture).get("dilates", False) and backbone.dilates
        features = backbone(inputs, settings, output_stride=16 if dilates else 32)
        outputs = segmentation_logits(
            decoder(features, settings),
            config.data.input_size,
            labels=labels,
            dropout=settings.dropout,
            seed=config.seed,
        )
        if settings.presence_head:
            outputs["presence"] = presence_logits(features, labels)
        name = f"{settings.architecture}_{settings.backbone}"
        model = keras.Model(inputs, outputs if len(outputs) > 1 else outputs["logits"], name=name)
    if synchronized:
        synchronize_normalization(model)
    return model


def input_shape(config: Config) -> tuple[int, ...]:
    """Compute the input shape of a network, without the batch axis.

    Args:
        config: the experiment; one channel is assumed if it has no channels yet.

    Returns:
        (height, width, slices * channels) for a 2-D or 2.5-D network, (depth, height, width, channels) for a 3-D one.
    """
    channels = len(config.channels or ("image",))
    if config.model.architecture in NETWORKS_3D:
        return *config.data.patch_shape, channels
    return *config.data.input_size, config.data.window_slices * channels


def logits_of(outputs):
    """Select the logits from a network's outputs, which are either the logits or a dict of several outputs."""
    return outputs["logits"] if isinstance(outputs, dict) else outputs


def with_presence(outputs):
    """Append the logits of the presence head, repeated for every pixel, to the logits of the pixels.

    Args:
        outputs: logits [N, H, W, L], or a dict of "logits" and, optionally, "presence" [N, L].

    Returns:
        [N, H, W, 2 L]; the logits alone if there is no presence head.
    """
    if not isinstance(outputs, dict) or "presence" not in outputs:
        return logits_of(outputs)
    logits = outputs["logits"]
    return tf.concat([logits, tf.broadcast_to(outputs["presence"][:, None, None], tf.shape(logits))], -1)


@contextmanager
def _dtype_policy(name: str):
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def synchronize_normalization(model: keras.Model) -> None:
    """Synchronize the statistics of all batch normalization layers, also nested ones, over all replicas.

    Args:
        model: built in the strategy's scope and not compiled yet, because layers read this setting during tracing.
    """
    for layer in model.submodules:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized, layer.fused = True, False
