"""Config section `augment`: random transforms of training windows."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from gitseg_tf.config.section import Section


class _Transform(Section):
    """One random transform of a window."""

    p: float = Field(0.0, ge=0, le=1, description="probability")


class FlipConfig(_Transform):
    """Horizontal flip."""

    p: float = Field(0.5, ge=0, le=1)


class AffineConfig(_Transform):
    """Translation, scaling and rotation."""

    p: float = Field(0.5, ge=0, le=1)
    shift: float = Field(0.0625, ge=0, le=0.5, description="maximum, as a fraction of height and width")
    scale: float = Field(0.1, ge=0, le=0.9, description="maximum relative change of size")
    rotate: float = Field(10.0, ge=0, le=180, description="maximum, degrees")


class TiltConfig(_Transform):
    """A shear through a 3-D patch: each slice is shifted in proportion to its distance from the middle."""

    shift: float = Field(
        0.15, ge=0, le=0.5, description="maximum of the outermost slices, as a fraction of height and width"
    )


class ElasticConfig(_Transform):
    """A smooth random displacement."""

    p: float = Field(0.125, ge=0, le=1)
    displacement: float = Field(0.01, ge=0, le=0.2, description="root mean square, as a fraction of height and width")
    nodes: int = Field(5, ge=2, le=32, description="spans of the cubic B-spline along each axis")


class GridConfig(_Transform):
    """Grid distortion: rows and columns are stretched and squeezed."""

    p: float = Field(0.125, ge=0, le=1)
    distortion: float = Field(0.05, ge=0, le=0.9, description="maximum relative change of a cell's size")
    nodes: int = Field(5, ge=2, le=32, description="cells along each axis")


class LowResolutionConfig(_Transform):
    """Downsampling and upsampling."""

    zoom: float = Field(0.5, gt=0, le=1, description="minimum; 1 is full resolution")


class BlurConfig(_Transform):
    """Gaussian blur."""

    sigma: float = Field(1.0, gt=0, le=5, description="maximum, pixels")


class BiasFieldConfig(_Transform):
    """A smooth multiplicative field, like that of a receive coil."""

    strength: float = Field(0.3, ge=0, le=2, description="maximum logarithm of the field")


class BrightnessConfig(_Transform):
    """Add a constant."""

    shift: float = Field(0.1, ge=0, le=1, description="maximum")


class ContrastConfig(_Transform):
    """Scale intensities about the window's mean."""

    factor: float = Field(0.25, ge=0, lt=1, description="maximum relative change")


class GammaConfig(_Transform):
    """Raise intensities to a power."""

    exponent: float = Field(1.4, ge=1, le=4, description="maximum; the minimum is its inverse")


class NoiseConfig(_Transform):
    """Gaussian noise."""

    std: float = Field(0.05, ge=0, le=1, description="maximum standard deviation")


class DropoutConfig(_Transform):
    """Set rectangles of the image, not of the mask, to 0 (coarse dropout, cutout)."""

    p: float = Field(0.5, ge=0, le=1)
    holes: int = Field(2, ge=1, le=64, description="maximum number of holes")
    size: tuple[float, float] = Field((0.1, 0.2), description="minimum and maximum side, as a fraction of the window's")

    @field_validator("size")
    @classmethod
    def _rising_fractions(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError("must be two fractions between 0 and 1, the smaller first")
        return value


class MixConfig(_Transform):
    """Mix two windows of a batch: MixUp blends them, CutMix pastes a rectangle of one into the other."""

    alpha: float = Field(1.0, gt=0, le=10, description="parameter of the Beta distribution of the mixing weight")


class AugmentConfig(Section):
    """Random transforms of a training window, in this order; image and mask are warped together."""

    backend: Literal["opencv", "tensorflow"] = "opencv"
    tensorflow_warp: Literal["gather", "addons"] = "gather"
    flip: FlipConfig = FlipConfig()
    affine: AffineConfig = AffineConfig()
    tilt: TiltConfig = TiltConfig()
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
            raise ValueError("elastic.p and grid.p are mutually exclusive, so their sum must be at most 1")
        return self
