"""model: the network."""

from typing import Literal

from pydantic import Field

from gitseg_tf.sections.base import Section


class ModelConfig(Section):
    """The network."""

    architecture: Literal["unet", "unet3d", "residual_unet3d"] = Field("unet", description="the decoder")
    backbone: Literal["plain", "resnet34"] = Field("plain", description="the encoder")
    filters: int = Field(16, ge=4, le=512, description="channels at full resolution of the plain backbone")
    deep_supervision: bool = Field(False, description="lower resolutions of the decoder give logits too")
