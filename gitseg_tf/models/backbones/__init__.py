"""Encoders, from a window to features at decreasing resolution; config.model.BACKBONES lists them."""

from gitseg_tf.config.model import BACKBONES
from gitseg_tf.models.backbones.backbone import Backbone, Packaged, Published, encoder_of, encoder_variables

__all__ = ["BACKBONES", "Backbone", "Packaged", "Published", "encoder_of", "encoder_variables"]
