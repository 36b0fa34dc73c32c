"""Replace batch normalization whose factors were folded into the kernels by biases."""

from collections import Counter

import numpy as np
import tensorflow as tf


def biases_for_normalizations(graph: tf.compat.v1.GraphDef) -> None:
    """Replace each batch normalization whose factors are all 1, as left by `fold_normalization`, by a BiasAdd.

    TensorFlow can then fuse the bias and the activation after it with the convolution before it.

    Args:
        graph: an inference graph; it is modified in place. A normalization whose values are not constants is kept.
    """
    nodes = {node.name: node for node in graph.node}
    readers = Counter(name.split(":")[0].lstrip("^") for node in graph.node for name in node.input)
    for node in list(graph.node):
        bias = _bias(nodes, node)
        if bias is None:
            continue
        added = graph.node.add(name=f"{node.name}/bias", op="Const")
        added.attr["dtype"].type = node.attr["T"].type
        added.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(bias, dtype=node.attr["T"].type))
        summed = nodes.get(node.input[0])
        convolved = summed.input[1] if summed is not None and summed.op == "AddV2" else None
        if (
            summed is not None
            and convolved is not None
            and convolved in nodes
            and nodes[convolved].op == "Conv2D"
            and readers[summed.name] == readers[convolved] == 1
        ):
            # Add the bias to the convolution inside the sum, so that TensorFlow fuses bias, sum and activation.
            biased = graph.node.add()
            biased.CopyFrom(_addition(f"{node.name}/biased", convolved, added.name, node))
            summed.input[1] = biased.name
            summed.name = node.name
            graph.node.remove(node)
        else:
            node.CopyFrom(_addition(node.name, node.input[0], added.name, node))


def _bias(nodes: dict, node) -> np.ndarray | None:
    """Return the bias that a normalization adds to each channel; None if the node does anything else."""
    if node.op != "FusedBatchNormV3" or node.attr["is_training"].b:
        return None
    constants = [_constant(nodes, name) for name in node.input[1:]]
    if any(constant is None for constant in constants):
        return None
    scale, offset, mean, variance = map(np.float64, constants)
    factor = scale / np.sqrt(variance + node.attr["epsilon"].f)
    return offset - mean * factor if np.allclose(factor, 1, rtol=0, atol=1e-6) else None


def _addition(name: str, to: str, bias: str, normalization) -> tf.compat.v1.NodeDef:
    """Create a BiasAdd node with the device and the layout of the normalization that it replaces."""
    node = tf.compat.v1.NodeDef(name=name, op="BiasAdd", input=[to, bias], device=normalization.device)
    node.attr["T"].type = normalization.attr["T"].type
    node.attr["data_format"].s = normalization.attr["data_format"].s
    return node


def _constant(nodes: dict, name: str) -> np.ndarray | None:
    """Return the value of a node if it is a constant or the identity of one, otherwise None."""
    node = nodes.get(name.removesuffix(":0"))
    while node is not None and node.op == "Identity":
        node = nodes.get(node.input[0].removesuffix(":0"))
    return tf.make_ndarray(node.attr["value"].tensor) if node is not None and node.op == "Const" else None
