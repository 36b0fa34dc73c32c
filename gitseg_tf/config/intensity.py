"""Config key `data.intensity`: how the intensities of a channel are mapped to [0, 1]."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import (
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)

from gitseg_tf.config.section import Section
from gitseg_tf.errors import ConfigError

# The percentiles stored with each scan, see gitseg_tf.data.volume.PERCENTILES.
STORED_PERCENTILES = (0, 0.5, 1, 5, 25, 50, 75, 95, 99, 99.5, 100)


class PercentilesIntensity(Section):
    """Percentiles of the scan: `low` becomes 0, `high` becomes 1. This is the default and suits MR."""

    kind: Literal["percentiles"] = "percentiles"
    low: float = Field(1.0, description="percentile that becomes 0")
    high: float = Field(99.0, description="percentile that becomes 1")

    @field_validator("low", "high")
    @classmethod
    def _is_stored(cls, value: float) -> float:
        if value not in STORED_PERCENTILES:
            raise ValueError(f"must be one of the stored percentiles {', '.join(map(str, STORED_PERCENTILES))}")
        return value

    @model_validator(mode="after")
    def _rises(self):
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        return self


class WindowIntensity(Section):
    """An intensity window in the files' units, such as Hounsfield units: either level and width, or low and high."""

    kind: Literal["window"] = "window"
    level: float | None = Field(None, description="middle of the window")
    width: float | None = Field(None, gt=0, description="width of the window")
    low: float | None = Field(None, description="intensity that becomes 0")
    high: float | None = Field(None, description="intensity that becomes 1")

    @model_validator(mode="after")
    def _one_form(self):
        given = {name for name in ("level", "width", "low", "high") if getattr(self, name) is not None}
        if given not in ({"level", "width"}, {"low", "high"}):
            raise ValueError("a window needs either level and width, or low and high")
        if self.bounds[0] >= self.bounds[1]:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """(low, high): the intensities that become 0 and 1."""
        if self.level is not None and self.width is not None:
            return self.level - self.width / 2, self.level + self.width / 2
        assert self.low is not None and self.high is not None
        return self.low, self.high


class ZscoreIntensity(Section):
    """The scan's mean minus and plus 5 standard deviations become 0 and 1."""

    kind: Literal["zscore"] = "zscore"


class DatasetIntensity(Section):
    """Like zscore, with the mean and standard deviation of the dataset's annotated voxels, filled in by training."""

    kind: Literal["dataset"] = "dataset"
    mean: float | None = Field(None, description="null takes the mean of the dataset")
    std: float | None = Field(None, gt=0, description="null takes the standard deviation of the dataset")

    @model_validator(mode="after")
    def _both_or_none(self):
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together")
        return self


ChannelIntensity = PercentilesIntensity | WindowIntensity | ZscoreIntensity | DatasetIntensity
_MODELS: dict[str, type[Section]] = {
    "percentiles": PercentilesIntensity,
    "window": WindowIntensity,
    "zscore": ZscoreIntensity,
    "dataset": DatasetIntensity,
}


class ChannelStatistics(Protocol):
    """Statistics of a channel over the annotated voxels of a dataset."""

    @property
    def mean(self) -> float: ...

    @property
    def std(self) -> float: ...


def _read(tree: Any) -> Any:
    if isinstance(tree, list | tuple):
        if not tree:
            raise ValueError("must have one mapping per channel, or be null")
        return tuple(_read_channel(item, f"[{i}]") for i, item in enumerate(tree))
    return None if tree is None else _read_channel(tree, "")


def _read_channel(tree: Any, where: str) -> ChannelIntensity:
    if isinstance(tree, Section):
        return tree  # type: ignore[return-value]
    kind = tree.get("kind") if isinstance(tree, dict) else None
    if kind not in _MODELS:
        got = repr(kind) if isinstance(tree, dict) else repr(tree)
        raise ValueError(
            f"must be a mapping with one of the kinds {', '.join(_MODELS)}{where and f' at {where}'}, got {got}"
        )
    try:
        return _MODELS[kind].model_validate(tree)  # type: ignore[return-value]
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ").replace("should", "must")
        if problem["type"] == "extra_forbidden":
            fields = ", ".join(_MODELS[kind].model_fields)
            raise ValueError(f"has an unknown key {key!r}{where and f' at {where}'}; allowed are {fields}") from None
        raise ValueError(f"is invalid{where and f' at {where}'}: {key}{': ' if key else ''}{message}") from None


def _dump(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_dump(item) for item in value]
    return None if value is None else value.model_dump(mode="json", exclude_none=True)


# null, one mapping for all channels, or a list of one mapping per channel.
IntensitySetting = Annotated[
    ChannelIntensity | tuple[ChannelIntensity, ...] | None, PlainValidator(_read), PlainSerializer(_dump)
]


def resolve_intensity(
    setting: IntensitySetting, channels: tuple[str, ...], intensities: Sequence[ChannelStatistics] | None
) -> IntensitySetting:
    """Check data.intensity against the channels of a dataset, and fill in the dataset's statistics.

    Args:
        setting: data.intensity of a config.
        channels: names of the dataset's channels.
        intensities: mean and std of each channel's annotated voxels; None leaves entries of kind dataset unchanged.

    Returns:
        The setting; one entry per channel if any statistics were filled in, otherwise as given.

    Raises:
        ConfigError: the number of entries differs from the number of channels.

    Example:
        >>> resolve_intensity(WindowIntensity(level=40, width=400), ("ct",), None).bounds
        (-160.0, 240.0)
    """
    if isinstance(setting, tuple) and len(setting) != len(channels):
        raise ConfigError(
            f"data.intensity has {len(setting)} entries, but the dataset has {len(channels)} channels "
            f"({', '.join(channels)}); give one entry per channel, or one mapping for all"
        )
    if setting is None:
        return None
    entries = setting if isinstance(setting, tuple) else (setting,) * len(channels)
    if intensities is None or not any(isinstance(one, DatasetIntensity) and one.mean is None for one in entries):
        return setting
    return tuple(
        DatasetIntensity(mean=known.mean, std=known.std if known.std > 0 else 1.0)
        if isinstance(one, DatasetIntensity) and one.mean is None
        else one
        for one, known in zip(entries, intensities, strict=True)
    )
