"""evaluation: from probabilities to scores."""

from pydantic import Field, field_validator

from gitseg_tf.sections.base import Section


class TtaConfig(Section):
    """Test-time augmentation: each scan is also predicted changed, and the probabilities are averaged."""

    flip: bool = Field(False, description="left and right change places; for networks that were trained so")
    scales: tuple[float, ...] = Field((), description="in-plane sizes of the scan beside its own, such as [0.9, 1.1]")

    @field_validator("scales")
    @classmethod
    def _sizes_beside_its_own(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0.5 <= scale <= 2 and scale != 1 for scale in value) or len(set(value)) < len(value):
            raise ValueError("must be different numbers from 0.5 to 2, without 1, which is always there")
        return value


class EvaluationConfig(Section):
    """How predictions become masks and masks become scores."""

    threshold: float = Field(0.5, gt=0, lt=1, description="probability of a voxel inside; postprocess may differ")
    tolerance_mm: float = Field(3.0, gt=0, description="of the surface Dice")
    batch_size: int = Field(16, ge=1, description="windows predicted at once")
    overlap: float = Field(0.5, ge=0, le=0.9, description="share by which tiles and patches overlap")
    tta: TtaConfig = TtaConfig()
