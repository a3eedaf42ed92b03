"""Feature distance: the source's things keep features near those of the pretrained backbone (DAFormer)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from udas_fast import distributed
from udas_fast.config import Weight, config_dataclass
from udas_fast.data.classes import CITYSCAPES

# DAFormer's, which are Cityscapes' 6, 7 and 11 to 18, and CamVid's names of such classes.
THINGS = (*CITYSCAPES.names[6:8], *CITYSCAPES.names[11:], "sign", "pedestrian", "bicyclist")


@config_dataclass
class FeatureDistanceConfig:
    """L_FD, the distance of the backbone's last map from that of the backbone with which the round began.

    It keeps what ImageNet's weights know of things; VFM-UDA++ reports that it harms vision foundation models.
    """

    weight: Weight = 0.005  # λ_FD
    # Share of the pixels of a cell of the map that one class of things has where the cell counts (r).
    share: Annotated[float, Field(gt=0.5, le=1)] = 0.75
    classes: Annotated[tuple[str, ...], Field(min_length=1)] = THINGS  # names; the data has some of them


class FeatureDistance(nn.Module):
    """L_FD = mean over Ω of ‖F_θ(x_S) − F_first(x_S)‖₂ (DAFormer, Hoyer et al., CVPR 2022, arXiv 2111.14887).

    F is the last map of the backbone, the norm is that of a cell's channels, and Ω are the cells of the whole batch
    that one class of things has a share of at least r of.

    Args:
        config: classes and share.
        backbone: the network's as it is now; its frozen copy is F_first.
        class_names: names of the data's classes.
    """

    def __init__(
        self, config: FeatureDistanceConfig, backbone: nn.Module, class_names: Sequence[str]
    ) -> None:
        super().__init__()
        self.share = config.share
        self.things = [number for number, name in enumerate(class_names) if name in config.classes]
        self.first = copy.deepcopy(backbone).requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FeatureDistance:
        """Stay in evaluation mode, whatever ``mode`` is."""
        return super().train(False)

    def forward(self, features: Tensor, x: Tensor, label: Tensor) -> Tensor:
        """Return L_FD, a scalar; zero where Ω is empty, in the published code NaN.

        Args:
            features: last map of the trained backbone, floating ``[N, C, h, w]``.
            x: the same images, normalised, floating ``[N, 3, H, W]``.
            label: their labels, uint8 ``[N, H, W]``.
        """
        with torch.no_grad():
            *_, first = self.first(x)
        counted = self.cells(label, features.shape[-2:])
        distance = torch.linalg.vector_norm(features.float() - first.float(), dim=1)
        loss = (distance * counted).sum() / counted.sum().clamp_min(1)
        if distributed.get_world_size() == 1:
            return loss
        return loss * distributed.loss_scale_for_valid_pixels(counted)

    def cells(self, label: Tensor, size: Sequence[int]) -> Tensor:
        """Return Ω, bool ``[N, h, w]`` of ``size`` (h, w), of labels uint8 ``[N, H, W]``."""
        height, width = size
        counted = label.new_zeros((len(label), height, width), dtype=torch.bool)
        for number in self.things:
            counted |= F.adaptive_avg_pool2d((label == number).float(), (height, width)) >= self.share
        return counted
