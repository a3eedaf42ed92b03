"""DAFormer's context-aware head (Hoyer et al., CVPR 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from udas_fast.models.backbones.base import Four, Maps
from udas_fast.models.heads.pyramid import resize
from udas_fast.models.norm import head_norm

RATES = (6, 12, 18)


class DAFormerHead(nn.Module):
    """All maps at the finest stride, and a spatial pyramid of separable convolutions over them.

    inner: channels of each map's projection and of each branch, 256 in the paper; with MiT-B5 and 19 classes the
    head has 3,712,275 parameters.
    """

    def __init__(
        self, channels: Four, num_classes: int, *, inner: int = 256, norm: str, dropout: float
    ) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(c, inner, 1) for c in channels)
        self.branches = nn.ModuleList([_unit(4 * inner, inner, 1, norm)])
        self.branches.extend(_separable(4 * inner, inner, rate, norm) for rate in RATES)
        self.bottleneck = _unit(4 * inner, inner, 3, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(inner, num_classes, 1)
        for module in (*self.branches.modules(), *self.bottleneck.modules()):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for parameter in self.classifier.parameters():
            nn.init.normal_(parameter, std=0.01)

    def forward(self, maps: Maps) -> Tensor:
        """Return logits [N, num_classes, h, w] at the first map's size."""
        first, *others = (project(x) for project, x in zip(self.project, maps, strict=True))
        x = torch.cat([first, *(resize(other, first) for other in others)], 1)
        y = self.bottleneck(torch.cat([branch(x) for branch in self.branches], 1))
        return self.classifier(self.dropout(y))


def _unit(
    inputs: int, outputs: int, side: int, norm: str, *, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    padding = dilation * (side // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, 1, padding, dilation, groups, bias=False),
        head_norm(norm)(outputs),
        nn.ReLU(inplace=True),
    )


def _separable(inputs: int, outputs: int, rate: int, norm: str) -> nn.Sequential:
    depthwise = _unit(inputs, inputs, 3, norm, dilation=rate, groups=inputs)
    return nn.Sequential(depthwise, _unit(inputs, outputs, 1, norm))
