"""Networks for inference alone."""

from collections.abc import Callable

import tensorflow as tf
import tf_keras as keras
from tensorflow.python.framework.convert_to_constants import (
    _FunctionConverterDataInEager,
    _replace_variables_by_constants,
)

from gitseg_tf.models.biases import biases_for_normalizations
from gitseg_tf.models.folded import fold_normalization

# Values of a variable that are passed to the graph. As constants they would be copied some ten times while the graph is
# made and rewritten, a gigabyte for 24 million weights; what TensorFlow folds, normalisation, is small.
_LARGE = 4096
# What networks make of weights before they meet an input: done once, in freezing.
_OF_WEIGHTS = {"Cast", "ConcatV2", "Identity", "MatMul", "Mul", "Reshape", "Split", "SplitV"}
_OF_WEIGHTS |= {"StridedSlice", "Transpose"}


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
    """Make constants of a network's variables, as they are now, and of what is made of them alone.

    Kernels that a network casts to bfloat16 are kept as bfloat16, those that it rearranges as they are rearranged.
    Batch normalisation that does nothing but add becomes a bias, see `biases_for_normalizations`.

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
    made = _made_of(graph, values)
    values = _evaluated(graph, made, values)
    replaced |= made
    kept = tf.compat.v1.GraphDef(versions=graph.versions, library=graph.library)
    kept.node.extend(node for node in graph.node if node.name not in replaced)
    for node in kept.node:
        # What was to be read before something else is an argument now.
        node.input[:] = [name for name in node.input if not (name[0] == "^" and name[1:] in replaced)]
    biases_for_normalizations(kept)
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


def _made_of(graph, values: dict[str, tf.Tensor]) -> set[str]:
    """Names of the nodes that see these values and constants alone."""
    constants = {node.name for node in graph.node if node.op == "Const"}
    seen = {name.split(":")[0] for name in values}
    made, before = set(), -1
    while len(made) > before:
        before = len(made)
        for node in graph.node:
            inputs = {name.split(":")[0] for name in node.input}
            if node.op in _OF_WEIGHTS and inputs & (seen | made) and inputs <= seen | made | constants:
                made.add(node.name)
    return made


def _evaluated(graph, made: set[str], values: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """What other nodes read of these values and of the nodes that are made of them, by name."""
    read = _inputs(node for node in graph.node if node.name not in made)
    wanted = sorted(name for name in read if name.split(":")[0] in made)
    part = tf.compat.v1.GraphDef(versions=graph.versions)
    part.node.extend(node for node in graph.node if node.name in made or node.op == "Const")

    @tf.function(autograph=False)
    def evaluate(given):
        return tf.graph_util.import_graph_def(part, given, wanted, name="")

    given = {name: values[name] for name in _inputs(part.node) & values.keys()}
    # Not evaluate(given): of the fifth network TensorFlow would warn that it is traced too often.
    found = dict(zip(wanted, evaluate.get_concrete_function(given)(given), strict=True)) if wanted else {}
    return found | {name: value for name, value in values.items() if name in read}


def _inputs(nodes) -> set[str]:
    """Names of the outputs that these nodes read."""
    return {name if ":" in name else f"{name}:0" for node in nodes for name in node.input if name[0] != "^"}
