"""Update all replicas' copies of variables from within a step."""

from collections.abc import Callable

import tensorflow as tf


def change_variables(change: Callable, variables: list, *values: list) -> None:
    """Call change(variable, *values) on every copy of each variable; call this within a replica's step.

    Args:
        change: function that assigns to the variable.
        variables: the variables to update.
        values: lists of tensors or variables, with one entry per variable.
    """

    def on_copies(strategy, variables, *values):
        for variable, *arguments in zip(variables, *values, strict=True):
            strategy.extended.update(variable, change, args=tuple(arguments), group=False)

    # As in Keras's optimizers: replicas synchronize for the update, unless XLA compiles a step per GPU or TPU core.
    merge = tf.__internal__.distribute.interim.maybe_merge_call
    merge(on_copies, tf.distribute.get_strategy(), variables, *values)
