"""PSPNet: the means of an image's parts beside its features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.models.backbones import Backbone, Maps
from udas_fast.models.fcn import FCNHead
from udas_fast.models.norm import ConvNorm, head_norm
from udas_fast.models.segmentation import BackboneNetwork

BINS = (1, 2, 3, 6)  # parts of each side


def pooling(length: int, bins: int, device: torch.device) -> Tensor:
    """Return the means of ``bins`` parts of a side as a matrix, float32 ``[bins, length]``.

    Parts are those of ``adaptive_avg_pool2d``, whose gradient on CUDA depends on the order of threads.
    """
    part, place = torch.arange(bins, device=device)[:, None], torch.arange(length, device=device)
    inside = (place >= part * length // bins) & (place < ((part + 1) * length + bins - 1) // bins)
    return inside / inside.sum(1, keepdim=True)


class PyramidPooling(nn.Module):
    """Means of 1, 4, 9 and 36 parts, each projected to a quarter of the channels and upsampled, beside the features.

    The projection of the whole image's mean has a bias in place of a norm, because a single image has no statistics
    there: batches of one image can be trained on.
    """

    def __init__(self, inputs: int, norm: str) -> None:
        super().__init__()
        inner = max(1, inputs // len(BINS))
        whole = nn.Sequential(nn.Conv2d(inputs, inner, 1), nn.ReLU(inplace=True))
        parts = (
            ConvNorm(nn.Conv2d(inputs, inner, 1, bias=False), head_norm(norm)(inner), nn.ReLU(inplace=True))
            for _ in BINS[1:]
        )
        self.branches = nn.ModuleList([whole, *parts])
        self.outputs = inputs + len(BINS) * inner

    def forward(self, x: Tensor) -> Tensor:
        """Map features [N, inputs, h, w] to [N, outputs, h, w]."""
        height, width = x.shape[-2:]
        found = [x]
        for bins, branch in zip(BINS, self.branches, strict=True):
            rows, columns = (pooling(side, bins, x.device).to(x.dtype) for side in (height, width))
            means = branch(rows @ x @ columns.mT)
            found.append(F.interpolate(means, (height, width), mode="bilinear", align_corners=True))
        return torch.cat(found, 1)


class PSPNet(BackboneNetwork):
    """PSPNet (Zhao et al., CVPR 2017, arXiv 1612.01105) on a dilated ResNet, with an auxiliary head on the third map.

    The paper weighs the auxiliary head's loss by 0.4 and drops 0.1 of the channels before the classifiers. dropout:
    that share; the others: see :class:`BackboneNetwork`. With a ResNet-101 the heads have, at 19 classes, 23,083,027
    and 2,364,691 parameters: those of the authors' PyTorch code (hszhao/semseg), 512 of a norm less for the bias.
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
        *_, third, fourth = self.backbone.channels
        inner = max(1, fourth // 4)
        self.auxiliary = FCNHead(third, num_classes, norm, dropout)
        self.pyramid = PyramidPooling(fourth, norm)
        self.primary = nn.Sequential(
            nn.Conv2d(self.pyramid.outputs, inner, 3, padding=1, bias=False),
            head_norm(norm)(inner),
            nn.ReLU(inplace=True),
            nn.Dropout2d(dropout),
            nn.Conv2d(inner, num_classes, 1),
        )

    def decode(self, maps: Maps) -> tuple[Tensor, Tensor]:
        """Map the backbone's maps to (primary, auxiliary) logits at the strides of the fourth and the third."""
        *_, third, fourth = maps
        return self.primary(self.pyramid(fourth)), self.auxiliary(third)
