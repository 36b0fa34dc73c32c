"""The interface of backbones, and the encoders built from them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tf_keras as keras

from gitseg_tf.config.model import ModelConfig
from gitseg_tf.errors import ConfigError
from gitseg_tf.models.backbones.dilation import dilated

ENCODER = "encoder"
KERAS_APPLICATIONS = "https://storage.googleapis.com/tensorflow/keras-applications"
# Scaling of images in [0, 1] for networks trained on ImageNet: scale and offset, averaged over the three colors.
STANDARDIZED: dict[str, Any] = {"scale": 1 / 0.226, "offset": -0.449 / 0.226}
CENTERED: dict[str, Any] = {"scale": 2.0, "offset": -1.0}
CAFFE: dict[str, Any] = {"scale": 255.0, "offset": -114.8}
Weights = dict[str, list[np.ndarray]]


@dataclass(frozen=True)
class Published:
    """Weights trained on ImageNet, in Keras's HDF5 format.

    Attributes:
        url, file_hash: URL and hash of the file, for keras.utils.get_file.
        convert: function from weights by the file's layer names to weights by the encoder's layer names.
    """

    url: str
    file_hash: str
    convert: Callable[[Weights], Weights] = lambda layers: layers


@dataclass(frozen=True)
class Packaged:
    """Weights trained on ImageNet, in a file of PyTorch that a Python package contains.

    Attributes:
        package, file: the package's import name, and the file's path inside it.
        sha256: the file's hash.
        extra: the extra of gitseg-tf that installs the package.
        convert: function from tensors by PyTorch's names to weights by the encoder's layer names.
    """

    package: str
    file: str
    sha256: str
    extra: str
    convert: Callable[[dict[str, np.ndarray]], Weights]


@dataclass(frozen=True)
class Backbone:
    """An encoder.

    Attributes:
        build: function from (inputs [N, H, W, K], config) to the features, Keras tensors by stride. It must name all
            layers that have weights.
        paper, library: the source of the architecture, and of its layers.
        scale, offset: scaling from windows in [0, 1] to the range for which the published weights were trained.
        published: weights for `model.pretrained: imagenet`, if there are any.
        dilates: whether the last stage can be dilated instead of strided. This requires overlapping strided
            convolutions, so it is not possible for networks that cut a map into patches.
    """

    build: Callable[..., dict]
    paper: str
    library: str
    scale: float = 1.0
    offset: float = 0.0
    published: Published | Packaged | None = None
    dilates: bool = True

    def __call__(self, inputs, config: ModelConfig, output_stride: int = 32) -> dict:
        """Apply the encoder.

        Args:
            inputs: Keras tensor [N, H, W, K]; height and width are multiples of 32.
            config: the network's options.
            output_stride: the largest stride of a feature, 32 or 16. With 16 the last stage is dilated, and its feature
                replaces that of stride 16; the weights are the same. A backbone that does not dilate still returns a
                feature of stride 32.

        Returns:
            Keras tensors by stride: 2 (if the network has one), 4, 8, 16, and 32.
        """
        if self.scale != 1 or self.offset:
            inputs = keras.layers.Rescaling(self.scale, self.offset, dtype="float32", name="encoder_scaling")(inputs)
        encoder = self.encoder(inputs.shape[1:], config, output_stride)
        height = inputs.shape[1]
        return {height // feature.shape[1]: feature for feature in encoder(inputs)}

    def encoder(self, shape: tuple[int, int, int], config: ModelConfig, output_stride: int = 32) -> keras.Model:
        """Build the network without input scaling.

        Args:
            shape: height, width and channels of the input.
            config, output_stride: as for `__call__`.

        Returns:
            Model named "encoder" from [N, H, W, K] to a list of the features in order of decreasing resolution.
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
                # The libraries use up to 0.999, which would validate a short run with its initial statistics.
                layer.momentum = 0.9
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0  # this dropout inside blocks uses random state that is not saved in checkpoints
        return encoder


def encoder_of(model: keras.Model) -> keras.Model:
    """Find the encoder of a network; it is a model: `encoder_of(model).save_weights("encoder.weights.h5")`.

    Raises:
        ConfigError: the network has no encoder.
    """
    for layer in model.layers:
        if layer.name == ENCODER:
            return layer
    raise ConfigError(f"{model.name}: has no encoder")


def encoder_variables(model: keras.Model) -> list:
    """List the encoder's trainable variables; those of the decoder and the heads are not included.

    Raises:
        ConfigError: the network has no encoder.
    """
    return encoder_of(model).trainable_variables
