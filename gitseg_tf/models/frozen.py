"""Networks for inference alone."""

from collections.abc import Callable

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import (
    _FunctionConverterDataInEager,
    _replace_variables_by_constants,
)

# Values of a variable that are passed to the graph. As constants they would be copied some ten times while the graph is
# made and rewritten, a gigabyte for 24 million weights; what TensorFlow folds, normalisation, is small.
_LARGE = 4096


def freeze(network: Callable, spec: tf.TensorSpec) -> Callable:
    """Make constants of a network's variables, as they are now.

    TensorFlow then folds batch normalisation and ReLU into the convolutions.

    Args:
        network: function of a tensor to a tensor, as in inference.
        spec: of its argument.

    Returns:
        The same function, in float32 but for rounding.
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
    kept = tf.compat.v1.GraphDef(versions=graph.versions, library=graph.library)
    kept.node.extend(node for node in graph.node if node.name not in replaced)
    for node in kept.node:
        # What was to be read before something else is an argument now.
        node.input[:] = [name for name in node.input if not (name[0] == "^" and name[1:] in replaced)]
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
