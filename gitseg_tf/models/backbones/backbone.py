"""What a row of the table of backbones holds, and the encoder that it gives."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tf_keras as keras

from gitseg_tf.errors import InputError
from gitseg_tf.models.backbones.dilation import dilated
from gitseg_tf.sections.model import ModelConfig

ENCODER = "encoder"
Weights = dict[str, list[np.ndarray]]


@dataclass(frozen=True)
class Published:
    """Weights trained on ImageNet, in Keras's HDF5 format.

    url, file_hash: of the file, as keras.utils.get_file takes them.
    convert: from the weights by the file's layer names to those by the encoder's.
    """

    url: str
    file_hash: str
    convert: Callable[[Weights], Weights] = lambda layers: layers


@dataclass(frozen=True)
class Backbone:
    """An encoder.

    build: function of (inputs [N, H, W, K], config) to the features, Keras tensors by their stride. It names all layers
        that have weights.
    paper, library: the source of the architecture, and of its layers.
    scale, offset: windows in [0, 1] are multiplied and shifted to what the published weights were trained on.
    published: weights for model.weights: imagenet, if there are any.
    dilates: the last stage can be dilated instead of strided. It can where each stride is one of a convolution that is
        made for overlapping windows, not in networks that cut a map into patches.
    """

    build: Callable[..., dict]
    paper: str
    library: str
    scale: float = 1.0
    offset: float = 0.0
    published: Published | None = None
    dilates: bool = True

    def __call__(self, inputs, config: ModelConfig, output_stride: int = 32) -> dict:
        """Encode.

        Args:
            inputs: Keras tensor [N, H, W, K]; height and width are multiples of 32.
            config: the network's options.
            output_stride: the largest stride of a feature: 32, or 16. With 16 the last stage is dilated, and its
                feature is that of stride 16, from the same weights as at 32. A backbone that does not dilate has a
                feature of stride 32 all the same.

        Returns:
            Keras tensors by stride: 2 (where the network has one), 4, 8, 16, and 32.
        """
        if self.scale != 1 or self.offset:
            inputs = keras.layers.Rescaling(self.scale, self.offset, dtype="float32", name="encoder_scaling")(inputs)
        encoder = self.encoder(inputs.shape[1:], config, output_stride)
        height = inputs.shape[1]
        return {height // feature.shape[1]: feature for feature in encoder(inputs)}

    def encoder(self, shape: tuple[int, int, int], config: ModelConfig, output_stride: int = 32) -> keras.Model:
        """The network alone, without the scaling of its input.

        Args:
            shape: height, width and channels of the input.
            config, output_stride: as above.

        Returns:
            Model named "encoder" from [N, H, W, K] to a list of the features by falling resolution.
        """
        inputs = keras.Input(shape, name="scaled_windows")
        features = self.build(inputs, config)
        encoder = keras.Model(inputs, [features[stride] for stride in sorted(features)], name=ENCODER)
        if self.dilates and output_stride < max(features):
            finest = [stride for stride in sorted(features) if stride < output_stride]
            encoder = dilated(encoder, output_stride)
            outputs = [*encoder.outputs[: len(finest)], encoder.outputs[-1]]
            encoder = keras.Model(encoder.inputs, outputs, name=ENCODER)
        for layer in encoder.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                # The libraries have 0.9 to 0.999, with which a short run is validated by its first statistics.
                layer.momentum = 0.9
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0  # of blocks; it draws from a state that no checkpoint holds to resume from
        return encoder


def encoder_of(model: keras.Model) -> keras.Model:
    """The encoder in a network, a model of its own: `encoder_of(model).save_weights("encoder.weights.h5")`.

    Raises:
        InputError: the network has none.
    """
    for layer in model.layers:
        if layer.name == ENCODER:
            return layer
    raise InputError(f"{model.name}: has no encoder")


def encoder_variables(model: keras.Model) -> list:
    """The encoder's trainable variables; the others of model.trainable_variables are those of decoder and heads.

    Raises:
        InputError: the network has no encoder.
    """
    return encoder_of(model).trainable_variables
