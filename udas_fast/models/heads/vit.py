"""Light heads for plain vision transformers, whose maps have one size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.models.backbones.base import Four, Maps


class LinearHead(nn.Module):
    """One 1x1 convolution on the last map."""

    def __init__(self, channels: Four, num_classes: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels[-1], num_classes, 1)

    def forward(self, maps: Maps) -> Tensor:
        """Return logits [N, num_classes, h, w] at the last map's size."""
        return self.classifier(self.dropout(maps[-1]))


class UpscalingHead(nn.Module):
    """VFM-UDA's head (Englert et al., CVPRW 2024): two transposed convolutions and a 3x3 one on the last map."""

    def __init__(self, channels: Four, num_classes: int, *, dropout: float) -> None:
        super().__init__()
        width = channels[-1]
        half, quarter = max(1, width // 2), max(1, width // 4)
        self.upscale = nn.Sequential(
            nn.ConvTranspose2d(width, half, 2, 2, bias=False),
            ChannelNorm(half, eps=1e-6),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, 2, bias=False),
            ChannelNorm(quarter, eps=1e-6),
            nn.Conv2d(quarter, quarter, 3, padding=1, bias=False),
            ChannelNorm(quarter, eps=1e-6),
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(quarter, num_classes, 1, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.1)

    def forward(self, maps: Maps) -> Tensor:
        """Return logits [N, num_classes, 4h, 4w] of the last map [N, C, h, w]."""
        return self.classifier(self.dropout(self.upscale(maps[-1])))


class DPTHead(nn.Module):
    """Dense prediction transformer (Ranftl et al., ICCV 2021) as light as UniMatch V2 has it, without norms.

    The four maps become a pyramid of 4, 2, 1 and 1/2 of their size and are fused from the coarsest to the finest.

    inner: channels of the fusion; None: 64, 128 and 256 with backbones S, B and L. With 19 classes and S the head
    has 2,686,035 parameters.
    """

    def __init__(self, channels: Four, num_classes: int, *, inner: int | None = None, dropout: float) -> None:
        super().__init__()
        width = channels[-1]
        shares = (4, 2, 1, 1) if width >= 1024 else (8, 4, 2, 1)
        if inner is None:
            inner = max(1, width // (4 if width >= 1024 else 6))
        c1, c2, c3, c4 = (max(1, width // share) for share in shares)
        self.project = nn.ModuleList(
            nn.Conv2d(c, outputs, 1) for c, outputs in zip(channels, (c1, c2, c3, c4), strict=True)
        )
        self.resize = nn.ModuleList(
            [
                nn.ConvTranspose2d(c1, c1, 4, 4),
                nn.ConvTranspose2d(c2, c2, 2, 2),
                nn.Identity(),
                nn.Conv2d(c4, c4, 3, 2, 1),
            ]
        )
        self.reduce = nn.ModuleList(nn.Conv2d(c, inner, 3, padding=1, bias=False) for c in (c1, c2, c3, c4))
        self.fuse = nn.ModuleList(Fusion(inner, two=i < 3) for i in range(4))
        self.smooth = nn.Conv2d(inner, inner, 3, padding=1)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(inner, num_classes, 1)

    def forward(self, maps: Maps) -> Tensor:
        """Return logits [N, num_classes, 8h, 8w] of maps [N, C, h, w]."""
        parts = zip(self.project, self.resize, self.reduce, maps, strict=True)
        first, second, third, fourth = (reduce(scale(project(x))) for project, scale, reduce, x in parts)
        y = self.fuse[3](fourth, None, third.shape[-2:])
        y = self.fuse[2](y, third, second.shape[-2:])
        y = self.fuse[1](y, second, first.shape[-2:])
        y = self.fuse[0](y, first, [2 * side for side in first.shape[-2:]])
        return self.classifier(self.dropout(self.smooth(y).relu()))


class Fusion(nn.Module):
    """Adds a finer map to a coarser one and resizes the sum, with residual units of two convolutions."""

    def __init__(self, channels: int, *, two: bool) -> None:
        super().__init__()
        self.unit1 = ResidualUnit(channels) if two else None
        self.unit2 = ResidualUnit(channels)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, coarse: Tensor, fine: Tensor | None, size: list[int]) -> Tensor:
        """Return [N, channels, *size] of two maps of equal shape; ``fine`` is None at the coarsest."""
        if self.unit1 is not None and fine is not None:
            coarse = coarse + self.unit1(fine)
        y = F.interpolate(self.unit2(coarse), size, mode="bilinear", align_corners=True)
        return self.project(y)


class ResidualUnit(nn.Module):
    """ReLU, 3x3 convolution, ReLU, 3x3 convolution beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of ``x``."""
        return x + self.conv2(self.conv1(x.relu()).relu())


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each cell of a map."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [N, C, h, w]."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
