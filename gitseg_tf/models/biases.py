"""Biases in the place of what is left of batch normalisation when its factors are in the kernels."""

from collections import Counter

import numpy as np
import tensorflow as tf


def biases_for_normalizations(graph: tf.compat.v1.GraphDef) -> None:
    """Put an addition in the place of each batch normalisation whose factors are all one, as `fold_normalization`
    leaves them. TensorFlow then joins it, and the activation behind it, with the convolution before it.

    Args:
        graph: in inference; it is changed. A normalisation whose values are no constants stays as it is.
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
        if convolved in nodes and nodes[convolved].op == "Conv2D" and readers[summed.name] == readers[convolved] == 1:
            # To the convolution that is added to others, which then takes bias, sum and activation.
            biased = graph.node.add()
            biased.CopyFrom(_addition(f"{node.name}/biased", convolved, added.name, node))
            summed.input[1] = biased.name
            summed.name = node.name
            graph.node.remove(node)
        else:
            node.CopyFrom(_addition(node.name, node.input[0], added.name, node))


def _bias(nodes: dict, node) -> np.ndarray | None:
    """What a node adds to each channel, where it is a normalisation that does nothing else."""
    if node.op != "FusedBatchNormV3" or node.attr["is_training"].b:
        return None
    constants = [_constant(nodes, name) for name in node.input[1:]]
    if any(constant is None for constant in constants):
        return None
    scale, offset, mean, variance = map(np.float64, constants)
    factor = scale / np.sqrt(variance + node.attr["epsilon"].f)
    return offset - mean * factor if np.allclose(factor, 1, rtol=0, atol=1e-6) else None


def _addition(name: str, to: str, bias: str, normalization) -> tf.compat.v1.NodeDef:
    """A node that adds a bias, on the device and in the layout of the normalisation that it stands for."""
    node = tf.compat.v1.NodeDef(name=name, op="BiasAdd", input=[to, bias], device=normalization.device)
    node.attr["T"].type = normalization.attr["T"].type
    node.attr["data_format"].s = normalization.attr["data_format"].s
    return node


def _constant(nodes: dict, name: str) -> np.ndarray | None:
    """The value of a node of this name, where it is a constant or passes one on."""
    node = nodes.get(name.removesuffix(":0"))
    while node is not None and node.op == "Identity":
        node = nodes.get(node.input[0].removesuffix(":0"))
    return tf.make_ndarray(node.attr["value"].tensor) if node is not None and node.op == "Const" else None
