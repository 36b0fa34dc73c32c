"""Config section `evaluation`: from probabilities to scores."""

from pydantic import Field, field_validator

from gitseg_tf.config.section import Section
from gitseg_tf.core.registry import Registry

# The metrics that can choose settings and weights, all of them better when higher. Those that are means of whole scans
# have a class that computes them during training; `dice` is measured there on the batches of the validation.
METRICS = Registry("metric")
METRICS.register("dice", "gitseg_tf.evaluation.held_out:HeldOutScorer", whole_scans=False, title="Dice")
for _name, _title in (
    ("score", "competition score"),
    ("score_volume", "competition score, form of public notebooks"),
    ("surface_dice", "surface Dice"),
):
    METRICS.register(_name, "gitseg_tf.evaluation.held_out:HeldOutScorer", whole_scans=True, title=_title)


class TtaConfig(Section):
    """Test-time augmentation: transformed copies of each scan are predicted too, and the probabilities averaged."""

    flip: bool = Field(False, description="horizontal flip; for networks that were trained with flips")
    scales: tuple[float, ...] = Field((), description="additional in-plane scales of the scan, such as [0.9, 1.1]")

    @field_validator("scales")
    @classmethod
    def _sizes_beside_its_own(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0.5 <= scale <= 2 and scale != 1 for scale in value) or len(set(value)) < len(value):
            raise ValueError("must be distinct numbers from 0.5 to 2, without 1, which is always included")
        return value


class EvaluationConfig(Section):
    """How predictions become masks and masks become scores."""

    metric: str = Field("dice", description="what tune, grid, early stopping and the best checkpoint maximize")
    threshold: float = Field(0.5, gt=0, lt=1, description="minimum probability of a voxel that belongs to a label")
    tolerance_mm: float = Field(3.0, gt=0, description="tolerance of the surface Dice")
    batch_size: int = Field(16, ge=1, description="windows predicted at once")
    overlap: float = Field(0.5, ge=0, le=0.9, description="fraction by which adjacent tiles or patches overlap")
    tta: TtaConfig = TtaConfig()

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str) -> str:
        return METRICS.check(value)

    @property
    def whole_scans(self) -> bool:
        """Whether validation has to predict whole scans to compute the metric."""
        return bool(METRICS.facts(self.metric)["whole_scans"])

    @property
    def monitored(self) -> str:
        """The column of the history with the metric: val_dice, val_score, ..."""
        return f"val_{self.metric}"
