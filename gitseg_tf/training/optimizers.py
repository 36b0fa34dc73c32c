"""Optimizers by name. Clipping, weight decay and averages of the weights are the training step's, the same for all."""

import difflib
import inspect
import re

import tf_keras as keras

from gitseg_tf.addons import import_addons
from gitseg_tf.errors import InputError
from gitseg_tf.sections.training import ADDONS, TrainingConfig
from gitseg_tf.training.schedules import Schedule

# What averages weights: the step does it for every optimizer.
_AVERAGING = {"SWA": "training.swa", "MovingAverage": "training.ema"}


def build_optimizer(config: TrainingConfig, schedule: Schedule, variables: list, scales_loss: bool = False):
    """Make the optimizer of a config, with all of its variables.

    Args:
        config: `optimizer` is adamw (Loshchilov & Hutter 2017, arXiv:1711.05101), sgd with Nesterov's momentum
            (Sutskever et al. 2013), lion (Chen et al. 2023, arXiv:2302.06675), or Addons>NAME, a class of
            tensorflow-addons. Addons>Lookahead (Zhang et al. 2019, arXiv:1907.08610) looks ahead of RectifiedAdam.
        schedule: the learning rate.
        variables: the model's trainable variables.
        scales_loss: for float16, whose small gradients would be zero (Micikevicius et al. 2017, arXiv:1710.03740).

    Returns:
        A keras optimizer that puts no decay on weights, nor clips: TrainingModel does.

    Raises:
        InputError: see `addons_class`.
    """
    if config.optimizer == "adamw":
        optimizer = keras.optimizers.Adam(schedule)
    elif config.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(schedule, momentum=config.momentum, nesterov=True)
    elif config.optimizer == "lion":
        optimizer = keras.optimizers.Lion(schedule)
    else:
        optimizer = _of_addons(config.optimizer, schedule, variables)
    if scales_loss:
        optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer)
    if isinstance(optimizer, keras.optimizers.legacy.Optimizer):
        optimizer._create_all_weights(variables)  # what `build` is to the others
    else:
        optimizer.build(variables)
    return optimizer


def addons_class(name: str) -> type:
    """Find an optimizer of tensorflow-addons.

    Args:
        name: Addons>NAME.

    Raises:
        InputError: tensorflow-addons is not installed, has no such optimizer, or one that no config can describe.
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
        raise InputError(f"training.optimizer is {name}: {_AVERAGING[wanted]} averages the weights of any optimizer")
    usable = sorted(key for key, kind in classes.items() if key not in _AVERAGING and _takes_a_rate(kind))
    if wanted in usable:
        return classes[wanted]
    if wanted in classes:
        raise InputError(f"training.optimizer is {name}: it follows no learning rate; take one of {', '.join(usable)}")
    spelled = {key.lower(): key for key in usable}
    near = difflib.get_close_matches(wanted.lower(), spelled, n=1)
    hint = f"did you mean {ADDONS}{spelled[near[0]]}?" if near else f"it has {', '.join(usable)}"
    raise InputError(f"training.optimizer is {name}: tensorflow-addons has no such optimizer; {hint}")


def decays(variable) -> bool:
    """True for a variable that weight decay is put on: a kernel, no bias, no scale or shift of a normalisation.

    What has one dimension is no kernel, as in timm; nor is what is called bias, such as a table of relative positions.
    """
    return len(variable.shape) > 1 and re.search(r"(bias|gamma|beta)[^/]*$", variable.name) is None


def _takes_a_rate(kind: type) -> bool:
    return not {"learning_rate", "optimizer"}.isdisjoint(inspect.signature(kind).parameters)


def _of_addons(name: str, schedule: Schedule, variables: list):
    kind = addons_class(name)
    parameters = inspect.signature(kind).parameters
    arguments = {"learning_rate": schedule}
    if "optimizer" in parameters:
        arguments = {"optimizer": _of_addons(f"{ADDONS}RectifiedAdam", schedule, variables)}
    if "weight_decay" in parameters:
        arguments["weight_decay"] = 0.0
    if "exclude_from_layer_adaptation" in parameters:
        # The ratio of norms, as the paper's authors have it, is for kernels (You et al. 2019, arXiv:1904.00962).
        arguments["exclude_from_layer_adaptation"] = [f"^{re.escape(v.name)}$" for v in variables if not decays(v)]
    return kind(**arguments)
