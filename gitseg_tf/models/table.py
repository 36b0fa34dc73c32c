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

BATCH = 8
COMMON_BACKBONE = "resnet34"


@dataclass(frozen=True)
class Cost:
    """A row of the table.

    encoder, parameters: numbers of weights of the encoder and of the whole network.
    gflops: 10^9 floating-point operations of inference on one window; a multiplication with its addition is two.
    windows_per_second: of inference in batches of 8 on this machine; None where it was not measured.
    """

    architecture: str
    backbone: str
    encoder: int
    parameters: int
    gflops: float
    windows_per_second: float | None


def networks(architecture: str | None, backbone: str | None) -> list[tuple[str, str]]:
    """The architectures and backbones of the table's rows.

    Args:
        architecture, backbone: rows of these alone; None with None is U-Net with each backbone, and each other
            architecture with resnet34.

    Raises:
        InputError: a name that is not in the tables.
    """
    for what, name, table in (("architecture", architecture, DECODERS), ("backbone", backbone, BACKBONES)):
        if name is not None and name not in table:
            raise InputError(f"{name}: is no 2-D {what}; there are {', '.join(table)}")
    if architecture or backbone:
        return [
            (decoder, encoder)
            for decoder in ([architecture] if architecture else DECODERS)
            for encoder in ([backbone] if backbone else BACKBONES)
        ]
    return [("unet", name) for name in BACKBONES] + [(name, COMMON_BACKBONE) for name in DECODERS if name != "unet"]


def cost(architecture: str, backbone: str, size: int, slices: int, measured: bool) -> Cost:
    """Build a network and count.

    Args:
        architecture, backbone: of the tables.
        size: height and width of a window in pixels, a multiple of 32.
        slices: in a window.
        measured: inference is timed too, some seconds.

    Returns:
        The row.
    """
    config = load_config(
        None,
        {
            "model.architecture": architecture,
            "model.backbone": backbone,
            "data.size": [size, size],
            "data.slices": slices,
        },
    )
    model = build_model(config)
    speed = windows_per_second(model) if measured else None
    return Cost(
        architecture, backbone, encoder_of(model).count_params(), model.count_params(), flops(model) / 1e9, speed
    )


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
    return profiler.profile(graph, cmd="scope", options=options.with_empty_output().build()).total_float_ops


def windows_per_second(model: keras.Model, seconds: float = 2.0) -> float:
    """Measure inference in batches of 8 on this machine: the best of the batches done in about `seconds`."""
    predict = tf.function(lambda windows: model(windows, training=False))
    windows = tf.constant(np.random.default_rng(0).random((BATCH, *model.input_shape[1:]), np.float32))
    predict(windows)
    best, end = np.inf, time.perf_counter() + seconds
    while best == np.inf or time.perf_counter() < end:
        start = time.perf_counter()
        tf.nest.map_structure(lambda output: output.numpy(), predict(windows))
        best = min(best, time.perf_counter() - start)
    return BATCH / best


def lines(rows: list[Cost], size: int, slices: int) -> list[str]:
    """The table as text, for people."""
    speed = "" if rows[0].windows_per_second is None else "windows/s"
    text = [f"{'architecture':15}{'backbone':19}{'encoder':>9}{'in all':>9}{'GFLOPs':>9}{speed:>11}".rstrip()]
    for row in rows:
        speed = "" if row.windows_per_second is None else f"{row.windows_per_second:.1f}"
        sizes = f"{row.encoder / 1e6:8.2f}M{row.parameters / 1e6:8.2f}M{row.gflops:9.2f}"
        text.append(f"{row.architecture:15}{row.backbone:19}{sizes}{speed:>11}".rstrip())
    text.append(f"Windows of {slices} x {size} x {size}; a multiply-add is 2 floating-point operations.")
    return text


def print_table(
    chosen: Iterable[tuple[str, str]], size: int, slices: int, measured: bool, csv: str | None = None
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
