"""model: the network."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from gitseg_tf.sections.base import Section

ARCHITECTURES = ("unet", "unetplusplus", "attention_unet", "deeplabv3plus", "fpn", "segformer")
VOLUMETRIC = ("unet3d", "residual_unet3d")
DEEPLY_SUPERVISED = ("unetplusplus", *VOLUMETRIC)
BACKBONES = (
    "plain",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "efficientnetv2_b0",
    "efficientnetv2_b1",
    "efficientnetv2_b2",
    "efficientnetv2_b3",
    "efficientnetv2_s",
    "efficientnetv2_m",
    "efficientnetv2_l",
    "convnext_tiny",
    "convnext_small",
    "mobilenetv3",
    "mit_b0",
    "mit_b1",
    "mit_b2",
    "mit_b3",
)


class ModelConfig(Section):
    """The network."""

    architecture: Literal[ARCHITECTURES + VOLUMETRIC] = Field("unet", description="the decoder")
    backbone: Literal[BACKBONES] = Field("plain", description="the encoder")
    weights: str | None = Field(None, min_length=1, description="of the encoder at the start: imagenet, or a file")
    filters: int = Field(16, ge=4, le=512, description="channels at full resolution of the plain backbone")
    levels: int = Field(5, ge=2, le=6, description="resolutions of the plain backbone, each half the one above")
    presence: bool = Field(False, description="a second head says which organs are in the window")
    deep_supervision: bool = Field(False, description="logits at lower resolutions too, for the loss")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of values dropped before the logits in training")

    @field_validator("deep_supervision")
    @classmethod
    def _has_lower_resolutions(cls, value: bool, info: ValidationInfo) -> bool:
        architecture = info.data.get("architecture", *DEEPLY_SUPERVISED[:1])
        if value and architecture not in DEEPLY_SUPERVISED:
            able = ", ".join(DEEPLY_SUPERVISED)
            raise ValueError(f"must be false for {architecture}; architectures with deep supervision are {able}")
        return value

    @model_validator(mode="after")
    def _enough_levels(self):
        least = 4 if self.deep_supervision else 3
        if self.backbone == "plain" and self.levels < least and self.architecture in ("deeplabv3plus", "unetplusplus"):
            raise ValueError(f"levels is {self.levels}: {self.architecture} needs {least} or more")
        return self
