"""DeepLabV3+: spatial pyramid with image pooling, and a decoder that uses the details of the first map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.models.backbones import Backbone, Maps
from udas_fast.models.fcn import FCNHead
from udas_fast.models.norm import head_norm
from udas_fast.models.segmentation import BackboneNetwork

RATES = (6, 12, 18)  # at output stride 16, doubled at 8 (Chen et al. 2018, section 4)


class PooledASPP(nn.Module):
    """Parallel 1x1 and dilated 3x3 convolutions and the image's mean, projected to ``outputs`` channels.

    stride: of the features; the convolutions are dilated twice as much up to 8 as above.

    The branch of the mean has a bias in place of a norm, because a single image has no statistics there: batches of
    one image can be trained on.
    """

    def __init__(self, inputs: int, outputs: int, norm: str, stride: int) -> None:
        super().__init__()
        rates = [(2 if stride <= 8 else 1) * rate for rate in RATES]
        self.branches = nn.ModuleList(
            [
                _conv(inputs, outputs, 1, norm),
                *(_conv(inputs, outputs, 3, norm, dilation=rate) for rate in rates),
            ]
        )
        self.pooled = nn.Conv2d(inputs, outputs, 1)
        self.project = _conv(outputs * (len(self.branches) + 1), outputs, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [N, inputs, h, w] to [N, outputs, h, w]."""
        mean = self.pooled(x.mean((2, 3), keepdim=True)).relu().expand(-1, -1, *x.shape[-2:])
        return self.project(torch.cat([*(branch(x) for branch in self.branches), mean], 1))


class DeepLabV3Plus(BackboneNetwork):
    """DeepLabV3+ (Chen et al., ECCV 2018) with ordinary convolutions, and an auxiliary FCN head on the third map.

    Logits have the first map's stride, 4 (2 with a ResNet at output stride 4). ASPP and decoder have 256 channels, the
    details 48, fewer with a narrow backbone. dropout: before the classifiers; the others: see
    :class:`BackboneNetwork`. With a ResNet-101 and without the auxiliary head it has 58,753,203 parameters at 19
    classes.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str | Backbone = "resnet101",
        width: int | None = None,
        norm: str = "batch",
        output_stride: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_classes, backbone=backbone, width=width, norm=norm, output_stride=output_stride)
        first, _, third, fourth = self.backbone.channels
        inner, details = (max(1, int(n * self.backbone.scale)) for n in (256, 48))
        self.auxiliary = FCNHead(third, num_classes, norm, dropout)
        self.aspp = PooledASPP(fourth, inner, norm, self.backbone.strides[-1])
        self.details = _conv(first, details, 1, norm)
        self.primary = nn.Sequential(
            _conv(inner + details, inner, 3, norm), nn.Dropout(dropout), nn.Conv2d(inner, num_classes, 1)
        )
        for part in (self.aspp, self.details, self.primary):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)

    def decode(self, maps: Maps) -> tuple[Tensor, Tensor]:
        """Map the backbone's maps to primary logits at the first one's stride and auxiliary at the third's."""
        first, _, third, fourth = maps
        details = self.details(first)
        context = F.interpolate(self.aspp(fourth), details.shape[-2:], mode="bilinear", align_corners=False)
        return self.primary(torch.cat([details, context], 1)), self.auxiliary(third)


def _conv(inputs: int, outputs: int, side: int, norm: str, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (side // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, 1, padding, dilation, bias=False),
        head_norm(norm)(outputs),
        nn.ReLU(inplace=True),
    )
