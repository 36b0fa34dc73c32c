"""The values that a grid combines or a search samples: lists and ranges of config keys, read from YAML."""

import contextlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from gitseg_tf.config import Config, load_config, read_yaml
from gitseg_tf.config.experiment import with_overrides
from gitseg_tf.core.paths import AnyPath, as_path
from gitseg_tf.core.trees import shown
from gitseg_tf.errors import ConfigError, GitsegError

JOURNAL = "study.journal"  # the record of a search in its folder
_EXAMPLES = "give a list of values, such as [0.001, 0.003], or a range, such as {low: 0.0001, high: 0.01, log: true}"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; integers if the config key is one.

    Attributes:
        low, high: the ends.
        log: sample the logarithm uniformly.
        step: distance between two values; None is any number, or 1 for integers.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None


Values = list[Any] | Range


@dataclass(frozen=True)
class Search:
    """What a search varies.

    Attributes:
        path: the file, for messages.
        base: the experiment with the first value of each key.
        space: the values by dotted key.
    """

    path: AnyPath
    base: Config
    space: dict[str, Values]

    def config(self, values: dict[str, Any]) -> Config:
        """Return the experiment with these values.

        Raises:
            ConfigError: the combination is not a valid config.
        """
        return with_overrides(self.base, values, self.path)

    def is_integer(self, key: str) -> bool:
        """Check whether a config key is an integer."""
        return isinstance(config_value(self.base, key), int)


def read_values(path: AnyPath, overrides: dict[str, Any]) -> dict[str, Values]:
    """Read the lists and ranges of a grid or search.

    Args:
        path: YAML with a list or a range per dotted key, such as `training.learning_rate: [0.001, 0.003]` or
            `model.dropout: {low: 0, high: 0.5}`; {choices: [...]} is the same as a list.
        overrides: dotted keys that are set for all runs.

    Returns:
        A non-empty list without duplicates, or a Range, by key.

    Raises:
        ConfigError: invalid YAML, a value that is neither a list nor a range, an empty list or one with duplicates, or
            a key that is also an override.
    """
    tree = read_yaml(as_path(path))
    if not tree:
        raise ConfigError(
            f"{path}: is empty; give a list of values per key, such as training.learning_rate: [0.001, 0.003]"
        )
    space: dict[str, Values] = {}
    for key, given in tree.items():
        where = f"{path}: {key}"
        if isinstance(given, dict) and {"low", "high"} & set(given):
            space[key] = _range(given, where)
        else:
            space[key] = _list(
                given["choices"] if isinstance(given, dict) and set(given) == {"choices"} else given, where
            )
        if key in overrides:
            raise ConfigError(f"{where} is also set by an override; remove one of the two")
    return space


def read_search(path: str | AnyPath, base: str | AnyPath | None, overrides: dict[str, Any]) -> Search:
    """Read a search, and check every value of a list and both ends of each range, with the others at their first value.

    Args:
        path: see `read_values`.
        base: YAML of the base experiment; None is the built-in default.
        overrides: dotted keys on top of the base, for all trials.

    Returns:
        The search.

    Raises:
        ConfigError: see `read_values`; a value that is not allowed; evaluation.metric varies, or no fold is held out.
    """
    path = as_path(path)
    space = read_values(path, overrides)
    if "evaluation.metric" in space:
        raise ConfigError(f"{path}: evaluation.metric varies; choose one, by which the trials are compared")
    first = {key: _ends(values)[0] for key, values in space.items()}
    experiment = _checked(path, base, overrides, first)
    if experiment.data.fold is None:
        raise ConfigError(f"{path}: data.fold is null; set it, because trials are compared on a held-out fold")
    search = Search(path, experiment, space)
    for key, values in space.items():
        configs = [_checked(path, base, overrides, first | {key: value}) for value in _ends(values)]
        if isinstance(values, list):
            space[key] = [config_value(config, key) for config in configs]  # YAML reads 1e-3 as a string
        elif search.is_integer(key) and values.step is not None and values.step != int(values.step):
            raise ConfigError(f"{path}: {key} is an integer; give an integer step, got {values.step}")
    return search


def config_value(config: Config, key: str) -> Any:
    """Return the value of a dotted key as parsed by the config."""
    value: Any = config.model_dump(mode="json")
    for name in key.split("."):
        value = value[name]
    return value


def to_tree(space: dict[str, Values]) -> dict[str, Any]:
    """Convert a space to lists and dicts for JSON."""
    return {key: asdict(values) if isinstance(values, Range) else values for key, values in space.items()}


def _ends(values: Values) -> list[Any]:
    return [values.low, values.high] if isinstance(values, Range) else values


def _checked(path: AnyPath, base: str | AnyPath | None, overrides: dict[str, Any], values: dict[str, Any]) -> Config:
    try:
        return load_config(base, overrides | values)
    except GitsegError as error:
        assigned = ", ".join(f"{key}={value}" for key, value in values.items())
        raise ConfigError(f"{path}: {assigned}: {error}") from None


def _list(given: Any, where: str) -> list[Any]:
    if not isinstance(given, list) or not given:
        raise ConfigError(f"{where} is {shown(given)}; {_EXAMPLES}")
    if len({json.dumps(value, default=str) for value in given}) < len(given):
        raise ConfigError(f"{where} lists a value twice ({shown(given)}); remove one")
    return given


def _range(given: dict[str, Any], where: str) -> Range:
    unknown = sorted(map(str, set(given) - {"low", "high", "log", "step"}))
    if unknown or not {"low", "high"} <= set(given):
        raise ConfigError(f"{where}: a range has the keys low and high, and log or step, got {shown(given)}")
    low, high = (_number(given[name], f"{where}.{name}") for name in ("low", "high"))
    step = None if given.get("step") is None else _number(given["step"], f"{where}.step")
    log = given.get("log", False)
    if not isinstance(log, bool):
        raise ConfigError(f"{where}.log must be true or false, got {shown(log)}")
    if low >= high:
        raise ConfigError(f"{where}: low must be less than high, got {low} and {high}")
    if log and low <= 0:
        raise ConfigError(f"{where}: low must be positive with log: true, got {low}")
    if log and step is not None:
        raise ConfigError(f"{where}: log and step exclude each other; remove one")
    if step is not None and (step <= 0 or abs((high - low) / step - round((high - low) / step)) > 1e-9):
        raise ConfigError(f"{where}: high must be low plus a multiple of step, got {low}, {high} and {step}")
    return Range(low, high, log, step)


def _number(value: Any, where: str) -> float:
    if isinstance(value, str):  # YAML reads 1e-3 as a string
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{where} must be a number, got {shown(value)}")
    return value
