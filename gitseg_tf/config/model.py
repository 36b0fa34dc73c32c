"""Config section `model`: the network; and the registries of networks, which import TensorFlow only when used."""

from pydantic import Field, ValidationInfo, field_validator, model_validator

from gitseg_tf.config.section import Section
from gitseg_tf.core.registry import Registry, suggestion

# Encoders: each row is a gitseg_tf.models.backbones.Backbone.
BACKBONES = Registry("backbone")
# Decoders of 2-D and 2.5-D networks: functions of (features, ModelConfig). Facts: `deep_supervision` (can return lower
# resolutions too), `dilates` (prefers a deepest feature of stride 16), `min_levels` (of the plain backbone).
DECODERS = Registry("decoder")
# 3-D networks, encoder included: functions of (inputs, ModelConfig, poolings).
NETWORKS_3D = Registry("3-D network")

for _module, _names in {
    "plain_encoder": ("plain",),
    "resnet": ("resnet18", "resnet34", "resnet50", "resnet101"),
    "applications": (
        *(f"efficientnetv2_{size}" for size in ("b0", "b1", "b2", "b3", "s", "m", "l")),
        "mobilenetv3",
    ),
    "efficientnet_lite": ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"),
    "convnext": ("convnext_tiny", "convnext_small"),
    "mit": ("mit_b0", "mit_b1", "mit_b2", "mit_b3"),
}.items():
    for _name in _names:
        BACKBONES.register(_name, f"gitseg_tf.models.backbones.{_module}:{_name}")

DECODERS.register("unet", "gitseg_tf.models.decoders.unet:unet")
DECODERS.register(
    "unetplusplus", "gitseg_tf.models.decoders.unetplusplus:unetplusplus", deep_supervision=True, min_levels=3
)
DECODERS.register("attention_unet", "gitseg_tf.models.decoders.attention_unet:attention_unet")
DECODERS.register("deeplabv3plus", "gitseg_tf.models.decoders.deeplab:deeplabv3plus", dilates=True, min_levels=3)
DECODERS.register("fpn", "gitseg_tf.models.decoders.fpn:fpn")
DECODERS.register("segformer", "gitseg_tf.models.decoders.segformer:segformer")

NETWORKS_3D.register("unet3d", "gitseg_tf.models.volumetric.unet3d:unet3d")
NETWORKS_3D.register("residual_unet3d", "gitseg_tf.models.volumetric.unet3d:residual_unet3d")


class ModelConfig(Section):
    """The network."""

    architecture: str = Field("unet", description="the decoder, or a 3-D network")
    backbone: str = Field("plain", description="the encoder")
    pretrained: str | None = Field(
        None, min_length=1, description="initial weights of the encoder: imagenet, or a file"
    )
    init: str | None = Field(
        None, min_length=1, description="initial weights of the network: a run, a cross-validation, or an .h5 file"
    )
    filters: int = Field(
        16, ge=4, le=512, description="channels at full resolution of the plain backbone or of a 3-D network"
    )
    levels: int = Field(5, ge=2, le=6, description="resolutions of the plain backbone or of a 3-D network")
    presence_head: bool = Field(False, description="a second head predicts which labels the segmented slice shows")
    deep_supervision: bool = Field(False, description="also compute logits at lower resolutions, for the loss")
    dropout: float = Field(0.0, ge=0, lt=1, description="fraction of values dropped before the logits in training")

    @field_validator("architecture")
    @classmethod
    def _known_architecture(cls, value: str) -> str:
        if value not in DECODERS and value not in NETWORKS_3D:
            raise ValueError(f"must be a registered architecture; {suggestion(value, [*DECODERS, *NETWORKS_3D])}")
        return value

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, value: str) -> str:
        if value not in BACKBONES:
            raise ValueError(f"must be a registered backbone; {suggestion(value, BACKBONES)}")
        return value

    @field_validator("deep_supervision")
    @classmethod
    def _has_lower_resolutions(cls, value: bool, info: ValidationInfo) -> bool:
        able = (*DECODERS.names(deep_supervision=True), *NETWORKS_3D)
        architecture = info.data.get("architecture")
        if value and architecture is not None and architecture not in able:
            names = ", ".join(able)
            raise ValueError(f"must be false for {architecture}; architectures with deep supervision are {names}")
        return value

    @model_validator(mode="after")
    def _one_source(self):
        if self.init is not None and self.pretrained is not None:
            raise ValueError(
                f"init is {self.init} and pretrained is {self.pretrained}, but a network starts from one of them; "
                "set the other to null"
            )
        return self

    @model_validator(mode="after")
    def _enough_levels(self):
        if self.backbone != "plain" or self.architecture not in DECODERS:
            return self
        least = DECODERS.facts(self.architecture).get("min_levels", 1) + self.deep_supervision
        if self.levels < least:
            raise ValueError(f"levels is {self.levels}, but {self.architecture} needs at least {least}")
        return self
