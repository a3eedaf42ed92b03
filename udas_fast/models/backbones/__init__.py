"""Backbones: a normalised image to the maps of four stages."""

from udas_fast.models.backbones.base import Backbone, DropPath, Maps
from udas_fast.models.backbones.build import BACKBONES, build_backbone
from udas_fast.models.backbones.drn import DRN
from udas_fast.models.backbones.efficientnet import EfficientNetLite
from udas_fast.models.backbones.mit import MixTransformer
from udas_fast.models.backbones.resnet import ResNet
from udas_fast.models.backbones.vit import VisionTransformer

__all__ = [
    "BACKBONES",
    "DRN",
    "Backbone",
    "DropPath",
    "EfficientNetLite",
    "Maps",
    "MixTransformer",
    "ResNet",
    "VisionTransformer",
    "build_backbone",
]
