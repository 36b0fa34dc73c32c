"""Freeze networks for inference: variables become constants."""

from collections.abc import Callable

import tensorflow as tf
import tf_keras as keras
from tensorflow.python.framework.convert_to_constants import (
    _FunctionConverterDataInEager,
    _replace_variables_by_constants,
)

from gitseg_tf.models.build import with_presence
from gitseg_tf.models.freezing.bias_add import biases_for_normalizations
from gitseg_tf.models.freezing.fold_batchnorm import fold_normalization

# Larger variables are passed to the graph as arguments. As constants they would be copied about ten times while the
# graph is built and rewritten, a gigabyte for 24 million weights; the constants that TensorFlow folds are small.
_LARGE = 4096
# Operations on weights alone, which are evaluated once when the network is frozen.
_OF_WEIGHTS = {"Cast", "ConcatV2", "Identity", "MatMul", "Mul", "Reshape", "Split", "SplitV"}
_OF_WEIGHTS |= {"StridedSlice", "Transpose"}


def inference_network(model: keras.Model) -> Callable:
    """Freeze a network, with batch normalization folded into its convolutions.

    Args:
        model: network that returns logits, and optionally those of a presence head, with the weights for inference; it
            must not be trained afterward.

    Returns:
        Function from float32 windows, as for the model, to float32 probabilities, see `with_presence`.
    """
    fold_normalization(model)
    spec = tf.TensorSpec(model.input_shape)
    return freeze(lambda windows: tf.sigmoid(with_presence(model(windows, training=False))), spec)


def freeze(network: Callable, spec: tf.TensorSpec) -> Callable:
    """Replace a network's variables, and everything computed from them alone, by constants of their current values.

    Kernels that the network casts to bfloat16 or rearranges are stored in that form. Batch normalization that only adds
    a constant becomes a bias, see `biases_for_normalizations`.

    Args:
        network: function from a tensor to a tensor, in inference mode.
        spec: shape and dtype of its argument.

    Returns:
        The same function except for rounding.
    """
    traced = tf.function(network, input_signature=[spec]).get_concrete_function()
    large = _large_variables(traced)
    converter = _FunctionConverterDataInEager(
        func=traced, lower_control_flow=True, aggressive_inlining=False, variable_names_denylist=set(large)
    )
    graph, _ = _replace_variables_by_constants(converter_data=converter)
    input_name = traced.inputs[0].name
    handles = _with_identities(large, graph)
    values = {
        f"{node.name}:0": tf.identity(handles[node.input[0]])
        for node in graph.node
        if node.op == "ReadVariableOp" and node.input[0] in handles
    }
    replaced = {input_name.split(":")[0], *handles, *(name.split(":")[0] for name in values)}
    derived = _derived_from(graph, values)
    values = _evaluate(graph, derived, values)
    replaced |= derived
    kept = tf.compat.v1.GraphDef(versions=graph.versions, library=graph.library)
    kept.node.extend(node for node in graph.node if node.name not in replaced)
    for node in kept.node:
        # Drop control dependencies on nodes that became arguments.
        node.input[:] = [name for name in node.input if not (name[0] == "^" and name[1:] in replaced)]
    biases_for_normalizations(kept)
    result = traced.outputs[0].name

    @tf.function(input_signature=[spec], autograph=False)
    def constant(x):
        captured = {name: x.graph.capture(value) for name, value in values.items()}
        return tf.graph_util.import_graph_def(kept, {input_name: x} | captured, [result], name="")[0]

    frozen = constant.get_concrete_function()
    return lambda x: frozen(tf.convert_to_tensor(x))


def _large_variables(traced) -> dict[str, tf.Variable]:
    """Map the names of handles in the graph to their variables, for large variables."""
    by_handle = {id(variable.handle): variable for variable in traced.graph.variables}
    captured = ((name.name.split(":")[0], by_handle.get(id(handle))) for handle, name in traced.graph.captures)
    return {
        name: variable
        for name, variable in captured
        if variable is not None and variable.shape.num_elements() >= _LARGE
    }


def _with_identities(variables: dict[str, tf.Variable], graph) -> dict[str, tf.Variable]:
    """Add the names of Identity nodes that forward a handle, as in a SavedModel's signature."""
    by_name, before = dict(variables), 0
    while len(by_name) > before:
        before = len(by_name)
        forwarding = (node for node in graph.node if node.op == "Identity" and node.input[0] in by_name)
        by_name |= {node.name: by_name[node.input[0]] for node in forwarding}
    return by_name


def _derived_from(graph, values: dict[str, tf.Tensor]) -> set[str]:
    """Find the nodes that depend only on these values and on constants."""
    constants = {node.name for node in graph.node if node.op == "Const"}
    sources = {name.split(":")[0] for name in values}
    derived: set[str] = set()
    before = -1
    while len(derived) > before:
        before = len(derived)
        for node in graph.node:
            inputs = {name.split(":")[0] for name in node.input}
            if node.op in _OF_WEIGHTS and inputs & (sources | derived) and inputs <= sources | derived | constants:
                derived.add(node.name)
    return derived


def _evaluate(graph, derived: set[str], values: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Evaluate the derived nodes; return those and the values that the remaining nodes read, by name."""
    read = _inputs(node for node in graph.node if node.name not in derived)
    wanted = sorted(name for name in read if name.split(":")[0] in derived)
    part = tf.compat.v1.GraphDef(versions=graph.versions)
    part.node.extend(node for node in graph.node if node.name in derived or node.op == "Const")

    @tf.function(autograph=False)
    def evaluate(given):
        return tf.graph_util.import_graph_def(part, given, wanted, name="")

    given = {name: values[name] for name in _inputs(part.node) & values.keys()}
    # Do not call evaluate(given): TensorFlow would warn about too many retracings from the fifth network on.
    results = dict(zip(wanted, evaluate.get_concrete_function(given)(given), strict=True)) if wanted else {}
    return results | {name: value for name, value in values.items() if name in read}


def _inputs(nodes) -> set[str]:
    """List the names of the outputs that these nodes read."""
    return {name if ":" in name else f"{name}:0" for node in nodes for name in node.input if name[0] != "^"}
