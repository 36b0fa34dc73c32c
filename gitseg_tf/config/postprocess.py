"""Config section `postprocess`: post-processing of each label; everything is off by default."""

import difflib
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from gitseg_tf.config.section import Section
from gitseg_tf.errors import ConfigError
from gitseg_tf.labels import LabelSet

DEFAULT = "default"


class LabelPostprocess(Section):
    """The post-processing steps of one label, in the order in which they are applied."""

    smooth_mm: float = Field(0.0, ge=0, description="standard deviation of a Gaussian across slices; 0 does not smooth")
    threshold: float | None = Field(
        None, gt=0, lt=1, description="threshold of this label; null takes evaluation.threshold"
    )
    min_presence: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="remove the label from slices with a lower probability of the presence head; 0 removes none",
    )
    fill_single_gaps: bool = Field(False, description="fill one slice without the label between two with it")
    fill_holes: bool = Field(False, description="fill holes slice by slice")
    min_component_ml: float = Field(0.0, ge=0, description="remove smaller 3-D components; 0 removes none")
    keep_largest_component: bool = Field(False, description="remove all 3-D components but the largest")
    min_adjacent_slices: int = Field(
        0, ge=0, description="remove the label from fewer adjacent slices than this; 0 removes none"
    )
    max_gap_mm: float = Field(
        0.0, ge=0, description="remove slices beyond a larger gap without the label; 0 removes none"
    )


class PostprocessConfig(Section):
    """Settings of post-processing: `default` for every label, and a section for each label that differs.

    A key that a label's section omits falls back to `default`.

    Example:
        >>> config = PostprocessConfig(default={"fill_holes": True}, stomach={"threshold": 0.4})
        >>> config.of("stomach").fill_holes, config.of("stomach").threshold, config.of("liver").threshold
        (True, 0.4, None)
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, LabelPostprocess]

    default: LabelPostprocess = LabelPostprocess()

    @model_validator(mode="before")
    @classmethod
    def _fall_back_to_default(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        default = value.get(DEFAULT)
        if isinstance(default, LabelPostprocess):
            default = default.model_dump()
        if not isinstance(default, dict):
            default = {}
        return {
            name: default | (section or {}) if name != DEFAULT and isinstance(section, dict | None) else section
            for name, section in value.items()
        }

    @property
    def labels(self) -> dict[str, LabelPostprocess]:
        """The labels that have a section of their own."""
        return dict(self.__pydantic_extra__ or {})

    def of(self, label: str) -> LabelPostprocess:
        """Return the settings of a label."""
        return self.labels.get(label, self.default)

    @property
    def is_off(self) -> bool:
        """True if no label has a step or a threshold of its own."""
        return all(section == LabelPostprocess() for section in (self.default, *self.labels.values()))

    def check_presence(self, labels: LabelSet, gates_slices: bool) -> None:
        """Check that min_presence is only used with a presence head for axial slices.

        Args:
            labels: the labels of the run.
            gates_slices: `Config.gates_slices`.

        Raises:
            ConfigError: a label has min_presence, but the network does not predict which axial slices show it.
        """
        for name in labels.names if not gates_slices else ():
            if least := self.of(name).min_presence:
                section = name if name in self.labels else DEFAULT
                fix = "set it to 0, or set model.presence_head to true (axial 2-D and 2.5-D networks only)"
                raise ConfigError(
                    f"postprocess.{section}.min_presence is {least}, but the network has no presence head for axial "
                    f"slices; {fix}"
                )

    def check_labels(self, labels: LabelSet) -> None:
        """Check that every section names a label of the run.

        Raises:
            ConfigError: a section for an unknown label; the message suggests a similar name.
        """
        for name in self.labels:
            if name not in labels.names:
                near = difflib.get_close_matches(name, (*labels.names, DEFAULT), n=1)
                hint = f"did you mean {near[0]}?" if near else f"labels are {', '.join(labels.names)}"
                raise ConfigError(f"postprocess.{name}: unknown label; {hint}")
