"""The experiment as data: YAML in, dotted overrides on top, one line that names the field when something is wrong."""

import difflib
import re
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gitseg_tf.errors import InputError
from gitseg_tf.files import write_atomically

Strategy = Literal["auto", "one_device", "mirrored", "multiworker", "tpu"]
Precision = Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _empty_section(cls, value: Any) -> Any:
        return {} if value is None else value

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_own_type(cls, value: Any, info: ValidationInfo) -> Any:
        # Pydantic would take true for 1, "3" for 3 and 1 for true. YAML reads 1e-3 as text: that is taken as a number.
        expected = cls.model_fields[info.field_name].annotation
        if expected is int and isinstance(value, bool | str):
            raise ValueError("must be a valid integer")
        if expected is float and isinstance(value, bool):
            raise ValueError("must be a valid number")
        if expected is bool and not isinstance(value, bool):
            raise ValueError("must be true or false")
        return value


class DataConfig(_Section):
    """What a training sample is and how many are in a batch."""

    path: str | None = Field(None, description="TFRecords made by `gitseg convert`, or a cohort; null is the phantom")
    folds: int = Field(5, ge=2, le=100, description="folds by patient, when a cohort is converted on the way")
    fold: int = Field(0, ge=0, description="the fold that is held out")
    slices: int = Field(5, ge=1, le=31, description="slices in a window, odd; 1 is a 2-D model, more a 2.5-D model")
    stride: int = Field(1, ge=1, le=8, description="distance between the slices of a window, in slices")
    size: tuple[int, int] = Field((128, 128), description="height and width of the model's input, multiples of 32")
    batch_size: int = Field(16, ge=1, description="windows in a step, over all replicas")
    empty_slices: float = Field(0.25, ge=0, le=1, description="share of the slices without organ seen in an epoch")
    shuffle_windows: int = Field(256, ge=1, description="windows held back for shuffling")
    cache_mib: int = Field(1024, ge=0, description="prepared scans are kept in memory when they fit in this many MiB")
    exclude_scans: tuple[str, ...] = Field((), description="ids of scans that are neither trained on nor scored")

    @field_validator("slices")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd")
        return value

    @field_validator("size")
    @classmethod
    def _multiples_of_32(cls, value: tuple[int, int]) -> tuple[int, int]:
        if any(n < 32 or n % 32 for n in value):
            raise ValueError("must be two multiples of 32")
        return value


class AugmentConfig(_Section):
    """Random changes of a training window; image and mask move together."""

    flip: float = Field(0.5, ge=0, le=1, description="probability of a left-right flip")
    affine: float = Field(0.8, ge=0, le=1, description="probability of a shift, scaling and rotation")
    shift: float = Field(0.06, ge=0, le=0.5, description="largest shift, as a share of height and width")
    scale: float = Field(0.12, ge=0, le=0.9, description="largest relative change of size")
    rotate: float = Field(12.0, ge=0, le=180, description="largest rotation, degrees")


class ModelConfig(_Section):
    """The network."""

    architecture: Literal["unet"] = Field("unet", description="the decoder")
    backbone: Literal["plain", "resnet34"] = Field("plain", description="the encoder")
    filters: int = Field(16, ge=4, le=512, description="channels at full resolution of the plain backbone")


class TrainingConfig(_Section):
    """The optimisation."""

    epochs: int = Field(3, ge=1)
    learning_rate: float = Field(2e-3, gt=0, le=10, description="the peak")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps in which the rate rises from zero")
    weight_decay: float = Field(1e-2, ge=0)
    clip_norm: float = Field(1.0, gt=0, description="largest global norm of the gradient")
    ema: float = Field(0.99, ge=0, lt=1, description="decay of the moving average of the weights; 0 is none")
    bce_weight: float = Field(1.0, ge=0)
    dice_weight: float = Field(1.0, ge=0)
    strategy: Strategy = "auto"
    precision: Precision = "auto"
    jit_compile: bool = Field(False, description="compile the training step with XLA; always on for TPUs")
    deterministic: bool = Field(False, description="the same bits from the same seed on a GPU too, slower")


class EvaluationConfig(_Section):
    """How predictions become masks and masks become scores."""

    threshold: float = Field(0.5, gt=0, lt=1, description="probability from which a voxel is inside")
    tolerance_mm: float = Field(3.0, gt=0, description="of the surface Dice")
    batch_size: int = Field(16, ge=1, description="windows predicted at once")


class Config(_Section):
    """A whole experiment; the defaults are configs/default.yaml."""

    name: str = Field("default", pattern=r"^\w[\w.-]*$")
    seed: int = Field(0, ge=0, lt=2**31)
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    provenance: dict[str, Any] = Field({}, description="versions and the dataset's fingerprint; filled in by training")


def load_config(path: str | Path | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """Read an experiment.

    Args:
        path: a YAML file; what it leaves out has its default. None is the embedded default.
        overrides: dotted keys, such as {"training.epochs": 3}, put on top of the file.

    Returns:
        The checked experiment.

    Raises:
        InputError: no such file, no YAML, an unknown key, a wrong type, a value out of range. One line names the field.
    """
    tree = _read_yaml(Path(path)) if path is not None else {}
    for key, value in (overrides or {}).items():
        _set_dotted(tree, key, value)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{path or 'config'}: {_first_problem(error)}") from None


def save_config(config: Config, path: str | Path) -> None:
    """Write an experiment, defaults included, as YAML that `load_config` reads back.

    Args:
        config: the experiment.
        path: the file; what was there is replaced, whole or not at all.
    """
    write_atomically(Path(path), yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split a `dotted.key=value` from the command line; the value is read as YAML.

    Raises:
        InputError: no equals sign, an empty key, or a value that is no YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set {text}: write it as dotted.key=value, for example --set training.epochs=3")
    try:
        return key, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise InputError(f"--set {text}: the value is no YAML") from None


def _read_yaml(path: Path) -> dict:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
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
    return f"{field} is {problem['input']!r}: it {what}"


def _fields_at(path: list[str]) -> set[str]:
    model: Any = Config
    for name in path:
        annotation = model.model_fields[name].annotation
        model = next((a for a in (annotation, *get_args(annotation)) if isinstance(a, type)), annotation)
    return set(model.model_fields)
