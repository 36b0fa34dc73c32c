"""training.loss: what a training minimises."""

from typing import Literal

from pydantic import Field, model_validator

from gitseg_tf.sections.base import Section

Over = Literal["batch", "sample"]


class _Term(Section):
    """One summand of the loss."""

    weight: float = Field(0.0, ge=0, description="factor of this term; 0 leaves it out")


class BceConfig(_Term):
    """Binary cross-entropy."""

    weight: float = Field(1.0, ge=0)
    smoothing: float = Field(0.0, ge=0, lt=1, description="of the labels: 1 becomes 1 - smoothing / 2")


class DiceConfig(_Term):
    """Soft Dice."""

    weight: float = Field(1.0, ge=0)
    per: Over = Field("batch", description="pixels of the whole batch counted together, or each sample alone")


class TverskyConfig(_Term):
    """Dice with false positives and false negatives of unlike cost."""

    alpha: float = Field(0.3, gt=0, le=10, description="cost of a false positive; alpha = beta = 0.5 is Dice")
    beta: float = Field(0.7, gt=0, le=10, description="cost of a false negative")
    per: Over = "batch"


class FocalTverskyConfig(TverskyConfig):
    """The Tversky loss to a power."""

    gamma: float = Field(1.333, ge=1, le=3, description="the loss is the Tversky loss to the power of 1 / gamma")


class FocalConfig(_Term):
    """Cross-entropy in which a pixel counts less the better it is predicted."""

    alpha: float = Field(0.25, gt=0, lt=1, description="weight of organ pixels, 1 - alpha is that of the others")
    gamma: float = Field(2.0, ge=0, le=10, description="0 is cross-entropy weighted by alpha")


class LovaszConfig(_Term):
    """Lovasz hinge, of each sample and organ."""


class TopKConfig(_Term):
    """Cross-entropy of the hardest pixels of each sample."""

    share: float = Field(0.1, gt=0, le=1, description="of the pixels of all organs")


class BoundaryConfig(_Term):
    """Wrong probability times the distance from the organ's outline."""

    reach: int = Field(16, ge=1, le=64, description="pixels; farther ones cost as much as those at this distance")


class PresenceConfig(_Term):
    """Cross-entropy of the head that says which organs are there, where the network has one."""

    weight: float = Field(0.1, ge=0)


class DeepConfig(Section):
    """Outputs at lower resolutions, where the network has them."""

    factor: float = Field(0.5, ge=0, le=1, description="weight of a level over that of the one above; their sum is 1")


class LossConfig(Section):
    """The weighted sum that a training minimises."""

    empty_organs: Literal["count", "skip"] = Field("count", description="organs absent from the reference")
    bce: BceConfig = BceConfig()
    dice: DiceConfig = DiceConfig()
    tversky: TverskyConfig = TverskyConfig()
    focal_tversky: FocalTverskyConfig = FocalTverskyConfig()
    focal: FocalConfig = FocalConfig()
    lovasz: LovaszConfig = LovaszConfig()
    top_k: TopKConfig = TopKConfig()
    boundary: BoundaryConfig = BoundaryConfig()
    presence: PresenceConfig = PresenceConfig()
    deep: DeepConfig = DeepConfig()

    @property
    def terms(self) -> dict[str, _Term]:
        """The terms of the logits that count, by name; presence is of another output."""
        sections = {name: getattr(self, name) for name in type(self).model_fields if name != "presence"}
        return {name: term for name, term in sections.items() if isinstance(term, _Term) and term.weight > 0}

    @model_validator(mode="after")
    def _minimises_something(self):
        if not self.terms:
            raise ValueError("must have a weight above 0 for bce, dice or another term of the logits")
        return self
