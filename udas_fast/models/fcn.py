"""FCN: a 3x3 convolution and a classifier on each of two stages."""

from __future__ import annotations

from torch import Tensor, nn

from udas_fast.models.backbones import Backbone, Maps
from udas_fast.models.norm import head_norm
from udas_fast.models.segmentation import BackboneNetwork


class FCNHead(nn.Sequential):
    """3x3 convolution to a quarter of the channels, normalisation, ReLU, dropout, 1x1 classifier."""

    def __init__(self, inputs: int, num_classes: int, norm: str, dropout: float) -> None:
        inner = max(1, inputs // 4)
        super().__init__(
            nn.Conv2d(inputs, inner, 3, padding=1, bias=False),
            head_norm(norm)(inner),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Conv2d(inner, num_classes, 1),
        )


class FCN(BackboneNetwork):
    """FCN (Long et al. 2015) on a dilated ResNet, as in torchvision: heads on layer4 and layer3.

    dropout: before the classifiers, 0.1 in torchvision; the others: see :class:`BackboneNetwork`. With
    a ResNet-50 it has 35,322,218 parameters at 21 classes, 2,365,205 of them in the auxiliary head.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str | Backbone = "resnet50",
        width: int | None = None,
        norm: str = "batch",
        output_stride: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_classes, backbone=backbone, width=width, norm=norm, output_stride=output_stride)
        *_, third, fourth = self.backbone.channels
        self.auxiliary = FCNHead(third, num_classes, norm, dropout)
        self.primary = FCNHead(fourth, num_classes, norm, dropout)

    def decode(self, maps: Maps) -> tuple[Tensor, Tensor]:
        """Map the backbone's maps to (primary, auxiliary) logits at the strides of the fourth and the third."""
        *_, third, fourth = maps
        return self.primary(fourth), self.auxiliary(third)
