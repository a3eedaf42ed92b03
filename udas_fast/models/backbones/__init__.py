"""Backbones: a normalised image to the maps of four stages."""

from udas_fast.models.backbones.base import Backbone, DropPath
from udas_fast.models.backbones.efficientnet import EfficientNetLite
from udas_fast.models.backbones.mit import MixTransformer
from udas_fast.models.backbones.vit import VisionTransformer

__all__ = ["Backbone", "DropPath", "EfficientNetLite", "MixTransformer", "VisionTransformer"]
