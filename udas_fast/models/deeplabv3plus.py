"""DeepLabV3+: spatial pyramid with image pooling, and a decoder that uses the details of layer1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.models.fcn import FCNHead
from udas_fast.models.segmentation import SegmentationNetwork, head_norm

RATES = (12, 24, 36)  # at output stride 8 (Chen et al. 2018, section 4)


class PooledASPP(nn.Module):
    """Parallel 1x1 and dilated 3x3 convolutions and the image's mean, projected to ``outputs`` channels.

    The branch of the mean has a bias in place of a norm, because a single image has no statistics there: batches of
    one image can be trained on.
    """

    def __init__(self, inputs: int, outputs: int, norm: str) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                _conv(inputs, outputs, 1, norm),
                *(_conv(inputs, outputs, 3, norm, dilation=rate) for rate in RATES),
            ]
        )
        self.pooled = nn.Conv2d(inputs, outputs, 1)
        self.project = _conv(outputs * (len(self.branches) + 1), outputs, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [N, inputs, h, w] to [N, outputs, h, w]."""
        mean = self.pooled(x.mean((2, 3), keepdim=True)).relu().expand(-1, -1, *x.shape[-2:])
        return self.project(torch.cat([*(branch(x) for branch in self.branches), mean], 1))


class DeepLabV3Plus(SegmentationNetwork):
    """DeepLabV3+ (Chen et al., ECCV 2018) with ordinary convolutions, and an auxiliary FCN head on layer3.

    Logits have the stride of layer1, 4 (2 at output stride 4). ASPP and decoder have 4·width channels, the
    details 3·width/4: 256 and 48 at full width. dropout: before the classifiers; the others: see
    :class:`SegmentationNetwork`. With a ResNet-101 and without the auxiliary head it has 58,753,203 parameters at 19
    classes.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "resnet101",
        width: int = 64,
        norm: str = "batch",
        output_stride: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_classes, backbone=backbone, width=width, norm=norm, output_stride=output_stride)
        third, fourth = self.backbone.channels
        inner, details = 4 * width, max(1, 3 * width // 4)
        self.auxiliary = FCNHead(third, num_classes, norm, dropout)
        self.aspp = PooledASPP(fourth, inner, norm)
        self.details = _conv(fourth // 8, details, 1, norm)
        self.primary = nn.Sequential(
            _conv(inner + details, inner, 3, norm), nn.Dropout(dropout), nn.Conv2d(inner, num_classes, 1)
        )
        for part in (self.aspp, self.details, self.primary):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map a normalised image, float [N, 3, H, W], to primary logits at layer1's stride, auxiliary at layer3's."""
        first, _, third, fourth = self.backbone.stages(x)
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
