"""Multi-level DeepLabV2: one ASPP head on the fourth map and an auxiliary one on the third."""

from __future__ import annotations

from torch import Tensor, nn

from udas_fast.errors import bad
from udas_fast.models.backbones import Backbone, Maps
from udas_fast.models.segmentation import BackboneNetwork

ASPP_RATES = (6, 12, 18, 24)


class ASPP(nn.Module):
    """Atrous spatial pyramid of DeepLabV2: the sum of 3x3 convolutions of different dilation, each with bias.

    Weights start from N(0, 0.01), biases from zero. ``branches`` is their number, from the smallest rate on.
    AdaptSegNet's code returns inside its loop and so sums the first two only, although its checkpoints hold four.
    """

    def __init__(self, inputs: int, num_classes: int, branches: int = len(ASPP_RATES)) -> None:
        super().__init__()
        rates = ASPP_RATES[:branches]
        convolutions = [nn.Conv2d(inputs, num_classes, 3, 1, rate, rate) for rate in rates]
        for conv in convolutions:
            nn.init.normal_(conv.weight, std=0.01)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        self.branches = nn.ModuleList(convolutions)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [N, inputs, h, w] to logits [N, num_classes, h, w]."""
        first, *others = self.branches
        y = first(x)
        for branch in others:
            y = y + branch(x)
        return y


class DeepLabV2(BackboneNetwork):
    """DeepLabV2 (Chen et al. 2017) with the two heads of AdaptSegNet (Tsai et al. 2018).

    aspp_branches: 1 to 4 dilation rates, 2 for checkpoints of AdaptSegNet's code; dropout: share of the features'
    channels that are dropped before the heads in training; the others: see :class:`BackboneNetwork`. With a
    ResNet-101 it has 44,601,560 parameters at 19 classes.

    Raises:
        InputError: a number outside its range.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str | Backbone = "resnet101",
        width: int | None = None,
        norm: str = "batch",
        aspp_branches: int = 4,
        output_stride: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_classes, backbone=backbone, width=width, norm=norm, output_stride=output_stride)
        if not 1 <= aspp_branches <= len(ASPP_RATES):
            raise bad("aspp_branches", aspp_branches, f"1 to {len(ASPP_RATES)}")
        self.dropout = nn.Dropout2d(dropout)
        *_, third, fourth = self.backbone.channels
        self.auxiliary = ASPP(third, num_classes, aspp_branches)
        self.primary = ASPP(fourth, num_classes, aspp_branches)

    def decode(self, maps: Maps) -> tuple[Tensor, Tensor]:
        """Map the backbone's maps to (primary, auxiliary) logits at the strides of the fourth and the third."""
        *_, third, fourth = maps
        return self.primary(self.dropout(fourth)), self.auxiliary(self.dropout(third))
