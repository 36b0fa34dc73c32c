"""evaluation: from probabilities to scores."""

from pydantic import Field

from gitseg_tf.sections.base import Section


class EvaluationConfig(Section):
    """How predictions become masks and masks become scores."""

    threshold: float = Field(0.5, gt=0, lt=1, description="probability of a voxel inside; postprocess may differ")
    tolerance_mm: float = Field(3.0, gt=0, description="of the surface Dice")
    batch_size: int = Field(16, ge=1, description="windows predicted at once")
