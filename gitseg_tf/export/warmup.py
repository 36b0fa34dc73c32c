"""Warm-up requests, which TensorFlow Serving replays when it loads a model, so that the first request is not slow."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from gitseg_tf.config import Config
from gitseg_tf.data.readers.base import SLICE_MM
from gitseg_tf.inference.networks import channel_count, window_shape

# TensorFlow Serving expects this file name.
FILE = "assets.extra/tf_serving_warmup_requests"
_GRAY, _PIXEL_MM = 100, 1.5


def write_warmup(folder: Path, config: Config) -> list[str]:
    """Write a request for each signature for scans and windows, each with a full batch of the network.

    Args:
        folder: the SavedModel.
        config: the run's config.

    Returns:
        Lines for the user: a note if tensorflow-serving-api is not installed, otherwise none.
    """
    try:
        from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
    except ModuleNotFoundError:
        return ["no warm-up requests: tensorflow-serving-api is missing; pip install 'gitseg-tf[serving]'"]
    with tf.io.TFRecordWriter(str(folder / FILE)) as writer:
        for signature, inputs in warmup_inputs(config):
            log = PredictionLog()
            request = log.predict_log.request
            request.model_spec.name, request.model_spec.signature_name = config.name, signature
            for name, value in inputs.items():
                request.inputs[name].CopyFrom(value)
            writer.write(log.SerializeToString())
    return []


def warmup_inputs(config: Config) -> Iterator[tuple[str, dict]]:
    """Yield the names of signatures and their inputs as TensorProtos; scans are uniformly gray."""
    data, count, channels = config.data, config.evaluation.batch_size, channel_count(config)
    depth = count if data.patch is None else data.patch[0]
    spacing = tf.make_tensor_proto(np.array([SLICE_MM, _PIXEL_MM, _PIXEL_MM], np.float32))
    png = tf.io.encode_png(tf.fill([*data.input_size, 1], tf.constant(_GRAY, tf.uint16))).numpy()
    pngs = [png] * depth if channels == 1 else [[png] * channels] * depth
    yield "serving_default", {"windows": _filled((count, *window_shape(config)), tf.float32, 0.5)}
    scans = {
        "segment_volume": {
            "image": _filled((depth, *data.input_size, channels), tf.float32, _GRAY),
            "spacing": spacing,
        },
        "segment_png": {"png_bytes": tf.make_tensor_proto(pngs), "spacing": spacing},
    }
    numbers = tf.make_tensor_proto(np.arange(depth))
    for signature, inputs in scans.items():
        yield signature, inputs
        yield f"{signature}_to_png", inputs | {"numbers": numbers}


def _filled(shape: tuple[int, ...], dtype: tf.DType, value: float):
    # A single value with a shape keeps the file small.
    return tf.make_tensor_proto(value, dtype, shape)
