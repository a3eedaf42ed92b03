"""Light heads for pyramids: a feature pyramid network, and SegFormer's head of linear layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.models.backbones.base import Four, Maps
from udas_fast.models.norm import head_norm


class FPNHead(nn.Module):
    """Feature pyramid (Lin et al., CVPR 2017) to one map at the finest stride, and a classifier on it.

    1x1 convolutions bring the maps to ``inner`` channels, each is added to the upsampled coarser one, a 3x3
    convolution follows.
    """

    def __init__(
        self, channels: Four, num_classes: int, *, inner: int = 128, norm: str, dropout: float
    ) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(_conv(c, inner, 1, norm) for c in channels)
        self.smooth = _conv(inner, inner, 3, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(inner, num_classes, 1)

    def forward(self, maps: Maps) -> Tensor:
        """Return logits [N, num_classes, h, w] at the first map's size."""
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        y = levels.pop()
        while levels:
            finer = levels.pop()
            y = finer + resize(y, finer)
        return self.classifier(self.dropout(self.smooth(y)))


class SegFormerHead(nn.Module):
    """SegFormer's decoder (Xie et al., NeurIPS 2021): linear layers map by map, fused at the finest stride.

    inner: channels of each map's projection; 256 with MiT-B0 and -B1, 768 with the larger ones.
    """

    def __init__(
        self, channels: Four, num_classes: int, *, inner: int = 256, norm: str, dropout: float
    ) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(c, inner, 1) for c in channels)
        self.fuse = nn.Conv2d(4 * inner, inner, 1, bias=False)
        self.norm = head_norm(norm)(inner)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(inner, num_classes, 1)

    def forward(self, maps: Maps) -> Tensor:
        """Return logits [N, num_classes, h, w] at the first map's size."""
        # A 1x1 convolution of upsampled maps is the upsampled convolution: the concatenation never is in memory.
        weights = self.fuse.weight.chunk(4, 1)[::-1]  # the last map comes first
        first, *others = (
            F.conv2d(project(x), weight)
            for project, x, weight in zip(self.project, maps, weights, strict=True)
        )
        y = first
        for other in others:
            y = y + resize(other, first)
        return self.classifier(self.dropout(self.norm(y).relu()))


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Resize ``x`` bilinearly to the size of the map ``like``."""
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


def _conv(inputs: int, outputs: int, side: int, norm: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False),
        head_norm(norm)(outputs),
        nn.ReLU(inplace=True),
    )
