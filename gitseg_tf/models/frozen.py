"""Networks for inference alone."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tensorflow.python.framework.convert_to_constants import (
    _FunctionConverterDataInEager,
    _replace_variables_by_constants,
)

from gitseg_tf.models.folded import fold_normalization

# Values of a variable that are passed to the graph. As constants they would be copied some ten times while the graph is
# made and rewritten, a gigabyte for 24 million weights; what TensorFlow folds, normalisation, is small.
_LARGE = 4096


def inference_network(model: keras.Model) -> Callable:
    """A network as a frozen function, batch normalisation folded into its convolutions.

    Args:
        model: to logits, with the weights that inference is to use; it is not to be trained on.

    Returns:
        Function of float32 windows, as of the model, to float32 probabilities.
    """
    fold_normalization(model)
    return freeze(lambda windows: tf.sigmoid(model(windows, training=False)), tf.TensorSpec(model.input_shape))


def freeze(network: Callable, spec: tf.TensorSpec) -> Callable:
    """Make constants of a network's variables, as they are now; those that are cast to bfloat16 become bfloat16.

    Batch normalisation that does nothing but add becomes an addition, and TensorFlow then joins it and the activation
    with the convolution.

    Args:
        network: function of a tensor to a tensor, as in inference.
        spec: of its argument.

    Returns:
        The same function but for rounding.
    """
    traced = tf.function(network, input_signature=[spec]).get_concrete_function()
    large = _large_variables(traced)
    converter = _FunctionConverterDataInEager(
        func=traced, lower_control_flow=True, aggressive_inlining=False, variable_names_denylist=set(large)
    )
    graph, _ = _replace_variables_by_constants(converter_data=converter)
    given = traced.inputs[0].name
    handles = _with_identities(large, graph)
    values = {
        f"{node.name}:0": tf.identity(handles[node.input[0]])
        for node in graph.node
        if node.op == "ReadVariableOp" and node.input[0] in handles
    }
    replaced = {given.split(":")[0], *handles, *(name.split(":")[0] for name in values)}
    casts = _casts_to_bfloat16(graph, values)
    values |= {node: tf.cast(values.pop(name), tf.bfloat16) for node, name in casts}
    replaced |= {name.split(":")[0] for name in values}
    kept = tf.compat.v1.GraphDef(versions=graph.versions, library=graph.library)
    kept.node.extend(node for node in graph.node if node.name not in replaced)
    for node in kept.node:
        # What was to be read before something else is an argument now.
        node.input[:] = [name for name in node.input if not (name[0] == "^" and name[1:] in replaced)]
    _additions_for_normalizations(kept)
    result = traced.outputs[0].name

    @tf.function(input_signature=[spec], autograph=False)
    def constant(x):
        captured = {name: x.graph.capture(value) for name, value in values.items()}
        return tf.graph_util.import_graph_def(kept, {given: x} | captured, [result], name="")[0]

    frozen = constant.get_concrete_function()
    return lambda x: frozen(tf.convert_to_tensor(x))


def _large_variables(traced) -> dict[str, tf.Variable]:
    """The variables of many values, by the names that their handles have in the graph."""
    by_handle = {id(variable.handle): variable for variable in traced.graph.variables}
    captured = ((name.name.split(":")[0], by_handle.get(id(handle))) for handle, name in traced.graph.captures)
    return {
        name: variable
        for name, variable in captured
        if variable is not None and variable.shape.num_elements() >= _LARGE
    }


def _with_identities(variables: dict[str, tf.Variable], graph) -> dict[str, tf.Variable]:
    """Also by the names of the nodes that pass a handle on, as in a SavedModel's signature."""
    found, before = dict(variables), 0
    while len(found) > before:
        before = len(found)
        passing = (node for node in graph.node if node.op == "Identity" and node.input[0] in found)
        found |= {node.name: found[node.input[0]] for node in passing}
    return found


def _casts_to_bfloat16(graph, values: dict[str, tf.Tensor]) -> list[tuple[str, str]]:
    """Outputs of casts of these values, which nothing else reads, and the values' names."""
    readers = {name: [] for name in values}
    for node in graph.node:
        for name in node.input:
            if f"{name}:0" in readers:
                readers[f"{name}:0"].append(node)
    return [
        (f"{nodes[0].name}:0", name)
        for name, nodes in readers.items()
        if [node.op for node in nodes] == ["Cast"] and nodes[0].attr["DstT"].type == tf.bfloat16.as_datatype_enum
    ]


def _additions_for_normalizations(graph) -> None:
    """Put an addition in the place of each batch normalisation whose factors are all one."""
    nodes = {node.name: node for node in graph.node}
    for node in list(graph.node):
        if node.op != "FusedBatchNormV3" or node.attr["is_training"].b:
            continue
        constants = [_constant(nodes, name) for name in node.input[1:]]
        if any(constant is None for constant in constants):
            continue
        scale, offset, mean, variance = map(np.float64, constants)
        factor = scale / np.sqrt(variance + node.attr["epsilon"].f)
        if not np.allclose(factor, 1, rtol=0, atol=1e-6):
            continue
        kind = node.attr["T"].type
        bias = tf.make_tensor_proto(offset - mean * factor, dtype=kind)
        added = graph.node.add(name=f"{node.name}/bias", op="Const")
        added.attr["dtype"].type = kind
        added.attr["value"].tensor.CopyFrom(bias)
        layout, device = node.attr["data_format"].s, node.device
        replaced = tf.compat.v1.NodeDef(name=node.name, op="BiasAdd", input=[node.input[0], added.name], device=device)
        replaced.attr["T"].type, replaced.attr["data_format"].s = kind, layout
        node.CopyFrom(replaced)


def _constant(nodes: dict, name: str) -> np.ndarray | None:
    """The value of a node of this name, where it is a constant or passes one on."""
    node = nodes.get(name.removesuffix(":0"))
    while node is not None and node.op == "Identity":
        node = nodes.get(node.input[0].removesuffix(":0"))
    return tf.make_ndarray(node.attr["value"].tensor) if node is not None and node.op == "Const" else None
