"""The cost of each network: parameters, floating-point operations, measured speed."""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import tensorflow as tf
import tf_keras as keras
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from gitseg_tf.config import load_config
from gitseg_tf.config.model import BACKBONES, DECODERS, NETWORKS_3D
from gitseg_tf.core.paths import as_path, write_atomically
from gitseg_tf.core.registry import suggestion
from gitseg_tf.errors import ConfigError
from gitseg_tf.labels import UWMGI, LabelSet
from gitseg_tf.models.backbones import encoder_of
from gitseg_tf.models.build import build_model
from gitseg_tf.models.freezing.freeze import freeze

logger = logging.getLogger(__name__)

BATCH = 8
COMMON_BACKBONE = "resnet34"


@dataclass(frozen=True)
class Cost:
    """A row of the table.

    Attributes:
        architecture: the decoder, or the 3-D network.
        backbone: its name; None for a 3-D network, which has its own encoder.
        encoder: number of weights of the encoder; None for a 3-D network.
        parameters: number of weights of the whole network.
        gflops: 10^9 floating-point operations for inference on one window; a multiply-add counts as two.
        windows_per_second: speed of inference in batches of 8 on this machine; None if it was not measured.
    """

    architecture: str
    backbone: str | None
    encoder: int | None
    parameters: int
    gflops: float
    windows_per_second: float | None


def networks(architecture: str | None, backbone: str | None) -> list[tuple[str, str | None]]:
    """List the architectures and backbones of the table's rows.

    Args:
        architecture, backbone: select only rows with these. If both are None: U-Net with each backbone, each other 2-D
            architecture with resnet34, and the 3-D networks, which have no backbone.

    Returns:
        (architecture, backbone) of each row; the backbone is None for a 3-D network.

    Raises:
        ConfigError: a name that is not registered, or a backbone for a 3-D network.
    """
    known: dict[str, tuple[str | None, Iterable[str]]] = {
        "architecture": (architecture, [*DECODERS, *NETWORKS_3D]),
        "backbone": (backbone, BACKBONES),
    }
    for what, (name, table) in known.items():
        if name is not None and name not in table:
            raise ConfigError(f"unknown {what} {name!r}; {suggestion(name, table)}")
    if architecture is not None and architecture in NETWORKS_3D:
        if backbone:
            raise ConfigError(f"{architecture}: has its own encoder; leave out the backbone")
        return [(architecture, None)]
    if architecture or backbone:
        return [
            (decoder, encoder)
            for decoder in ([architecture] if architecture else DECODERS)
            for encoder in ([backbone] if backbone else BACKBONES)
        ]
    others = [(name, COMMON_BACKBONE) for name in DECODERS if name != "unet"]
    return [("unet", name) for name in BACKBONES] + others + [(name, None) for name in NETWORKS_3D]


def cost(
    architecture: str,
    backbone: str | None,
    *,
    size: int,
    slices: int,
    measured: bool,
    labels: int = len(UWMGI),
    channels: int = 1,
) -> Cost:
    """Build a network with default settings, and determine its cost.

    Args:
        architecture, backbone: registered names.
        size: height and width of a window in pixels, a multiple of 32; a 3-D network gets the patch of `patch_of`.
        slices: number of slices in a window.
        measured: also time inference, which takes a few seconds.
        labels, channels: number of labels and channels of the dataset.

    Returns:
        The row.
    """
    settings = {"model.architecture": architecture, "data.input_size": [size, size], "data.window_slices": slices}
    settings |= {"model.backbone": backbone} if backbone else {"data.patch": list(patch_of(size))}
    names = [f"label{number}" for number in range(1, labels + 1)]
    config = load_config(None, settings).for_dataset(
        LabelSet.of(*names), tuple(f"channel{number}" for number in range(1, channels + 1))
    )
    model = build_model(config)
    speed = windows_per_second(model) if measured else None
    encoder = encoder_of(model).count_params() if backbone else None
    return Cost(architecture, backbone, encoder, model.count_params(), flops(model) / 1e9, speed)


def patch_of(size: int) -> tuple[int, int, int]:
    """Return (slices, height, width) of the patch with which 3-D networks are measured, for a window size."""
    return 32, size // 2, size // 2


def flops(model: keras.Model) -> int:
    """Count the floating-point operations of inference on one window with TensorFlow's profiler.

    A multiply-add counts as two operations; most papers give multiply-adds, half of this number.

    Args:
        model: a network with static sizes and one input.

    Returns:
        The number of operations.
    """
    spec = tf.TensorSpec([1, *model.input_shape[1:]], model.inputs[0].dtype)
    traced = tf.function(lambda window: model(window, training=False)).get_concrete_function(spec)
    graph = convert_variables_to_constants_v2(traced).graph
    profiler = tf.compat.v1.profiler
    options = profiler.ProfileOptionBuilder(profiler.ProfileOptionBuilder.float_operation())
    counted = profiler.profile(graph, cmd="scope", options=options.with_empty_output().build()).total_float_ops
    # The profiler ignores transposed convolutions, in which each input voxel is multiplied by its channel's kernel.
    transposed = [op.inputs for op in graph.get_operations() if op.type == "Conv3DBackpropInputV2"]
    return counted + sum(
        2 * kernel.shape.num_elements() * voxels.shape[:-1].num_elements() for _, kernel, voxels in transposed
    )


def windows_per_second(model: keras.Model, seconds: float = 2.0) -> float:
    """Measure inference in batches of 8 on this machine: the fastest of the batches in about `seconds`."""
    predict = freeze(lambda windows: model(windows, training=False), tf.TensorSpec(model.input_shape))
    windows = tf.constant(np.random.default_rng(0).random((BATCH, *model.input_shape[1:]), np.float32))
    predict(windows)
    best, end = np.inf, time.perf_counter() + seconds
    while best == np.inf or time.perf_counter() < end:
        start = time.perf_counter()
        predict(windows).numpy()
        best = min(best, time.perf_counter() - start)
    return BATCH / best


def lines(rows: list[Cost], size: int, slices: int) -> list[str]:
    """Format the table as text."""
    speed = "" if rows[0].windows_per_second is None else "windows/s"
    text = [f"{'architecture':17}{'backbone':19}{'encoder':>9}{'total':>9}{'GFLOPs':>9}{speed:>11}".rstrip()]
    for row in rows:
        speed = "" if row.windows_per_second is None else f"{row.windows_per_second:.1f}"
        encoder = f"{row.encoder / 1e6:8.2f}M" if row.encoder is not None else ""
        sizes = f"{encoder:9}{row.parameters / 1e6:8.2f}M{row.gflops:9.2f}"
        text.append(f"{row.architecture:17}{row.backbone or '':19}{sizes}{speed:>11}".rstrip())
    patches = "{} x {} x {}".format(*patch_of(size))
    text.append(
        f"Windows are {slices} x {size} x {size}, patches of 3-D networks {patches}; "
        "a multiply-add counts as 2 floating-point operations."
    )
    return text


def print_table(
    chosen: Iterable[tuple[str, str | None]],
    *,
    size: int,
    slices: int,
    measured: bool,
    csv: str | None = None,
    labels: int = len(UWMGI),
    channels: int = 1,
) -> list[Cost]:
    """Count and measure networks, log the table, and write it to a file on request.

    Args:
        chosen: from `networks`.
        size, slices, measured, labels, channels: see `cost`.
        csv: a CSV file to write, with a column for each field of Cost; an existing file is replaced atomically.

    Returns:
        The rows.
    """
    rows = [
        cost(
            architecture,
            backbone,
            size=size,
            slices=slices,
            measured=measured,
            labels=labels,
            channels=channels,
        )
        for architecture, backbone in chosen
    ]
    for line in lines(rows, size, slices):
        logger.info(line)
    if csv:
        write_atomically(as_path(csv), pd.DataFrame(rows).to_csv(index=False).encode())
    return rows
