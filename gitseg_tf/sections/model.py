"""model: the network."""

from typing import Literal

from pydantic import Field

from gitseg_tf.sections.base import Section

Backbone = Literal[
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
]


class ModelConfig(Section):
    """The network."""

    architecture: Literal["unet"] = Field("unet", description="the decoder")
    backbone: Backbone = Field("plain", description="the encoder")
    weights: str | None = Field(None, min_length=1, description="of the encoder at the start: imagenet, or a file")
    filters: int = Field(16, ge=4, le=512, description="channels at full resolution of the plain backbone")
