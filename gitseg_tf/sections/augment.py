"""augment: the random changes of a training window."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from gitseg_tf.sections.base import Section


class _Transform(Section):
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


class AugmentConfig(Section):
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
