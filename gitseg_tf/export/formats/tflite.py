"""Convert a network to a TFLite file, with 16-bit weights or quantized to 8 bits."""

import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.python.convert_phase import ConverterError

from gitseg_tf.errors import RunError, first_line
from gitseg_tf.export.formats.inference import inference
from gitseg_tf.export.formats.registry import Format
from gitseg_tf.inference.exported import TFLITE_FILE


def _tflite_float16(model: keras.Model, windows: np.ndarray | None) -> bytes:
    with _converter(model) as converter:
        converter.target_spec.supported_types = [tf.float16]
        return _convert(converter, model, "tflite-float16")


def _tflite_int8(model: keras.Model, windows: np.ndarray) -> bytes:
    with _converter(model) as converter:
        # Inputs, outputs and operators without an integer kernel (`float32_operators`) stay float32. The converter does
        # not reject these operators even if only integers are requested (TFLITE_BUILTINS_INT8).
        converter.representative_dataset = lambda: ([window[None]] for window in windows)
        return _convert(converter, model, "tflite-int8")


@contextmanager
def _converter(model: keras.Model) -> Iterator[tf.lite.TFLiteConverter]:
    # Use a batch of one window: with a dynamic batch, shapes are computed at run time, which delegates do not support.
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


def _convert(converter: tf.lite.TFLiteConverter, model: keras.Model, name: str) -> bytes:
    try:
        return converter.convert()
    except (ConverterError, RuntimeError, ValueError) as error:
        lacking = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
        reason = f"TFLite does not support {', '.join(lacking)}" if lacking else first_line(error)
        raise RunError(
            f"{name}: cannot represent {model.name} ({reason}); choose another format, such as onnx"
        ) from None


def float32_operators(content: bytes) -> dict[str, int]:
    """Count the operators that a TFLite file computes in float32, except for quantization and dequantization.

    Args:
        content: content of the file.

    Returns:
        The count of each operator by its name in the format's schema; empty if everything is computed in integers.
    """
    model = schema.Model.GetRootAs(content)
    counts: Counter[str] = Counter()
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for operator in map(graph.Operators, range(graph.OperatorsLength())):
            code = model.OperatorCodes(operator.OpcodeIndex())
            # The older field is a byte with a maximum of 127.
            name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            tensors = [*operator.InputsAsNumpy(), *operator.OutputsAsNumpy()]
            types = {graph.Tensors(tensor).Type() for tensor in tensors if tensor >= 0}  # -1 is an omitted tensor
            if schema.TensorType.FLOAT32 in types and name not in ("QUANTIZE", "DEQUANTIZE"):
                counts[name] += 1
    return dict(counts)


_NEEDS: dict[str, Any] = {"modules": ("ai_edge_litert.interpreter",), "packages": ("tensorflow", "ai_edge_litert")}
FLOAT16 = Format(
    file=TFLITE_FILE,
    convert=_tflite_float16,
    details={"batch": 1, "weights": "float16", "activations": "float32"},
    max_difference=2e-2,
    **_NEEDS,
)
INT8 = Format(
    file=TFLITE_FILE,
    convert=_tflite_int8,
    details={"batch": 1, "weights": "int8", "activations": "int8"},
    max_difference=None,
    float32_operators=float32_operators,
    **_NEEDS,
)
