"""Optimizers. Clipping, weight decay and weight averages are part of the training step, for all optimizers."""

import difflib
import inspect
import re
from typing import Any

import tf_keras as keras

from gitseg_tf.config.training import ADDONS, OPTIMIZERS, TrainingConfig
from gitseg_tf.core.addons import import_addons
from gitseg_tf.errors import ConfigError
from gitseg_tf.training.optim.schedules import Schedule

# Optimizers that average weights; the training step does this for every optimizer.
_AVERAGING = {"SWA": "training.swa_epochs", "MovingAverage": "training.ema_decay"}


def adamw(schedule: Schedule, config: TrainingConfig):
    """Create AdamW without its decay (Loshchilov & Hutter 2017, arXiv:1711.05101)."""
    return keras.optimizers.Adam(schedule)


def sgd(schedule: Schedule, config: TrainingConfig):
    """Create SGD with Nesterov momentum (Sutskever et al. 2013)."""
    return keras.optimizers.SGD(schedule, momentum=config.momentum, nesterov=True)


def lion(schedule: Schedule, config: TrainingConfig):
    """Create Lion (Chen et al. 2023, arXiv:2302.06675)."""
    return keras.optimizers.Lion(schedule)


def build_optimizer(config: TrainingConfig, schedule: Schedule, variables: list, *, scales_loss: bool = False):
    """Create the optimizer of a config and all of its variables.

    Args:
        config: `optimizer` is a name in config.training.OPTIMIZERS, or Addons>NAME, a class of tensorflow-addons.
            Addons>Lookahead (Zhang et al. 2019, arXiv:1907.08610) wraps RectifiedAdam.
        schedule: the learning rate.
        variables: the model's trainable variables.
        scales_loss: enable loss scaling, for float16, in which small gradients would be zero (Micikevicius et al. 2017,
            arXiv:1710.03740).

    Returns:
        A Keras optimizer that neither decays weights nor clips gradients; TrainingModel does both.

    Raises:
        ConfigError: see `addons_class`.
    """
    if config.optimizer.startswith(ADDONS):
        optimizer = _addons_optimizer(config.optimizer, schedule, variables)
    else:
        optimizer = OPTIMIZERS.get(config.optimizer)(schedule, config)
    if scales_loss:
        optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer)
    if isinstance(optimizer, keras.optimizers.legacy.Optimizer):
        optimizer._create_all_weights(variables)  # corresponds to `build` of the others
    else:
        optimizer.build(variables)
    return optimizer


def addons_class(name: str) -> type:
    """Find an optimizer of tensorflow-addons.

    Args:
        name: Addons>NAME.

    Returns:
        The optimizer's class.

    Raises:
        ConfigError: tensorflow-addons is not installed or has no such optimizer, or a config cannot describe it.
    """
    optimizers = import_addons().optimizers
    classes = {
        key: kind
        for key, kind in vars(optimizers).items()
        if inspect.isclass(kind)
        and issubclass(kind, keras.optimizers.legacy.Optimizer)
        and not inspect.isabstract(kind)
    }
    del classes["KerasLegacyOptimizer"]
    wanted = name.removeprefix(ADDONS)
    if wanted in _AVERAGING:
        raise ConfigError(f"training.optimizer is {name}: use {_AVERAGING[wanted]} instead, with any optimizer")
    usable = sorted(key for key, kind in classes.items() if key not in _AVERAGING and _accepts_learning_rate(kind))
    if wanted in usable:
        return classes[wanted]
    if wanted in classes:
        raise ConfigError(f"training.optimizer is {name}: it has no learning rate; choose one of {', '.join(usable)}")
    spelled = {key.lower(): key for key in usable}
    near = difflib.get_close_matches(wanted.lower(), spelled, n=1)
    hint = f"did you mean {ADDONS}{spelled[near[0]]}?" if near else f"it has {', '.join(usable)}"
    raise ConfigError(f"training.optimizer is {name}: tensorflow-addons has no such optimizer; {hint}")


def decays(variable) -> bool:
    """Check whether weight decay applies to a variable: to kernels, but not to biases and normalization parameters.

    As in timm, variables with one dimension are not kernels, nor are variables named bias, such as relative positions.
    """
    return len(variable.shape) > 1 and re.search(r"(bias|gamma|beta)[^/]*$", variable.name) is None


def _accepts_learning_rate(kind: type) -> bool:
    return not {"learning_rate", "optimizer"}.isdisjoint(inspect.signature(kind).parameters)


def _addons_optimizer(name: str, schedule: Schedule, variables: list):
    kind = addons_class(name)
    parameters = inspect.signature(kind).parameters
    arguments: dict[str, Any] = {"learning_rate": schedule}
    if "optimizer" in parameters:
        arguments = {"optimizer": _addons_optimizer(f"{ADDONS}RectifiedAdam", schedule, variables)}
    if "weight_decay" in parameters:
        arguments["weight_decay"] = 0.0
    if "exclude_from_layer_adaptation" in parameters:
        # As in the authors' code, the ratio of norms applies to kernels only (You et al. 2019, arXiv:1904.00962).
        arguments["exclude_from_layer_adaptation"] = [f"^{re.escape(v.name)}$" for v in variables if not decays(v)]
    return kind(**arguments)
