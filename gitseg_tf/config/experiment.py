"""The experiment config: read from YAML, overridden by dotted keys, and validated with one-line error messages."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import (
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)

from gitseg_tf.config.augment import AugmentConfig
from gitseg_tf.config.data import DataConfig
from gitseg_tf.config.evaluation import EvaluationConfig
from gitseg_tf.config.intensity import ChannelStatistics, resolve_intensity
from gitseg_tf.config.model import ModelConfig
from gitseg_tf.config.postprocess import LabelPostprocess, PostprocessConfig
from gitseg_tf.config.section import Section
from gitseg_tf.config.training import TrainingConfig
from gitseg_tf.config.volumetric import check_volumes
from gitseg_tf.core.paths import AnyPath, as_path, write_atomically
from gitseg_tf.core.text import one_line
from gitseg_tf.core.trees import parse_yaml, shown
from gitseg_tf.errors import ConfigError
from gitseg_tf.labels import LabelSet

PACKAGED = Path(__file__).parents[1] / "configs"

# Keys of version 0.1: they are rejected with an error that gives the new name.
_RENAMED = {
    "data.slices": "window_slices",
    "data.stride": "window_stride",
    "data.stride_mm": "window_stride_mm",
    "data.size": "input_size",
    "data.empty_slices": "empty_slice_fraction",
    "data.shuffle_windows": "shuffle_buffer",
    "data.balance_organs": "balance_labels",
    "augment.on": "backend",
    "augment.accelerator_warp": "tensorflow_warp",
    "model.weights": "pretrained",
    "model.presence": "presence_head",
    "training.accumulate": "gradient_accumulation_steps",
    "training.encoder_rate": "encoder_lr_multiplier",
    "training.layer_decay": "layer_lr_decay",
    "training.swa": "swa_epochs",
    "training.ema": "ema_decay",
    "training.early_stopping": "early_stopping_patience",
    "training.loss.empty_organs": "empty_labels",
    "training.loss.dice.per": "reduce_over",
    "training.loss.tversky.per": "reduce_over",
    "training.loss.focal_tversky.per": "reduce_over",
    "training.loss.top_k.share": "fraction",
    "training.loss.deep.factor": "decay",
}
_RENAMED_POSTPROCESS = {
    "smallest_ml": "min_component_ml",
    "largest_only": "keep_largest_component",
    "gap_mm": "max_gap_mm",
}


def _read_labels(tree: Any) -> LabelSet | None:
    try:
        return None if tree is None else LabelSet.from_tree(tree)
    except ConfigError as error:
        raise ValueError(str(error)) from None


_Labels = Annotated[
    LabelSet | None, PlainValidator(_read_labels), PlainSerializer(lambda labels: labels and labels.to_tree())
]


class Config(Section):
    """An experiment; the defaults are those of configs/default.yaml.

    `labels` and `channels` come from the dataset and are filled in by `for_dataset`; the config of a run has them.

    Example:
        >>> config = Config()
        >>> config.model.architecture, config.data.batch_size, config.labels
        ('unet', 16, None)
    """

    name: str = Field("default", pattern=r"^\w[\w.-]*$")
    seed: int = Field(0, ge=0, lt=2**31)
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    postprocess: PostprocessConfig = PostprocessConfig()
    labels: _Labels = Field(None, description="labels that the network segments; filled in by training")
    channels: tuple[str, ...] | None = Field(None, description="channels of the network's input; filled in by training")
    provenance: dict[str, Any] = Field({}, description="versions and the dataset's fingerprint; filled in by training")

    def for_dataset(
        self,
        labels: LabelSet,
        channels: tuple[str, ...],
        intensities: Sequence[ChannelStatistics] | None = None,
    ) -> "Config":
        """Fill in the labels, channels and intensities of a dataset.

        Args:
            labels: the dataset's labels; data.labels selects and orders a subset of them.
            channels: names of the dataset's channels.
            intensities: `Dataset.intensities`, required if data.intensity is of kind "dataset".

        Returns:
            A copy of the experiment for this dataset.

        Raises:
            ConfigError: data.labels or postprocess names a label that the dataset does not have, or the number of
                entries in data.intensity differs from the number of channels; or a label has min_presence, but the
                network has no presence head.

        Example:
            >>> config = load_config(None, {"data.labels": ["spleen"]})
            >>> config.for_dataset(LabelSet.of("liver", "spleen"), ("ct",)).label_set.names
            ('spleen',)
        """
        if self.data.labels is not None:
            try:
                labels = labels.subset(self.data.labels)
            except ConfigError as error:
                raise ConfigError(f"data.labels: {error}") from None
        self.postprocess.check_labels(labels)
        self.postprocess.check_presence(labels, self.gates_slices)
        intensity = resolve_intensity(self.data.intensity, tuple(channels), intensities)
        data = self.data.model_copy(update={"intensity": intensity})
        return self.model_copy(update={"data": data, "labels": labels, "channels": tuple(channels)})

    @property
    def gates_slices(self) -> bool:
        """Whether the network predicts which axial slices show a label, so that min_presence can be used."""
        return self.model.presence_head and self.data.plane == "axial"

    @property
    def label_set(self) -> LabelSet:
        """The labels of a config that was filled in by `for_dataset`.

        Raises:
            ConfigError: the config has no labels yet.
        """
        if self.labels is None:
            raise ConfigError("the config has no labels yet; take them from the dataset with config.for_dataset(...)")
        return self.labels

    @field_validator("provenance")
    @classmethod
    def _has_known_types(cls, value: dict[str, Any]) -> dict[str, Any]:
        # Written by training, export and tune, and used by them and by the viewer.
        kinds = {"dataset": str, "records": str, "trained_on": list, "tuned": dict, "plan": dict, "init": dict}
        for key, kind in kinds.items():
            if key in value and not isinstance(value[key], kind):
                raise ValueError(f"{key} must be of type {kind.__name__}")
        if not all(isinstance(case, str) for case in value.get("trained_on", ())):
            raise ValueError("trained_on must be a list of names")
        seen = value.get("init", {}).get("seen", {})
        if not isinstance(seen, dict) or not all(isinstance(cases, list) for cases in seen.values()):
            raise ValueError("init.seen must list patients by dataset")
        return value

    @model_validator(mode="after")
    def _sections_agree(self):
        check_volumes(self.model, self.data.patch)
        if self.augment.tilt.p and self.data.patch is None:
            raise ValueError("augment.tilt.p is positive, but only 3-D patches have slices to tilt; set it to 0")
        self._check_freezing()
        if self.data.fold is None:
            for key in ("early_stopping_patience", "swa_epochs"):
                if getattr(self.training, key):
                    raise ValueError(f"training.{key} is {getattr(self.training, key)}: it needs a held-out fold")
        return self

    def _check_freezing(self) -> None:
        training = self.training
        for key in ("freeze_epochs", "unfreeze_warmup_epochs"):
            if getattr(training, key) and self.model.init is None and self.model.pretrained is None:
                raise ValueError(
                    f"training.{key} is {getattr(training, key)}, but no layer is loaded; "
                    "set model.init or model.pretrained"
                )
        held = training.freeze_epochs + training.unfreeze_warmup_epochs
        if held and held >= training.epochs - training.swa_epochs:
            raise ValueError(
                f"training.freeze_epochs and training.unfreeze_warmup_epochs are {held:g} epochs together; they must "
                f"leave some of training.epochs ({training.epochs}) without training.swa_epochs ({training.swa_epochs})"
            )


def load_config(path: str | AnyPath | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """Read and validate an experiment.

    Args:
        path: a YAML file, or the name of one in `configs/`, such as "uwmgi"; omitted keys fall back to their defaults.
            None reads no file.
        overrides: dotted keys, such as {"training.epochs": 3}, applied on top of the file.

    Returns:
        The validated experiment.

    Raises:
        ConfigError: no such file, invalid YAML, an unknown key, a wrong type, or a value out of range.

    Example:
        >>> config = load_config(None, {"training.epochs": 3, "data.window_slices": 1})
        >>> config.training.epochs, config.data.window_slices
        (3, 1)
    """
    tree = read_yaml(_config_file(path)) if path is not None else {}
    return _validate(tree, overrides or {}, path or "config")


def _config_file(path: str | AnyPath) -> AnyPath:
    """Return the file at a path or, if there is none, the packaged config of that name."""
    file = as_path(path)
    if not re.fullmatch(r"[\w-]+", str(path)) or file.is_file():
        return file
    packaged = {config.stem: config for config in PACKAGED.glob("*.yaml")}
    if str(path) not in packaged:
        raise ConfigError(f"{path}: no such config; give a YAML file or one of {', '.join(sorted(packaged))}")
    return packaged[str(path)]


def with_overrides(config: Config, overrides: dict[str, Any], name: str | AnyPath) -> Config:
    """Change some keys of an experiment.

    Args:
        config: the experiment.
        overrides: dotted keys, see `load_config`.
        name: the name of the experiment in error messages.

    Returns:
        The validated experiment.

    Raises:
        ConfigError: an unknown key, a wrong type, or a value out of range.
    """
    return _validate(config.model_dump(mode="json"), overrides, name) if overrides else config


def _validate(tree: dict, overrides: dict[str, Any], name) -> Config:
    for key, value in overrides.items():
        _set_dotted(tree, key, value)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{name}: {_first_problem(error)}") from None


def save_config(config: Config, path: str | AnyPath) -> None:
    """Write an experiment, including defaults, as YAML that `load_config` can read.

    Args:
        config: the experiment.
        path: the YAML file; it is replaced atomically.
    """
    write_atomically(as_path(path), yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split `dotted.key=value`; the value is parsed as YAML.

    Raises:
        ConfigError: no equals sign, an empty key, or a value that is invalid YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{one_line(text)}: must have the form dotted.key=value, for example training.epochs=3")
    try:
        return key, parse_yaml(value)
    except ValueError:
        raise ConfigError(f"{one_line(text)}: the value is invalid YAML") from None


def read_yaml(path: AnyPath) -> dict:
    """Read a mapping from a YAML file; an empty file gives {}.

    Raises:
        ConfigError: no such file, invalid YAML, or not a mapping.
    """
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a YAML file") from None
    except ValueError as error:
        line = getattr(error, "line", None)
        raise ConfigError(f"{path}{f', line {line}' if line else ''}: invalid YAML ({error})") from None
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(f"{path}: must be a mapping of config keys, got a {type(tree).__name__}")
    return tree or {}


def _set_dotted(tree: dict, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for name in parents:
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
        if not isinstance(tree, dict):
            raise ConfigError(f"{one_line(key)}: {name} is {shown(tree)}, not a section of the config")
    tree[last] = value


def _first_problem(error: ValidationError) -> str:
    """Describe the first problem in one line: field, value and what is allowed."""
    problem = error.errors()[0]
    path = [one_line(str(part)) for part in problem["loc"]]
    if path == ["augment", "1"]:
        path[1] = "on"  # YAML 1.1 reads this key as true
    field = ".".join(path)
    renamed = _RENAMED_POSTPROCESS.get(path[-1]) if path[:1] == ["postprocess"] else _RENAMED.get(field)
    if renamed and problem["type"] in ("extra_forbidden", "invalid_key"):
        return f"{field} was renamed to {'.'.join([*path[:-1], renamed])}"
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        allowed = sorted(_fields_at(path[:-1]))
        near = difflib.get_close_matches(path[-1], allowed, n=1)
        hint = f"did you mean {'.'.join([*path[:-1], near[0]])}?" if near else f"allowed are {', '.join(allowed)}"
        return f"unknown key {field}; {hint}"
    if problem["type"] == "missing":
        return f"{'.'.join(path[:-1])} must have more values, got {shown(problem['input'])}"
    if problem["type"] == "model_type":
        keys = ", ".join(sorted(_fields_at(path)))
        return f"{field} must be a section with the keys {keys}, got {shown(problem['input'])}"
    what = re.sub(r"^(Value error, |Input |String |Tuple )", "", problem["msg"]).replace("should ", "must ")
    if not field:
        return what  # the message concerns several sections and names them
    return f"{field} {what}, got {shown(problem['input'])}" if what.startswith("must ") else f"{field}: {what}"


def _fields_at(path: list[str]) -> set[str]:
    model: Any = Config
    for name in path:
        if model is PostprocessConfig:
            model = LabelPostprocess
            continue
        annotation = model.model_fields[name].annotation
        model = next((a for a in (annotation, *get_args(annotation)) if isinstance(a, type)), annotation)
    return set(model.model_fields)
