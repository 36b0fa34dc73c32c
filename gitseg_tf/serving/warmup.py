"""Requests that TensorFlow Serving replays when it loads a model, so that the first user does not wait."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from gitseg_tf.config import Config
from gitseg_tf.data.scans import SLICE_MM
from gitseg_tf.inference.predictor import window_shape

# The name and the place are TensorFlow Serving's.
FILE = "assets.extra/tf_serving_warmup_requests"
_GREY, _PIXEL_MM = 100, 1.5


def write_warmup(folder: Path, config: Config) -> list[str]:
    """Write a request a signature, each with as many windows as the network sees at once.

    Args:
        folder: the SavedModel.
        config: of the run.

    Returns:
        Lines for the user: why there are none, where tensorflow-serving-api is not installed.
    """
    try:
        from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
    except ModuleNotFoundError:
        return ["no warm-up requests, for tensorflow-serving-api is missing; pip install 'gitseg-tf[serving]'"]
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
    """Names of signatures, and their inputs as TensorProtos. Scans are grey, which takes as long as any other."""
    data, count = config.data, config.evaluation.batch_size
    depth = count if data.patch is None else data.patch[0]
    spacing = tf.make_tensor_proto(np.array([SLICE_MM, _PIXEL_MM, _PIXEL_MM], np.float32))
    png = tf.io.encode_png(tf.fill([*data.size, 1], tf.constant(_GREY, tf.uint16))).numpy()
    yield "serving_default", {"windows": _filled((count, *window_shape(config)), tf.float32)}
    scans = {
        "segment_volume": {"image": _filled((depth, *data.size), tf.uint16), "spacing": spacing},
        "segment_png": {"png_bytes": tf.make_tensor_proto([png] * depth), "spacing": spacing},
    }
    numbers = tf.make_tensor_proto(np.arange(depth))
    for signature, inputs in scans.items():
        yield signature, inputs
        yield f"{signature}_to_png", inputs | {"numbers": numbers}


def _filled(shape: tuple[int, ...], dtype: tf.DType):
    # With a shape, one value stands for all: the file stays small.
    return tf.make_tensor_proto(_GREY if dtype.is_integer else 0.5, dtype, shape)
