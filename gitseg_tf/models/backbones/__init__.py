"""Encoders, from a window to features at decreasing resolution; config.model.BACKBONES lists them."""

from gitseg_tf.config.model import BACKBONES
from gitseg_tf.models.backbones.backbone import Backbone, Published, encoder_of, encoder_variables

__all__ = ["BACKBONES", "Backbone", "Published", "encoder_of", "encoder_variables"]
