"""Build 3-D networks from a config."""

import tf_keras as keras

from gitseg_tf.config import Config
from gitseg_tf.config.model import NETWORKS_3D
from gitseg_tf.config.volumetric import poolings
from gitseg_tf.models.heads import label_logits

_SUPERVISED = 3


def build_volume_model(config: Config, shape: tuple[int, ...]) -> keras.Model:
    """Build a 3-D network under the current dtype policy.

    Args:
        config: the experiment; its section model describes the network, its labels are the outputs.
        shape: (depth, height, width, channels) of the input, from `gitseg_tf.models.build.input_shape`.

    Returns:
        Model from float32 [N, D, H, W, C] to float32 logits [N, D, H, W, L]. With model.deep_supervision the output is
        a dict of these `logits`, and of `deep1` and `deep2` at the next two lower resolutions.
    """
    model, labels = config.model, len(config.label_set)
    inputs = keras.Input(shape, name="windows")
    steps = poolings((shape[0], shape[1], shape[2]), model.levels)
    decoded = NETWORKS_3D.get(model.architecture)(inputs, model, steps)
    names = ["logits", *(f"deep{k}" for k in range(1, _SUPERVISED if model.deep_supervision else 1))]
    outputs = {
        name: label_logits(x, name, labels=labels, dropout=model.dropout, seed=config.seed + k)
        for k, (name, x) in enumerate(zip(names, decoded, strict=False))
    }
    return keras.Model(inputs, outputs if len(outputs) > 1 else outputs["logits"], name=model.architecture)
