"""The experiment as data: YAML in, dotted overrides on top, one line that names the field when something is wrong."""

import difflib
import re
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
from gitseg_tf.files import AnyPath, as_path, write_atomically

Strategy = Literal["auto", "one_device", "mirrored", "multiworker", "tpu"]
Precision = Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"]


_BOOL = "tag:yaml.org,2002:bool"


class _Loader(yaml.SafeLoader):
    """YAML 1.2 in this: true and false alone are truth values, on, off, yes and no are words (there is a key `on`)."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


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
    stride_mm: float | None = Field(None, gt=0, description="the same in mm, rounded to whole slices of the scan")
    size: tuple[int, int] = Field((128, 128), description="height and width of the model's input, multiples of 32")
    crop: Literal["none", "body"] = Field("body", description="what of a slice fills the input: all, or the body")
    pixel_mm: float | None = Field(None, gt=0, description="pixel of the input in mm; null fits each scan into size")
    patch: tuple[int, int, int] | None = Field(None, description="slices, height, width of the crops of a 3-D model")
    batch_size: int = Field(16, ge=1, description="windows in a step, over all replicas")
    empty_slices: float = Field(0.25, ge=0, le=1, description="share of the slices without organ seen in an epoch")
    balance_organs: float = Field(0.0, ge=0, le=1, description="how far rarer organs are shown more often; 1 is fully")
    exclude_scans: tuple[str, ...] = Field((), description="ids of scans that are left out")
    shuffle_windows: int = Field(256, ge=1, description="windows held back for shuffling")
    service: str | None = Field(None, description="grpc://HOST:PORT of a data service that prepares training windows")
    cache_mib: int = Field(1024, ge=0, description="prepared scans are kept in memory when they fit in this many MiB")

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

    @model_validator(mode="after")
    def _patch_fits(self):
        depth, height, width = self.patch or (1, 1, 1)
        if min(depth, height, width) < 1 or height > self.size[0] or width > self.size[1]:
            raise ValueError(f"patch is {[depth, height, width]}: height and width must fit into {list(self.size)}")
        return self


class _Transform(_Section):
    """One random change of a window."""

    p: float = Field(0.0, ge=0, le=1, description="probability")


class FlipConfig(_Transform):
    """Left and right change places."""

    p: float = Field(0.5, ge=0, le=1)


class AffineConfig(_Transform):
    """Shift, scaling and rotation."""

    p: float = Field(0.5, ge=0, le=1)
    shift: float = Field(0.0625, ge=0, le=0.5, description="largest, as a share of height and width")
    scale: float = Field(0.1, ge=0, le=0.9, description="largest relative change of size")
    rotate: float = Field(10.0, ge=0, le=180, description="largest, degrees")


class ElasticConfig(_Transform):
    """A smooth random displacement."""

    p: float = Field(0.125, ge=0, le=1)
    displacement: float = Field(0.01, ge=0, le=0.2, description="root mean square, as a share of height and width")
    nodes: int = Field(5, ge=2, le=32, description="spans of the cubic B-spline along each axis")


class GridConfig(_Transform):
    """Stretched and squeezed rows and columns."""

    p: float = Field(0.125, ge=0, le=1)
    distortion: float = Field(0.05, ge=0, le=0.9, description="largest relative change of a cell's size")
    nodes: int = Field(5, ge=2, le=32, description="cells along each axis")


class LowResolutionConfig(_Transform):
    """Sampled on a coarser grid and back."""

    zoom: float = Field(0.5, gt=0, le=1, description="of the coarsest grid")


class BlurConfig(_Transform):
    """Gaussian blur."""

    sigma: float = Field(1.0, gt=0, le=5, description="largest, pixels")


class BiasFieldConfig(_Transform):
    """Intensities times a smooth field, as of a receive coil."""

    strength: float = Field(0.3, ge=0, le=2, description="largest logarithm of the field")


class BrightnessConfig(_Transform):
    """A constant is added."""

    shift: float = Field(0.1, ge=0, le=1, description="largest")


class ContrastConfig(_Transform):
    """Intensities are spread about the window's mean."""

    factor: float = Field(0.25, ge=0, lt=1, description="largest relative change")


class GammaConfig(_Transform):
    """Intensities to a power."""

    exponent: float = Field(1.4, ge=1, le=4, description="largest; the smallest is its inverse")


class NoiseConfig(_Transform):
    """Gaussian noise."""

    std: float = Field(0.05, ge=0, le=1, description="largest standard deviation")


class DropoutConfig(_Transform):
    """Rectangles of the image, not of the mask, become 0 (coarse dropout, cutout)."""

    p: float = Field(0.5, ge=0, le=1)
    holes: int = Field(2, ge=1, le=64, description="most of them")
    size: tuple[float, float] = Field((0.1, 0.2), description="smallest and largest side, as a share of the window's")

    @field_validator("size")
    @classmethod
    def _shares_that_rise(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError("must be two shares of 0 to 1, the smaller first")
        return value


class MixConfig(_Transform):
    """Two windows of a batch become one: MixUp adds them, CutMix puts a rectangle of one into the other."""

    alpha: float = Field(1.0, gt=0, le=10, description="of the Beta distribution of the share")


class AugmentConfig(_Section):
    """Random changes of a training window, in this order; image and mask move together."""

    on: Literal["host", "accelerator"] = "host"
    accelerator_warp: Literal["gather", "addons"] = "gather"
    flip: FlipConfig = FlipConfig()
    affine: AffineConfig = AffineConfig()
    elastic: ElasticConfig = ElasticConfig()
    grid: GridConfig = GridConfig()
    low_resolution: LowResolutionConfig = LowResolutionConfig()
    blur: BlurConfig = BlurConfig()
    bias_field: BiasFieldConfig = BiasFieldConfig()
    contrast: ContrastConfig = ContrastConfig()
    brightness: BrightnessConfig = BrightnessConfig()
    gamma: GammaConfig = GammaConfig()
    noise: NoiseConfig = NoiseConfig()
    dropout: DropoutConfig = DropoutConfig()
    mixup: MixConfig = MixConfig()
    cutmix: MixConfig = MixConfig()

    @model_validator(mode="after")
    def _one_displacement_at_most(self):
        if self.elastic.p + self.grid.p > 1:
            raise ValueError("elastic.p and grid.p exclude each other, their sum must be 1 or less")
        return self


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
    tree = _read_yaml(as_path(path)) if path is not None else {}
    for key, value in (overrides or {}).items():
        _set_dotted(tree, key, value)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{path or 'config'}: {_first_problem(error)}") from None


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


def _read_yaml(path: AnyPath) -> dict:
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
