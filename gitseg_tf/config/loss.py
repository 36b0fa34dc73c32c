"""Config section `training.loss`: the loss that training minimizes."""

from typing import Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from gitseg_tf.config.section import Section
from gitseg_tf.core.registry import Registry, suggestion

Over = Literal["batch", "sample"]
# Loss terms: functions with the signature described in gitseg_tf.training.losses.term. The fact `section` is the
# subclass of LossTerm that holds the term's options.
LOSSES = Registry("loss term")
_LOSSES = "gitseg_tf.training.losses"
# Which networks of a teacher predict a scan: those that were not trained on its patient, or all.
TEACHER_MEMBERS = ("unseen", "all")


class LossTerm(Section):
    """One term of the loss. A custom term defines a subclass with its own options.

    Attributes:
        function: "module:function" of a built-in term.
    """

    function: ClassVar[str] = ""
    weight: float = Field(0.0, ge=0, description="factor of this term; 0 leaves it out")


class BceConfig(LossTerm):
    """Binary cross-entropy."""

    function: ClassVar[str] = f"{_LOSSES}.pixels:bce"
    weight: float = Field(1.0, ge=0)
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing: 1 becomes 1 - smoothing / 2")


class DiceConfig(LossTerm):
    """Soft Dice."""

    function: ClassVar[str] = f"{_LOSSES}.regions:dice"
    weight: float = Field(1.0, ge=0)
    reduce_over: Over = Field("batch", description="reduce over the voxels of the whole batch, or of each sample")


class TverskyConfig(LossTerm):
    """Dice with different costs of false positives and false negatives."""

    function: ClassVar[str] = f"{_LOSSES}.regions:tversky"
    alpha: float = Field(0.3, gt=0, le=10, description="cost of a false positive; alpha = beta = 0.5 is Dice")
    beta: float = Field(0.7, gt=0, le=10, description="cost of a false negative")
    reduce_over: Over = "batch"


class FocalTverskyConfig(TverskyConfig):
    """The Tversky loss raised to a power."""

    function: ClassVar[str] = f"{_LOSSES}.regions:focal_tversky"
    gamma: float = Field(1.333, ge=1, le=3, description="the loss is the Tversky loss to the power of 1 / gamma")


class FocalConfig(LossTerm):
    """Cross-entropy that gives well-predicted voxels less weight."""

    function: ClassVar[str] = f"{_LOSSES}.pixels:focal"
    alpha: float = Field(0.25, gt=0, lt=1, description="weight of voxels inside a label; 1 - alpha outside")
    gamma: float = Field(2.0, ge=0, le=10, description="0 is cross-entropy weighted by alpha")


class LovaszConfig(LossTerm):
    """Lovasz hinge, computed for each sample and label."""

    function: ClassVar[str] = f"{_LOSSES}.regions:lovasz"


class TopKConfig(LossTerm):
    """Cross-entropy of the hardest voxels of each sample."""

    function: ClassVar[str] = f"{_LOSSES}.pixels:top_k"
    fraction: float = Field(0.1, gt=0, le=1, description="fraction of the voxels of all labels")


class BoundaryConfig(LossTerm):
    """Wrong probability times distance from the label's boundary."""

    function: ClassVar[str] = f"{_LOSSES}.regions:boundary"
    reach: int = Field(16, ge=1, le=64, description="in voxels; the cost is constant beyond this distance")


class PresenceConfig(Section):
    """Cross-entropy of the presence head, if the network has one."""

    weight: float = Field(0.1, ge=0)


class DistillationConfig(Section):
    """Loss against the probabilities of a teacher, if the dataset has them (`gitseg distill`)."""

    weight: float = Field(0.5, ge=0, le=1, description="weight w of the teacher; that of the annotation is 1 - w")


class DeepConfig(Section):
    """Deep supervision: loss of the outputs at lower resolutions, if the network has them."""

    decay: float = Field(0.5, ge=0, le=1, description="weight of a level relative to the one above; their sum is 1")


class LossConfig(Section):
    """The weighted sum of terms that training minimizes."""

    empty_labels: Literal["count", "skip"] = Field("count", description="how to treat labels absent from the reference")
    bce: BceConfig = BceConfig()
    dice: DiceConfig = DiceConfig()
    tversky: TverskyConfig = TverskyConfig()
    focal_tversky: FocalTverskyConfig = FocalTverskyConfig()
    focal: FocalConfig = FocalConfig()
    lovasz: LovaszConfig = LovaszConfig()
    top_k: TopKConfig = TopKConfig()
    boundary: BoundaryConfig = BoundaryConfig()
    custom: dict[str, SerializeAsAny[LossTerm]] = Field({}, description="terms from outside the package, by name")
    presence: PresenceConfig = PresenceConfig()
    deep: DeepConfig = DeepConfig()
    distillation: DistillationConfig = DistillationConfig()

    @property
    def terms(self) -> dict[str, LossTerm]:
        """The terms with a weight above 0, by name."""
        built_in = {name: getattr(self, name) for name in type(self).model_fields}
        terms = {name: term for name, term in built_in.items() if isinstance(term, LossTerm)} | self.custom
        return {name: term for name, term in terms.items() if term.weight > 0}

    @field_validator("custom", mode="before")
    @classmethod
    def _registered_terms(cls, value: Any) -> Any:
        if value is not None and not isinstance(value, dict):
            raise ValueError("must map names of registered loss terms to their sections")
        return {name: cls._custom_term(name, section) for name, section in (value or {}).items()}

    @classmethod
    def _custom_term(cls, name: str, section: Any) -> LossTerm:
        others = [other for other in LOSSES if other not in cls.model_fields]
        if name not in others:
            hint = suggestion(name, others) if others else "register it in gitseg_tf.config.loss.LOSSES first"
            raise ValueError(f"must contain registered loss terms only, not {name!r}; {hint}")
        if isinstance(section, LossTerm):
            return section
        try:
            return LOSSES.facts(name).get("section", LossTerm).model_validate(section)
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(map(str, (name, *problem["loc"])))
            raise ValueError(f"must have a valid {key}, not {problem['input']!r} ({problem['msg']})") from None

    @model_validator(mode="after")
    def _minimizes_something(self):
        if not self.terms:
            raise ValueError("must have a positive weight for bce, dice or another term on the logits")
        return self


for _name, _field in LossConfig.model_fields.items():
    if isinstance(_field.default, LossTerm):
        LOSSES.register(_name, _field.default.function, section=type(_field.default))
