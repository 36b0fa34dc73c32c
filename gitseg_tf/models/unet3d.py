"""3-D U-Nets: from a patch [D, H, W, 1] to logits, with encoders of their own.

A network is a function of the input tensor, the ModelConfig and the poolings of its stages; it returns the decoder's
Keras tensors from full resolution downwards, and NETWORKS_3D names it.
"""

import tf_keras as keras

from gitseg_tf.config import Config
from gitseg_tf.models.heads import organ_logits
from gitseg_tf.models.volume_layers import leaky_relu, normalized_convolution, residual_block
from gitseg_tf.sections.model import ModelConfig
from gitseg_tf.sections.volumes import poolings

_MOST_FILTERS = 320
_RESIDUAL_BLOCKS = (1, 3, 4, 6, 6)
_SUPERVISED = 3


def unet3d(inputs, config: ModelConfig, steps: list[tuple[int, int, int]]) -> list:
    """The 3-D U-Net (Cicek et al. 2016, arXiv:1606.06650), normalised and rectified as nnU-Net does it.

    Args:
        inputs: Keras tensor [N, D, H, W, C].
        config: `filters` is the number of channels at full resolution; it doubles at each stage, up to 320.
        steps: from `poolings`, one a stage but the first.

    Returns:
        Keras tensors [N, D, H, W, filters], then those of the lower resolutions.
    """
    features, x = [], inputs
    for stage, step in enumerate([None, *steps]):
        if step:
            x = keras.layers.MaxPooling3D(step, name=f"encoder{stage}_pool")(x)
        x = _convolutions(x, _width(config, stage), f"encoder{stage}", 2)
        features.append(x)
    return _decode(features, steps, 2)


def residual_unet3d(inputs, config: ModelConfig, steps: list[tuple[int, int, int]]) -> list:
    """A 3-D U-Net with a residual encoder (Zhang et al. 2018, arXiv:1711.10684), laid out as nnU-Net's ResEnc.

    The encoder has 1, 3, 4, 6 and 6 residual blocks, the decoder one convolution a stage (Isensee et al. 2024,
    arXiv:2404.09556).

    Args:
        inputs: Keras tensor [N, D, H, W, C].
        config: `filters`, as of `unet3d`.
        steps: from `poolings`, one a stage but the first.

    Returns:
        Keras tensors [N, D, H, W, filters], then those of the lower resolutions.
    """
    x = _convolutions(inputs, config.filters, "encoder_stem", 1)
    features = []
    for stage, (step, blocks) in enumerate(zip([(1, 1, 1), *steps], _RESIDUAL_BLOCKS, strict=True)):
        for block in range(blocks):
            strides = step if block == 0 else (1, 1, 1)
            x = residual_block(x, _width(config, stage), f"encoder{stage}_{block + 1}", strides)
        features.append(x)
    return _decode(features, steps, 1)


NETWORKS_3D = {"unet3d": unet3d, "residual_unet3d": residual_unet3d}


def build_volume_model(config: Config) -> keras.Model:
    """Build a 3-D network under the dtype policy in force.

    Args:
        config: the experiment; data.patch gives the input, the section model the network.

    Returns:
        Model from float32 [N, D, H, W, 1] to float32 logits [N, D, H, W, 3]. With model.deep_supervision to a dict of
        them as `logits`, and those at the next lower resolutions as `deep1` and `deep2`.
    """
    patch, model = config.data.patch, config.model
    inputs = keras.Input((*patch, 1), name="windows")
    decoded = NETWORKS_3D[model.architecture](inputs, model, poolings(patch))
    if not model.deep_supervision:
        logits = organ_logits(decoded[0], model.dropout, config.seed, "logits")
        return keras.Model(inputs, logits, name=model.architecture)
    names = ["logits", *(f"deep{k}" for k in range(1, _SUPERVISED))]
    outputs = {
        name: organ_logits(x, model.dropout, config.seed + k, name)
        for k, (name, x) in enumerate(zip(names, decoded, strict=False))
    }
    return keras.Model(inputs, outputs, name=model.architecture)


def _width(config: ModelConfig, stage: int) -> int:
    return min(config.filters * 2**stage, _MOST_FILTERS)


def _convolutions(x, filters: int, name: str, count: int):
    for i in range(1, count + 1):
        x = leaky_relu(normalized_convolution(x, filters, f"{name}_{i}"), f"{name}_{i}")
    return x


def _decode(features: list, steps: list[tuple[int, int, int]], convolutions: int) -> list:
    x, decoded = features[-1], []
    for stage in reversed(range(len(steps))):
        skip, name = features[stage], f"decoder{stage}"
        # A kernel as large as its stride: no overlap, no checkerboard, and XLA has its gradient.
        x = keras.layers.Conv3DTranspose(skip.shape[-1], steps[stage], steps[stage], name=f"{name}_up")(x)
        x = keras.layers.Concatenate(name=f"{name}_join")([x, skip])
        x = _convolutions(x, skip.shape[-1], name, convolutions)
        decoded.insert(0, x)
    return decoded
