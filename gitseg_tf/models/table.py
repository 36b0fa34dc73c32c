"""What each network costs: parameters, floating-point operations, measured speed."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import tensorflow as tf
import tf_keras as keras
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from gitseg_tf.config import load_config
from gitseg_tf.errors import InputError
from gitseg_tf.files import as_path, write_atomically
from gitseg_tf.models.backbones import BACKBONES, encoder_of
from gitseg_tf.models.build import DECODERS, build_model
from gitseg_tf.models.frozen import freeze
from gitseg_tf.models.unet3d import NETWORKS_3D

BATCH = 8
COMMON_BACKBONE = "resnet34"


@dataclass(frozen=True)
class Cost:
    """A row of the table.

    backbone, encoder: None of a 3-D network, which has an encoder of its own.
    encoder, parameters: numbers of weights of the encoder and of the whole network.
    gflops: 10^9 floating-point operations of inference on one window; a multiplication with its addition is two.
    windows_per_second: of inference in batches of 8 on this machine; None where it was not measured.
    """

    architecture: str
    backbone: str | None
    encoder: int | None
    parameters: int
    gflops: float
    windows_per_second: float | None


def networks(architecture: str | None, backbone: str | None) -> list[tuple[str, str | None]]:
    """The architectures and backbones of the table's rows.

    Args:
        architecture, backbone: rows of these alone; None with None is U-Net with each backbone, each other 2-D
            architecture with resnet34, and the 3-D ones, which have no backbone.

    Raises:
        InputError: a name that is not in the tables, or a backbone for a 3-D network.
    """
    known = {"architecture": (architecture, [*DECODERS, *NETWORKS_3D]), "backbone": (backbone, BACKBONES)}
    for what, (name, table) in known.items():
        if name is not None and name not in table:
            raise InputError(f"{name}: there is no such {what}; there are {', '.join(table)}")
    if architecture in NETWORKS_3D:
        if backbone:
            raise InputError(f"{architecture}: has an encoder of its own; leave --backbone out")
        return [(architecture, None)]
    if architecture or backbone:
        return [
            (decoder, encoder)
            for decoder in ([architecture] if architecture else DECODERS)
            for encoder in ([backbone] if backbone else BACKBONES)
        ]
    others = [(name, COMMON_BACKBONE) for name in DECODERS if name != "unet"]
    return [("unet", name) for name in BACKBONES] + others + [(name, None) for name in NETWORKS_3D]


def cost(architecture: str, backbone: str | None, size: int, slices: int, measured: bool) -> Cost:
    """Build a network, in all else as the embedded defaults have it, and count.

    Args:
        architecture, backbone: of the tables.
        size: height and width of a window in pixels, a multiple of 32; a 3-D network has the patch of `patch_of`.
        slices: in a window.
        measured: inference is timed too, some seconds.

    Returns:
        The row.
    """
    settings = {"model.architecture": architecture, "data.size": [size, size], "data.slices": slices}
    settings |= {"model.backbone": backbone} if backbone else {"data.patch": list(patch_of(size))}
    model = build_model(load_config(None, settings))
    speed = windows_per_second(model) if measured else None
    encoder = encoder_of(model).count_params() if backbone else None
    return Cost(architecture, backbone, encoder, model.count_params(), flops(model) / 1e9, speed)


def patch_of(size: int) -> tuple[int, int, int]:
    """Slices, height and width of the patch by which 3-D networks are measured beside windows of a size."""
    return 32, size // 2, size // 2


def flops(model: keras.Model) -> int:
    """Floating-point operations of inference on one window, as TensorFlow's profiler counts them.

    A multiplication and its addition are two operations: half of this number are the multiply-adds that most papers
    give.

    Args:
        model: with static sizes and one input.

    Returns:
        Their number.
    """
    spec = tf.TensorSpec([1, *model.input_shape[1:]], model.inputs[0].dtype)
    traced = tf.function(lambda window: model(window, training=False)).get_concrete_function(spec)
    graph = convert_variables_to_constants_v2(traced).graph
    profiler = tf.compat.v1.profiler
    options = profiler.ProfileOptionBuilder(profiler.ProfileOptionBuilder.float_operation())
    counted = profiler.profile(graph, cmd="scope", options=options.with_empty_output().build()).total_float_ops
    # The profiler does not know transposed convolutions: each input voxel meets the kernel's weights of its channel.
    transposed = [op.inputs for op in graph.get_operations() if op.type == "Conv3DBackpropInputV2"]
    return counted + sum(
        2 * kernel.shape.num_elements() * voxels.shape[:-1].num_elements() for _, kernel, voxels in transposed
    )


def windows_per_second(model: keras.Model, seconds: float = 2.0) -> float:
    """Measure inference in batches of 8 on this machine: the best of the batches done in about `seconds`."""
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
    """The table as text, for people."""
    speed = "" if rows[0].windows_per_second is None else "windows/s"
    text = [f"{'architecture':17}{'backbone':19}{'encoder':>9}{'in all':>9}{'GFLOPs':>9}{speed:>11}".rstrip()]
    for row in rows:
        speed = "" if row.windows_per_second is None else f"{row.windows_per_second:.1f}"
        encoder = f"{row.encoder / 1e6:8.2f}M" if row.backbone else ""
        sizes = f"{encoder:9}{row.parameters / 1e6:8.2f}M{row.gflops:9.2f}"
        text.append(f"{row.architecture:17}{row.backbone or '':19}{sizes}{speed:>11}".rstrip())
    of_volumes = "{} x {} x {} of 3-D networks".format(*patch_of(size))
    text.append(f"Windows of {slices} x {size} x {size}, {of_volumes}; a multiply-add is 2 floating-point operations.")
    return text


def print_table(
    chosen: Iterable[tuple[str, str | None]], size: int, slices: int, measured: bool, csv: str | None = None
) -> list[Cost]:
    """Count and measure networks, print the table, and write it where asked.

    Args:
        chosen: from `networks`.
        size, slices, measured: see `cost`.
        csv: a file with a column for each field of Cost; what was there is replaced, whole or not at all.

    Returns:
        The rows.
    """
    rows = [cost(architecture, backbone, size, slices, measured) for architecture, backbone in chosen]
    for line in lines(rows, size, slices):
        print(line)
    if csv:
        write_atomically(as_path(csv), pd.DataFrame(rows).to_csv(index=False).encode())
    return rows
