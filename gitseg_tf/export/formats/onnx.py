"""Convert a network to an ONNX file."""

import logging
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.errors import RunError, first_line
from gitseg_tf.export.formats.inference import inference
from gitseg_tf.export.formats.registry import Format
from gitseg_tf.inference.exported import ONNX_FILE
from gitseg_tf.inference.runtimes import import_extra

# tf2onnx is tested with opsets 14 to 18; onnxruntime supports this one since version 1.12.
OPSET = 17


def _onnx(model: keras.Model, windows: np.ndarray | None) -> bytes:
    tf2onnx, onnx = import_extra("tf2onnx"), import_extra("onnx")
    # tf2onnx logs each operator that it cannot convert and leaves it in the graph, where the checker finds it.
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    spec = tf.TensorSpec(model.input_shape, tf.float32, name="windows")
    network = tf.function(inference(model), input_signature=[spec], autograph=False)
    handlers: dict[str, tuple[Callable, list]] = {
        "Erfc": (_erfc, []),
        "Conv2DBackpropInput": (_transposed_convolution, []),
    }
    proto, _ = tf2onnx.convert.from_function(network, [spec], opset=OPSET, custom_op_handlers=handlers)
    for tensor in (*proto.graph.input, *proto.graph.output):
        # tf2onnx names the batch axis differently in each tensor.
        tensor.type.tensor_type.shape.dim[0].dim_param = "N"
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise RunError(f"onnx: cannot represent {model.name} ({first_line(error)}); choose another format") from None
    return proto.SerializeToString()


def _erfc(context, node, name: str, args: list) -> None:
    """Convert Erfc, used by Keras's GELU, to 1 - Erf, because tf2onnx only supports Erf."""
    (source,), (target,) = node.input, node.output
    shape, dtype = context.get_shape(target), context.get_dtype(target)
    context.remove_node(node.name)
    one = context.make_const(f"{name}/one", np.float32(1)).output[0]
    erf = context.make_node("Erf", [source], shapes=[shape], dtypes=[dtype]).output[0]
    context.make_node("Sub", [one, erf], name=name, outputs=[target], shapes=[shape], dtypes=[dtype])


def _transposed_convolution(context, node, name: str, args: list) -> None:
    """Convert with a constant output shape, because tf2onnx implements a computed one by cropping and padding."""
    shape = np.array(context.get_shape(node.output[0]), np.int64)
    context.replace_input(node, node.input[0], context.make_const(f"{name}/shape", shape).output[0], 0)
    import_extra("tf2onnx.onnx_opset.nn").ConvTranspose.version_11(context, node)


ONNX = Format(
    file=ONNX_FILE,
    convert=_onnx,
    details={"opset": OPSET, "batch": None, "weights": "float32", "activations": "float32"},
    modules=("tf2onnx", "onnx", "onnxruntime"),
    packages=("tf2onnx", "onnx", "onnxruntime"),
    max_difference=1e-3,
)
