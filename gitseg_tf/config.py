"""The experiment as data: YAML in, dotted overrides on top, one line that names the field when something is wrong."""

import difflib
import re
from typing import Any, get_args

import yaml
from pydantic import (
    Field,
    ValidationError,
    model_validator,
)

from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, as_path, write_atomically
from gitseg_tf.sections.augment import AugmentConfig
from gitseg_tf.sections.base import Section
from gitseg_tf.sections.data import DataConfig
from gitseg_tf.sections.evaluation import EvaluationConfig
from gitseg_tf.sections.model import ModelConfig
from gitseg_tf.sections.postprocess import PostprocessConfig
from gitseg_tf.sections.training import TrainingConfig
from gitseg_tf.sections.volumes import check_volumes

_MOVED = {
    "training.bce_weight": "training.loss.bce.weight",
    "training.dice_weight": "training.loss.dice.weight",
}
_BOOL = "tag:yaml.org,2002:bool"


class _Loader(yaml.SafeLoader):
    """YAML 1.2 in this: true and false alone are truth values, on, off, yes and no are words (there is a key `on`)."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


class Config(Section):
    """A whole experiment; the defaults are configs/default.yaml."""

    name: str = Field("default", pattern=r"^\w[\w.-]*$")
    seed: int = Field(0, ge=0, lt=2**31)
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    postprocess: PostprocessConfig = PostprocessConfig()
    provenance: dict[str, Any] = Field({}, description="versions and the dataset's fingerprint; filled in by training")

    @model_validator(mode="after")
    def _sections_agree(self):
        check_volumes(self.model, self.data.patch)
        if self.data.fold is None:
            for key in ("early_stopping", "swa"):
                if getattr(self.training, key):
                    raise ValueError(f"training.{key} is {getattr(self.training, key)}: needs a fold that is held out")
        return self


def load_config(path: str | AnyPath | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """Read an experiment.

    Args:
        path: a YAML file; what it leaves out has its default. None is the embedded default.
        overrides: dotted keys, such as {"training.epochs": 3}, put on top of the file.

    Returns:
        The checked experiment.

    Raises:
        InputError: no such file, no YAML, an unknown key, a wrong type, a value out of range. One line names the field.
    """
    tree = read_yaml(as_path(path)) if path is not None else {}
    return _checked(tree, overrides or {}, path or "config")


def with_overrides(config: Config, overrides: dict[str, Any], name: str | AnyPath) -> Config:
    """An experiment with other values of some keys.

    Args:
        config: the experiment.
        overrides: dotted keys, as of `load_config`.
        name: of the experiment, for errors.

    Returns:
        The checked experiment.

    Raises:
        InputError: an unknown key, a wrong type, or a value out of range.
    """
    return _checked(config.model_dump(mode="json"), overrides, name) if overrides else config


def _checked(tree: dict, overrides: dict[str, Any], name) -> Config:
    for key, value in overrides.items():
        _set_dotted(tree, key, value)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{name}: {_first_problem(error)}") from None


def save_config(config: Config, path: str | AnyPath) -> None:
    """Write an experiment, defaults included, as YAML that `load_config` reads back.

    Args:
        config: the experiment.
        path: the file; what was there is replaced, whole or not at all.
    """
    write_atomically(as_path(path), yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split a `dotted.key=value` from the command line; the value is read as YAML.

    Raises:
        InputError: no equals sign, an empty key, or a value that is no YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set {text}: write it as dotted.key=value, for example --set training.epochs=3")
    try:
        return key, yaml.load(value, _Loader)
    except (yaml.YAMLError, ValueError):
        raise InputError(f"--set {text}: the value is no YAML") from None


def read_yaml(path: AnyPath) -> dict:
    """Read a YAML file of keys and values, {} from an empty one.

    Raises:
        InputError: no such file, no YAML, or something else than a mapping.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); --config takes a YAML file") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise InputError(f"{path}{line}: is no YAML ({reason})") from None
    if tree is not None and not isinstance(tree, dict):
        raise InputError(f"{path}: holds a {type(tree).__name__}, not a mapping of config keys")
    return tree or {}


def _set_dotted(tree: dict, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for name in parents:
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
        if not isinstance(tree, dict):
            raise InputError(f"{key}: {name} is {tree!r}, no section of the config")
    tree[last] = value


def _first_problem(error: ValidationError) -> str:
    """One line: field, value, what is allowed."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    field = ".".join(path)
    if field in _MOVED and problem["type"] == "extra_forbidden":
        return f"{field} is no known key; it is called {_MOVED[field]}"
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        allowed = sorted(_fields_at(path[:-1]))
        near = difflib.get_close_matches(path[-1], allowed, n=1)
        hint = f"did you mean {'.'.join([*path[:-1], near[0]])}?" if near else f"allowed are {', '.join(allowed)}"
        return f"{field} is no known key; {hint}"
    if problem["type"] == "missing":
        return f"{'.'.join(path[:-1])} is {problem['input']!r}: it must have more values"
    if problem["type"] == "model_type":
        return (
            f"{field} is {problem['input']!r}: it must be a section with the keys {', '.join(sorted(_fields_at(path)))}"
        )
    what = re.sub(r"^(Value error, |Input |String |Tuple )", "", problem["msg"]).replace("should ", "must ")
    if not field:
        return what  # of several sections, which it names
    return f"{field} is {problem['input']!r}: it {what}"


def _fields_at(path: list[str]) -> set[str]:
    model: Any = Config
    for name in path:
        annotation = model.model_fields[name].annotation
        model = next((a for a in (annotation, *get_args(annotation)) if isinstance(a, type)), annotation)
    return set(model.model_fields)
