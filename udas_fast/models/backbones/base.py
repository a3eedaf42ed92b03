"""Interface of the backbones, and the parts that several of them use."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.models.checkpointing import CHECKPOINTING
from udas_fast.models.normalization import IMAGENET, Normalization

Maps = tuple[Tensor, Tensor, Tensor, Tensor]
Four = tuple[int, int, int, int]


class Backbone(nn.Module, ABC):
    """Base of the backbones: a normalised image to the maps of four stages, finest first.

    A convolutional or hierarchical backbone has one map for each stage of its pyramid; a plain vision transformer has
    four maps of equal size, from a quarter, a half, three quarters and all of its blocks. Checkpointing policies name
    the stages ``layer1`` to ``layer4`` in all of them.
    """

    #: Channels of the maps, finest first.
    channels: Four
    #: Pixels of the image for one cell of each map.
    strides: Four
    #: Input that the published weights expect.
    normalization: Normalization = IMAGENET
    #: Sides of the image are brought to multiples of this number of pixels inside.
    multiple: int = 1
    #: Width as a share of the published one; heads are narrowed by it too.
    scale: float = 1.0
    #: Beginnings of the names of what a published state dict has and segmentation does not need.
    not_needed: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.checkpointed = CHECKPOINTING["none"]

    @abstractmethod
    def stages(self, x: Tensor) -> Maps:
        """Return the maps [N, channels, h, w] of a normalised image, float [N, 3, H, W]."""

    def forward(self, x: Tensor, *hidden: Tensor) -> Maps:
        """Return :meth:`stages`; ``hidden``: of backbones that can hide patches."""
        return self.stages(x, *hidden)

    @property
    @abstractmethod
    def num_blocks(self) -> int:
        """Number of blocks, for rates that fall from block to block."""

    @abstractmethod
    def block_of(self, name: str) -> int:
        """Return the number of the block that the parameter ``name`` belongs to, 1 to num_blocks; 0: the stem."""


class DropPath(nn.Dropout):
    """Stochastic depth (Huang et al. 2016): training drops the branch of an image with probability ``p``."""

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``x`` [N, …] image by image with 0 or 1 / (1 − p) in training; leave it as it is otherwise."""
        if not self.training or self.p == 0:
            return x
        ones = x.new_ones((x.shape[0],) + (1,) * (x.dim() - 1))
        return x * F.dropout(ones, self.p, training=True)


def drop_path_rates(rate: float, blocks: int) -> list[float]:
    """Return rates that rise linearly from 0 in the first block to ``rate`` in the last."""
    return [rate * i / max(1, blocks - 1) for i in range(blocks)]


def fit_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Resize ``x`` [N, C, H, W] bilinearly so that its sides are the nearest multiples of ``multiple``, one at least.

    The maps of the result cover the whole image, so that logits are upsampled to the image's size as ever.
    """
    height, width = (max(1, (side + multiple // 2) // multiple) * multiple for side in x.shape[-2:])
    if not torch.compiler.is_exporting() and (height, width) == tuple(x.shape[-2:]):
        return x
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
