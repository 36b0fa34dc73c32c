"""Changes of variables from within a step, on every replica's copy."""

from collections.abc import Callable

import tensorflow as tf


def change_variables(change: Callable, variables: list, *values: list) -> None:
    """Call change(variable, its values...) for each variable, where its copies are; within a replica's step.

    Args:
        change: assigns to the variable.
        variables: of the model, or beside it.
        values: lists of tensors or variables, an entry for each variable.
    """

    def on_copies(strategy, variables, *values):
        for variable, *its in zip(variables, *values, strict=True):
            strategy.extended.update(variable, change, args=tuple(its), group=False)

    # As keras's optimizers do it: replicas meet for it, except where XLA compiles a step for each GPU or TPU core.
    merge = tf.__internal__.distribute.interim.maybe_merge_call
    merge(on_copies, tf.distribute.get_strategy(), variables, *values)
