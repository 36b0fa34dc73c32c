"""Weights that an encoder begins with: those published for ImageNet, or a file's."""

import os
from pathlib import Path

import h5py
import numpy as np
import tf_keras as keras

from gitseg_tf.config import Config
from gitseg_tf.errors import InputError
from gitseg_tf.files import as_path, local_copy
from gitseg_tf.models.backbones import BACKBONES, Backbone, encoder_of
from gitseg_tf.models.backbones.backbone import Weights
from gitseg_tf.models.build import DECODERS

_STEM = "layers/conv2d/vars/0"  # the first convolution's kernel in a .weights.h5 file


def read_backbone_weights(config: Config) -> Weights | None:
    """Fetch or read the weights that model.weights names, fitted to the experiment's encoder.

    `imagenet` is downloaded from where keras.applications keeps it, once, into ~/.keras/models. A file is one that was
    published there, or that `encoder_of(model).save_weights` wrote, with any number of input slices. Where the encoder
    has another number of slices, the stem's kernel is averaged over its input channels, repeated, and rescaled so that
    a window of equal slices is answered as an image of equal channels was.

    Args:
        config: the experiment.

    Returns:
        Weights by the names of the encoder's layers; None where model.weights is null.

    Raises:
        InputError: there are no published weights for this backbone, the network cannot be reached, the file cannot be
            read, or it holds the weights of another backbone.
    """
    name = config.model.backbone
    backbone, weights = BACKBONES[name], config.model.weights
    if weights is None:
        return None
    if config.model.architecture not in DECODERS:
        raise InputError(f"model.weights: {config.model.architecture} has no backbone to put them into; set it to null")
    encoder = backbone.encoder((*config.data.size, config.data.slices), config.model)
    with local_copy(_downloaded(name, backbone) if weights == "imagenet" else as_path(weights)) as path:
        try:
            layers = _layers_of(path, backbone, encoder, config)
            weighted = [layer for layer in encoder.layers if layer.weights]
            stem = weighted[0].name
            layers[stem] = [_with_slices(layers[stem][0], config.data.slices), *layers[stem][1:]]
            return {layer.name: _checked(layer, layers[layer.name]) for layer in weighted}
        except (OSError, RuntimeError) as error:  # h5py raises either
            number = getattr(error, "errno", None)
            reason = os.strerror(number) if number else "it is damaged, or no HDF5 file"
            raise InputError(f"model.weights: {weights} cannot be read ({reason})") from None
        except (KeyError, ValueError, IndexError):
            raise InputError(f"model.weights: {weights} does not hold the weights of {name}") from None


def set_backbone_weights(model: keras.Model, weights: Weights) -> None:
    """Put weights from `read_backbone_weights` into a network's encoder."""
    encoder = encoder_of(model)
    for name, arrays in weights.items():
        encoder.get_layer(name).set_weights(arrays)


def _downloaded(name: str, backbone: Backbone) -> Path:
    published = backbone.published
    if published is None:
        able = ", ".join(sorted(other for other, row in BACKBONES.items() if row.published))
        raise InputError(f"model.weights: there are no ImageNet weights of {name}; there are some of {able}")
    try:
        return Path(
            keras.utils.get_file(
                published.url.rsplit("/", 1)[1], published.url, cache_subdir="models", file_hash=published.file_hash
            )
        )
    except Exception as error:  # get_file raises this class itself
        if not isinstance(error, OSError | ValueError) and "URL fetch failure" not in str(error):
            raise
        reason = " ".join(str(error).split())
        cure = "connect to the network, or fetch it elsewhere and give its path as model.weights"
        raise InputError(f"model.weights: {published.url} cannot be fetched ({reason}); {cure}") from None


def _layers_of(path: Path, backbone: Backbone, encoder: keras.Model, config: Config) -> Weights:
    with h5py.File(path) as file:
        root = file.get("model_weights", file)
        if "layer_names" in root.attrs:
            layers = _by_layer(root)
            own = all(layer.name in layers for layer in encoder.layers if layer.weights)
            return layers if own or backbone.published is None else backbone.published.convert(layers)
        slices = file[_STEM].shape[2]
    saved = backbone.encoder((*config.data.size, slices), config.model)
    saved.load_weights(path)
    return {layer.name: layer.get_weights() for layer in saved.layers}


def _by_layer(root: h5py.Group) -> Weights:
    """The arrays of Keras's older HDF5 format."""

    def names(node, attribute):
        return [name if isinstance(name, str) else name.decode() for name in node.attrs[attribute]]

    return {
        layer: [np.asarray(root[layer][name]) for name in names(root[layer], "weight_names")]
        for layer in names(root, "layer_names")
    }


def _checked(layer: keras.layers.Layer, arrays: list[np.ndarray]) -> list[np.ndarray]:
    if [array.shape for array in arrays] != [tuple(variable.shape) for variable in layer.weights]:
        raise ValueError(f"{layer.name} has other shapes")
    return arrays


def _with_slices(kernel: np.ndarray, slices: int) -> np.ndarray:
    """A stem's kernel [h, w, c, f] as [h, w, slices, f]; the sum over its input channels stays."""
    if kernel.shape[2] == slices:
        return kernel
    return np.repeat(kernel.mean(2, keepdims=True), slices, 2) * (kernel.shape[2] / slices)
