"""Start a network from the weights of another one, layer by layer."""

import re
from dataclasses import dataclass

import numpy as np
import tf_keras as keras

from gitseg_tf.models.backbones.backbone import ENCODER, Weights

LOADED, ADAPTED, NEW = "loaded", "adapted", "new"
_HEAD = re.compile(r"logits|presence|deep\d+")


@dataclass(frozen=True)
class Inputs:
    """The input of a network.

    Attributes:
        slices: slices of a window; 1 for a 3-D network, whose first convolution sees one voxel's channels.
        channels: names of the channels of each slice; None if only the number of inputs is known.
    """

    slices: int
    channels: tuple[str, ...] | None


@dataclass(frozen=True)
class SourceNetwork:
    """The weights of a network, and what its inputs and outputs mean.

    Attributes:
        name: the network, for messages.
        layers: arrays by the names of its layers.
        inputs: its input.
        labels: names of its labels, in the order of its outputs; None if they are not known.
    """

    name: str
    layers: Weights
    inputs: Inputs
    labels: tuple[str, ...] | None


@dataclass(frozen=True)
class LayerTransfer:
    """What happens to one layer.

    Attributes:
        part: the part of the network that it belongs to, such as encoder or decoder4.
        layer: its name.
        status: LOADED, ADAPTED (to other inputs, or some labels only) or NEW.
        parameters: number of its weights.
        kept: number of its weights that come from the source.
        note: what was adapted; why it is new.
    """

    part: str
    layer: str
    status: str
    parameters: int
    kept: int
    note: str = ""


@dataclass(frozen=True)
class Transfer:
    """What a network takes over.

    Attributes:
        rows: one per layer with trainable weights, in the order of the network.
        weights: arrays by layer, of the loaded and the adapted layers.
    """

    rows: tuple[LayerTransfer, ...]
    weights: Weights

    @property
    def loaded(self) -> frozenset[str]:
        """The loaded and adapted layers, without the heads."""
        return frozenset(row.layer for row in self.rows if row.status != NEW and not is_head(row.layer))

    def count(self, status: str) -> int:
        """Count the layers with a status."""
        return sum(row.status == status for row in self.rows)


def is_head(name: str) -> bool:
    """Check whether a layer computes outputs per label."""
    return _HEAD.fullmatch(name) is not None


def weighted_layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """List the layers with trainable weights by name, in the order of the network; those of the encoder included."""
    return {name: layer for name, layer in _all_layers(model).items() if layer.trainable_weights}


def _all_layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    nested = [layer.layers if isinstance(layer, keras.Model) else [layer] for layer in model.layers]
    return {layer.name: layer for layers in nested for layer in layers}


def set_layer_weights(model: keras.Model, weights: Weights) -> None:
    """Set the weights of some layers of a network, given by their names; those of the encoder included."""
    layers = _all_layers(model)
    for name, arrays in weights.items():
        layers[name].set_weights(arrays)


def plan_transfer(source: SourceNetwork, model: keras.Model, inputs: Inputs, labels: tuple[str, ...]) -> Transfer:
    """Decide what each layer of a new network takes from a source.

    A layer is loaded if the source has one with the same name and shapes. The first convolution is adapted to other
    slices and channels by `adapted_kernel`. A head keeps the outputs of labels with the same names. Normalization after
    a new convolution is new as well, because its statistics describe other features.

    Args:
        source: the other network.
        model: the new network, with the initial weights of what is not loaded.
        inputs, labels: its input and the names of its labels.

    Returns:
        The plan; `set_layer_weights` applies its weights.
    """
    layers = weighted_layers(model)
    parts = _parts(model)
    stem = next(iter(layers))
    rows: list[LayerTransfer] = []
    weights: Weights = {}
    status: dict[str, str] = {}
    for name, layer in layers.items():
        own, theirs = layer.get_weights(), source.layers.get(name)
        arrays, note = None, ""
        if theirs is None:
            note = "not in the source"
        elif is_head(name):
            arrays, note = _head(own, theirs, labels, source.labels)
        elif name == stem:
            arrays, note = _stem(own, theirs, inputs, source.inputs)
        elif [array.shape for array in own] != [array.shape for array in theirs]:
            note = f"{_shape(theirs)} in the source, {_shape(own)} here"
        elif (before := _predecessor(layer)) in status and status[before] == NEW and not _has_kernel(own):
            note = f"follows {before}, which is new"
        else:
            arrays = theirs
        if arrays is None:
            status[name] = NEW
        else:
            weights[name] = arrays
            status[name] = ADAPTED if note else LOADED
        parameters = sum(array.size for array in own)
        kept = parameters if arrays is not None else 0
        if arrays is not None and is_head(name) and source.labels:
            kept = kept * len(set(labels) & set(source.labels)) // len(labels)
        rows.append(LayerTransfer(parts[name], name, status[name], parameters, kept, note))
    return Transfer(tuple(rows), weights)


def fits_usefully(transfer: Transfer, model: keras.Model) -> bool:
    """Check that more than normalization and the first layer fits: at least one kernel was loaded unchanged."""
    layers = weighted_layers(model)
    return any(
        row.status == LOADED and not is_head(row.layer) and _has_kernel(layers[row.layer].get_weights())
        for row in transfer.rows
    )


def adapted_kernel(kernel: np.ndarray, source: Inputs, target: Inputs) -> np.ndarray:
    """Adapt the kernel of a first convolution to other slices and channels of its input.

    Slices are aligned in the middle of the window and keep their kernels. Additional outer slices start at zero, so the
    network computes what it did before. The kernels of missing outer slices are added to those of the outermost
    remaining ones, so the result is that of a window whose outer slices repeat the nearest one, as windows at the end
    of a scan do.

    Channels of the same name keep their kernels. Those of missing channels are shared equally by the new ones (or by
    all, if there are no new ones), so the sum over the channels stays the same; new channels start at zero if no
    channel is missing. If the source's channels are not known, each input gets the mean over all inputs, scaled to the
    same sum.

    Args:
        kernel: float32 [..., slices * channels, F] of the source, slice by slice.
        source, target: the inputs of both networks; the target's channels are known.

    Returns:
        float32 [..., slices * channels, F] for the target.

    Example:
        >>> three, one = Inputs(3, ("image",)), Inputs(1, ("image",))
        >>> kernel = np.array([[1.0], [2.0], [4.0]])
        >>> adapted_kernel(kernel, three, one).ravel(), adapted_kernel(kernel[1:2], one, three).ravel()
        (array([7.]), array([0., 2., 0.]))
    """
    assert target.channels is not None
    if source.channels is None:
        count, total = kernel.shape[-2], target.slices * len(target.channels)
        if count == total:
            return kernel
        return np.repeat(kernel.mean(-2, keepdims=True), total, -2) * (count / total)
    whole = kernel.reshape(*kernel.shape[:-2], source.slices, len(source.channels), kernel.shape[-1])
    planes = _with_slices(np.moveaxis(whole, -3, 0), target.slices)
    planes = _with_channels(np.moveaxis(planes, -2, 1), source.channels, target.channels)
    adapted = np.moveaxis(np.moveaxis(planes, 1, -2), 0, -3)
    return adapted.reshape(*kernel.shape[:-2], -1, kernel.shape[-1])


def _with_slices(planes: np.ndarray, slices: int) -> np.ndarray:
    """Adapt [slices, ...] to another odd number of slices."""
    surplus = (len(planes) - slices) // 2
    if surplus <= 0:
        return np.pad(planes, [(-surplus, -surplus)] + [(0, 0)] * (planes.ndim - 1))
    kept = planes[surplus:-surplus].copy()
    kept[0] += planes[:surplus].sum(0)
    kept[-1] += planes[-surplus:].sum(0)
    return kept


def _with_channels(planes: np.ndarray, source: tuple[str, ...], target: tuple[str, ...]) -> np.ndarray:
    """Adapt [slices, channels, ...] to other channels."""
    by_name = {name: planes[:, i] for i, name in enumerate(source)}
    missing = [by_name[name] for name in source if name not in target]
    added = [name for name in target if name not in by_name]
    share = sum(missing, np.zeros_like(planes[:, 0])) / len(added or target)
    adapted = [by_name[name] + (0 if added else share) if name in by_name else share for name in target]
    return np.stack(adapted, 1)


def _stem(own: list, theirs: list, inputs: Inputs, source: Inputs) -> tuple[list | None, str]:
    kernel, mine = theirs[0], own[0]
    fits = kernel.ndim == mine.ndim and kernel.shape[:-2] == mine.shape[:-2] and kernel.shape[-1] == mine.shape[-1]
    if not fits or [a.shape for a in own[1:]] != [a.shape for a in theirs[1:]]:
        return None, f"{_shape(theirs)} in the source, {_shape(own)} here"
    adapted = adapted_kernel(kernel, source, inputs)
    if adapted.shape == kernel.shape and np.array_equal(adapted, kernel):
        return theirs, ""
    notes = []
    if source.channels is None:
        notes.append(f"mean of {kernel.shape[-2]} inputs")
    elif source.channels != inputs.channels:
        notes.append(f"channels {', '.join(source.channels)} to {', '.join(inputs.channels or ())}")
    if source.channels is not None and source.slices != inputs.slices:
        notes.append(f"{source.slices} to {inputs.slices} slices")
    return [adapted, *theirs[1:]], "; ".join(notes)


def _head(own: list, theirs: list, labels: tuple[str, ...], source: tuple[str, ...] | None) -> tuple[list | None, str]:
    """Copy the outputs of labels with the same names: the last axis of the kernel, and the bias."""
    if source is None:
        return None, "the source does not say which labels its outputs are"
    if [array.shape[:-1] for array in own] != [array.shape[:-1] for array in theirs]:
        return None, f"{_shape(theirs)} in the source, {_shape(own)} here"
    kept = [name for name in labels if name in source]
    if not kept:
        return None, "no label in common"
    arrays = [array.copy() for array in own]
    for array, other in zip(arrays, theirs, strict=True):
        for name in kept:
            array[..., labels.index(name)] = other[..., source.index(name)]
    added = [name for name in labels if name not in source]
    return arrays, f"{_listed(kept)} kept, {_listed(added)} new" if added else ""


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{len(names)} labels"


def _parts(model: keras.Model) -> dict[str, str]:
    """Map each layer to the part of the network: the encoder, or the first word of its name."""
    parts: dict[str, str] = {}
    for layer in model.layers:
        inner = layer.layers if isinstance(layer, keras.Model) else []
        parts |= {each.name: layer.name for each in inner}
        parts[layer.name] = ENCODER if layer.name.startswith(ENCODER) else layer.name.split("_")[0]
    return parts


def _predecessor(layer: keras.layers.Layer) -> str | None:
    """Return the name of the only layer whose output a layer takes."""
    before = layer.inbound_nodes[0].inbound_layers if layer.inbound_nodes else []
    return None if isinstance(before, list) else before.name


def _has_kernel(arrays: list) -> bool:
    return any(array.ndim > 1 for array in arrays)


def _shape(arrays: list) -> str:
    return "x".join(map(str, max(arrays, key=np.ndim).shape))
