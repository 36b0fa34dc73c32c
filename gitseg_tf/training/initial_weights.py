"""The weights that a new run starts from: another run's network (model.init) or an encoder's (model.pretrained)."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import tf_keras as keras

from gitseg_tf.config import Config
from gitseg_tf.config.model import NETWORKS_3D
from gitseg_tf.core.paths import AnyPath, local_copy
from gitseg_tf.core.text import plural
from gitseg_tf.core.text import table_lines as text_table
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.errors import RunError, first_line
from gitseg_tf.labels import LabelSet
from gitseg_tf.models.backbones import encoder_of
from gitseg_tf.models.backbones.backbone import ENCODER, Weights
from gitseg_tf.models.build import build_model
from gitseg_tf.models.pretrained import layers_of_h5, read_backbone_weights
from gitseg_tf.models.transfer import (
    ADAPTED,
    LOADED,
    NEW,
    Inputs,
    SourceNetwork,
    Transfer,
    fits_usefully,
    is_head,
    plan_transfer,
    weighted_layers,
)
from gitseg_tf.runs.initialization import Source, check_patients, find_source, read_table, write_table

logger = logging.getLogger(__name__)

# What Keras and h5py raise for a file that does not fit.
_MISFIT = (ValueError, OSError, KeyError, RuntimeError, TypeError, AttributeError, IndexError)


@dataclass(frozen=True)
class InitialWeights:
    """What a run starts from.

    Attributes:
        weights: arrays by layer; empty for random weights, and in a resumed run.
        loaded: layers whose weights were loaded, which training.freeze_epochs freezes.
        transfer: what happened to each layer, with model.init.
        provenance: what the run's config records about model.init.
    """

    weights: Weights
    loaded: frozenset[str] = frozenset()
    transfer: Transfer | None = None
    provenance: dict[str, Any] | None = None

    def write(self, run: AnyPath) -> None:
        """Write the table of layers into the run's folder, with model.init."""
        if self.transfer is not None:
            write_table(run, self.transfer.rows)


def read_initial_weights(config: Config, dataset: Dataset) -> InitialWeights:
    """Read the weights given by model.init or model.pretrained, and log what is loaded.

    Args:
        config: the experiment, prepared for the dataset.
        dataset: the dataset to train on.

    Returns:
        The weights.

    Raises:
        RunError: model.init is missing or damaged, does not fit, or was trained on patients that are held out.
        ConfigError: see `read_backbone_weights`.
    """
    if config.model.init is None:
        weights = read_backbone_weights(config) or {}
        return InitialWeights(weights, frozenset(weights))
    fold = config.data.fold
    source = find_source(config.model.init, fold)
    scans = [] if fold is None else dataset.scans_of([fold], config.data.exclude_scans)
    check_patients(source, {scan.case for scan in scans}, dataset.source["fingerprint"])
    network = _read_network(source, config)
    keras.utils.set_random_seed(config.seed)
    model = build_model(config)
    transfer = plan_transfer(network, model, _inputs(config), config.label_set.names)
    if not fits_usefully(transfer, model):
        fix = "choose the architecture, backbone, filters and levels of the source, or another source"
        raise RunError(
            f"{source.path}: no convolution of its network ({network.name}) fits this one ({model.name}); {fix}"
        )
    for line in table_lines(source.path, transfer):
        logger.info("%s", line)
    return InitialWeights(transfer.weights, transfer.loaded, transfer, source.provenance())


def resumed_weights(config: Config, run: AnyPath) -> InitialWeights:
    """Find out which layers of a resumed run were loaded when it began; the weights come from its checkpoint."""
    if config.model.init is None or not _freezes(config):
        return InitialWeights({}, _encoder_layers(config) if _freezes(config) else frozenset())
    kept = {row["layer"] for row in read_table(run) if row["status"] != NEW}
    return InitialWeights({}, frozenset(name for name in kept if not is_head(name)))


def _freezes(config: Config) -> bool:
    return bool(config.training.freeze_epochs or config.training.unfreeze_warmup_epochs)


def _encoder_layers(config: Config) -> frozenset[str]:
    return frozenset(weighted_layers(encoder_of(build_model(config))))


def table_lines(path: AnyPath, transfer: Transfer) -> list[str]:
    """Describe a transfer: one line in total, and a table with a row for each part of the network."""
    total = len(transfer.rows)
    counts = f"{transfer.count(LOADED)} of {plural(total, 'layer')} loaded"
    counts += f", {transfer.count(ADAPTED)} adapted, {transfer.count(NEW)} new"
    parts: dict[str, list] = {}
    for row in transfer.rows:
        parts.setdefault(row.part, []).append(row)
    columns = [(f"{status:>9}", [f"{sum(r.status == status for r in rows) or '':>9}" for rows in parts.values()])
               for status in (LOADED, ADAPTED, NEW)]  # fmt: skip
    kept = [f"{sum(r.kept for r in rows):,} of {sum(r.parameters for r in rows):,}" for rows in parts.values()]
    width = 2 + max(len("weights kept"), *map(len, kept))
    columns.append((f"{'weights kept':>{width}}", [f"{text:>{width}}" for text in kept]))
    notes = [next((f"  {r.note}" for r in rows if r.status == ADAPTED), "") for rows in parts.values()]
    columns.append(("", notes))
    return [f"init       {path}: {counts}", *(f"  {line}" for line in text_table(list(parts), columns, None))]


def _inputs(config: Config) -> Inputs:
    slices = 1 if config.model.architecture in NETWORKS_3D else config.data.window_slices
    return Inputs(slices, tuple(config.channels or ("image",)))


def _read_network(source: Source, config: Config) -> SourceNetwork:
    if source.config is not None:
        model = _loaded(source, source.config, "restore both files of the run")
        labels = source.config.label_set.names
        return SourceNetwork(model.name, _arrays(model), _inputs(source.config), labels)
    with _opened(source) as (path, file):
        root = file.get("model_weights", file)
        if "layer_names" in root.attrs:
            return SourceNetwork(path.name, layers_of_h5(root), Inputs(1, None), None)
        alike = _with_shapes_of(file, config)
    # The newer format has no names of layers: only the same network says which is which.
    model = _loaded(source, alike, "it holds no names of layers, so set model.init to its run's folder")
    return SourceNetwork(model.name, _arrays(model), Inputs(1, None), None)


@contextmanager
def _opened(source: Source) -> Iterator[tuple[Path, h5py.File]]:
    try:
        with local_copy(source.weights) as path, h5py.File(path) as file:
            yield path, file
    except _MISFIT as error:
        raise _damaged(source, error, "choose another file") from None


def _loaded(source: Source, config: Config, fix: str) -> keras.Model:
    """Build the network of a config with the weights of the source."""
    model = build_model(config)
    try:
        with local_copy(source.weights) as path:
            model.load_weights(path)
    except _MISFIT as error:
        raise _damaged(source, error, fix) from None
    return model


def _damaged(source: Source, error: Exception, fix: str) -> RunError:
    where = "its config.yaml" if source.config is not None else "this config"
    return RunError(f"{source.weights}: is damaged, or not of the network in {where} ({first_line(error)}); {fix}")


def _with_shapes_of(file: h5py.File, config: Config) -> Config:
    """Give a config as many inputs and labels as the network in a .weights.h5 file."""
    model = build_model(config)
    encoder = next((layer for layer in model.layers if layer.name == ENCODER), None)
    inside = "" if encoder is None else "layers/functional/"
    stem = _index(encoder or model, next(iter(weighted_layers(model))))
    inputs = file[f"{inside}layers/{stem}/vars/0"].shape[-2]
    outputs = file[f"layers/{_index(model, 'logits')}/vars/1"].shape[0]
    data = config.data.model_copy(update={"window_slices": 1})
    names = tuple(f"input{i}" for i in range(inputs))
    labels = LabelSet.of(*(f"label{i}" for i in range(outputs)))
    return config.model_copy(update={"data": data, "channels": names, "labels": labels})


def _index(model: keras.Model, name: str) -> str:
    """Name a convolution as the file does: its class, and how many of its class are before it."""
    kind = type(model.get_layer(name))
    alike = [layer.name for layer in model.layers if type(layer) is kind]
    number = alike.index(name)
    return kind.__name__.lower() + (f"_{number}" if number else "")


def _arrays(model: keras.Model) -> Weights:
    return {name: layer.get_weights() for name, layer in weighted_layers(model).items()}
