"""Heads: the four maps of a backbone to logits."""

from udas_fast.models.heads.daformer import DAFormerHead
from udas_fast.models.heads.pyramid import FPNHead, SegFormerHead
from udas_fast.models.heads.vit import DPTHead, LinearHead, UpscalingHead

__all__ = ["DAFormerHead", "DPTHead", "FPNHead", "LinearHead", "SegFormerHead", "UpscalingHead"]
