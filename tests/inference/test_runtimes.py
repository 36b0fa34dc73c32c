"""Network files that differ from those written by `gitseg export`."""

import pytest
import tensorflow as tf

from gitseg_tf.inference.runtimes import open_network

onnx = pytest.importorskip("onnx")
for _module in ("ai_edge_litert.interpreter", "onnxruntime"):
    pytest.importorskip(_module)


def onnx_file(path, kind, inputs, outputs=1):
    """Write a file whose outputs are each the sum of its inputs, [N, 8, 8, 2]."""
    given, found = ([f"{side}{k}" for k in range(n)] for side, n in (("in", inputs), ("out", outputs)))
    nodes = [onnx.helper.make_node("Sum", given, [name]) for name in found]
    tensors = (
        [onnx.helper.make_tensor_value_info(name, kind, [None, 8, 8, 2]) for name in side] for side in (given, found)
    )
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "sum", *tensors), opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    "kind, inputs, outputs, expected",
    [
        ("FLOAT16", 1, 1, "windows of tensor(float16) [8, 8, 2] to tensor(float16) [8, 8, 2]"),
        ("FLOAT", 2, 1, "windows of float32 [8, 8, 2], float32 [8, 8, 2] to float32 [8, 8, 2]"),
        ("FLOAT", 1, 2, "windows of float32 [8, 8, 2] to float32 [8, 8, 2], float32 [8, 8, 2]"),
    ],
)
def test_an_onnx_file_with_a_different_contract_is_refused(tmp_path, refusal, kind, inputs, outputs, expected):
    file = onnx_file(tmp_path / "model.onnx", getattr(onnx.TensorProto, kind), inputs, outputs)
    line = refusal(open_network, file, (8, 8, 2), 3)
    assert line.startswith(
        f"{file}: takes {expected}, but its config.yaml says windows of float32 [8, 8, 2] to float32 [8, 8, 3]"
    )


def test_a_tflite_file_with_a_different_contract_is_refused(tmp_path, refusal):
    @tf.function(input_signature=[tf.TensorSpec([1, 8, 8, 2])])
    def network(windows):
        return tf.nn.conv2d(windows, tf.ones([1, 1, 2, 3]), 1, "SAME")

    converter = tf.lite.TFLiteConverter.from_concrete_functions([network.get_concrete_function()])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([tf.ones([1, 8, 8, 2])] for _ in range(2))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.int8
    file = tmp_path / "model.tflite"
    file.write_bytes(converter.convert())
    line = refusal(open_network, file, (8, 8, 2), 3)
    assert line.startswith(f"{file}: takes windows of int8 [8, 8, 2] to float32 [8, 8, 3], but its config.yaml says")
