"""postprocess: what is done to each organ's probabilities and mask; all off by default."""

from pydantic import Field

from gitseg_tf.sections.base import Section


class OrganConfig(Section):
    """The steps for an organ, in the order in which they are made."""

    smooth_mm: float = Field(0.0, ge=0, description="standard deviation of a Gaussian across slices; 0 is none")
    threshold: float | None = Field(None, gt=0, lt=1, description="of this organ; null is evaluation.threshold")
    fill_holes: bool = Field(False, description="holes are filled slice by slice")
    smallest_ml: float = Field(0.0, ge=0, description="smaller 3-D components are removed; 0 removes none")
    largest_only: bool = Field(False, description="all 3-D components but the largest are removed")
    gap_mm: float = Field(0.0, ge=0, description="slices beyond a larger gap without organ are removed; 0 removes none")


class PostprocessConfig(Section):
    """From probabilities to masks, organ by organ."""

    large_bowel: OrganConfig = OrganConfig()
    small_bowel: OrganConfig = OrganConfig()
    stomach: OrganConfig = OrganConfig()
