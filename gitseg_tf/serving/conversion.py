"""A network as a file of ONNX or TFLite. The converters are imported when they are asked for."""

import importlib
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.python.convert_phase import ConverterError

from gitseg_tf.errors import InputError, first_line
from gitseg_tf.inference.exported import ONNX_FILE, TFLITE_FILE
from gitseg_tf.inference.runtimes import import_extra

# tf2onnx is tested with 14 to 18, onnxruntime reads this one since 1.12.
OPSET = 17


@dataclass(frozen=True)
class Format:
    """A format of files that hold a network.

    Attributes:
        file: its name.
        convert: function of the model and of windows of the training folds, float32 [N, ...], to the file's bytes.
        details: of the format, for model.json.
        modules: of the extra [export], which it is written and checked with.
        packages: by the names of their modules, whose versions are kept.
        quantised: needs the windows.
        most: largest difference from the probabilities in float32 that is taken; None takes any.
    """

    file: str
    convert: Callable[[keras.Model, np.ndarray | None], bytes]
    details: dict[str, Any]
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    quantised: bool
    most: float | None


def inference(model: keras.Model) -> Callable:
    """Function from windows to probabilities, with the names of the SavedModel's `serving_default`."""
    return lambda windows: {"probabilities": tf.sigmoid(model(windows, training=False))}


def _onnx(model: keras.Model, windows: np.ndarray | None) -> bytes:
    tf2onnx, onnx = import_extra("tf2onnx"), import_extra("onnx")
    # What it cannot convert it logs, line after line, and leaves in the graph; the checker finds that.
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    spec = tf.TensorSpec(model.input_shape, tf.float32, name="windows")
    network = tf.function(inference(model), input_signature=[spec], autograph=False)
    handlers = {"Erfc": (_erfc, []), "Conv2DBackpropInput": (_transposed_convolution, [])}
    proto, _ = tf2onnx.convert.from_function(network, [spec], opset=OPSET, custom_op_handlers=handlers)
    for tensor in (*proto.graph.input, *proto.graph.output):
        # tf2onnx numbers it, and calls it by another number in each.
        tensor.type.tensor_type.shape.dim[0].dim_param = "N"
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise InputError(f"onnx: cannot hold {model.name} ({first_line(error)})") from None
    return proto.SerializeToString()


def _erfc(context, node, name: str, args: list) -> None:
    """1 - erf, of which Keras's GELU is made: tf2onnx knows Erf alone."""
    (given,), (found,) = node.input, node.output
    shape, dtype = context.get_shape(found), context.get_dtype(found)
    context.remove_node(node.name)
    one = context.make_const(f"{name}/one", np.float32(1)).output[0]
    erf = context.make_node("Erf", [given], shapes=[shape], dtypes=[dtype]).output[0]
    context.make_node("Sub", [one, erf], name=name, outputs=[found], shapes=[shape], dtypes=[dtype])


def _transposed_convolution(context, node, name: str, args: list) -> None:
    """With a constant for the output's shape: one found in the graph tf2onnx brings about by cutting and padding."""
    shape = np.array(context.get_shape(node.output[0]), np.int64)
    context.replace_input(node, node.input[0], context.make_const(f"{name}/shape", shape).output[0], 0)
    import_extra("tf2onnx.onnx_opset.nn").ConvTranspose.version_11(context, node)


def _tflite_float16(model: keras.Model, windows: np.ndarray | None) -> bytes:
    with _converter(model) as converter:
        converter.target_spec.supported_types = [tf.float16]
        return _converted(converter, model, "tflite-float16")


def _tflite_int8(model: keras.Model, windows: np.ndarray) -> bytes:
    with _converter(model) as converter:
        # What goes in and comes out stays float32, and so does what has no kernel of integers (`float32_operators`);
        # the converter does not refuse that, not even where it is asked for integers alone (TFLITE_BUILTINS_INT8).
        converter.representative_dataset = lambda: ([window[None]] for window in windows)
        return _converted(converter, model, "tflite-int8")


@contextmanager
def _converter(model: keras.Model) -> Iterator[tf.lite.TFLiteConverter]:
    # One window: with any number of them shapes are computed while it runs, which delegates refuse.
    spec = tf.TensorSpec([1, *model.input_shape[1:]], tf.float32, name="windows")
    module = tf.Module()
    module.kept = model.variables
    signatures = tf.function(inference(model), input_signature=[spec], autograph=False)
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=signatures, options=options)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        yield converter


def _converted(converter: tf.lite.TFLiteConverter, model: keras.Model, name: str) -> bytes:
    try:
        return converter.convert()
    except (ConverterError, RuntimeError, ValueError) as error:
        lacking = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
        reason = f"TFLite has no {', '.join(lacking)}" if lacking else first_line(error)
        raise InputError(f"{name}: cannot hold {model.name} ({reason}); take another format, such as onnx") from None


def float32_operators(content: bytes) -> dict[str, int]:
    """What a TFLite file computes in float32, quantising and dequantising apart.

    Args:
        content: of the file.

    Returns:
        How many there are of each operator, by its name in the format's schema; empty where all is in integers.
    """
    model, found = schema.Model.GetRootAs(content), Counter()
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for operator in map(graph.Operators, range(graph.OperatorsLength())):
            code = model.OperatorCodes(operator.OpcodeIndex())
            # The older field has one byte, and ends at 127.
            name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            tensors = [*operator.InputsAsNumpy(), *operator.OutputsAsNumpy()]
            types = {graph.Tensors(tensor).Type() for tensor in tensors if tensor >= 0}  # -1: left out
            if schema.TensorType.FLOAT32 in types and name not in ("QUANTIZE", "DEQUANTIZE"):
                found[name] += 1
    return dict(found)


_TFLITE = (("ai_edge_litert.interpreter",), ("tensorflow", "ai_edge_litert"))
FORMATS = {
    "onnx": Format(
        ONNX_FILE,
        _onnx,
        {"opset": OPSET, "batch": None, "weights": "float32", "activations": "float32"},
        ("tf2onnx", "onnx", "onnxruntime"),
        ("tf2onnx", "onnx", "onnxruntime"),
        False,
        1e-3,
    ),
    "tflite-float16": Format(
        TFLITE_FILE,
        _tflite_float16,
        {"batch": 1, "weights": "float16", "activations": "float32"},
        *_TFLITE,
        False,
        2e-2,
    ),
    "tflite-int8": Format(
        TFLITE_FILE, _tflite_int8, {"batch": 1, "weights": "int8", "activations": "int8"}, *_TFLITE, True, None
    ),
}


def versions(form: Format) -> dict[str, str | None]:
    """The versions of what a format is written and checked with, None of a package that does not say."""
    # By the modules: the module onnxruntime is of the distribution onnxruntime-gpu, too.
    return {name: getattr(importlib.import_module(name), "__version__", None) for name in form.packages}
