"""Complementary channel dropout: two views of an image, of which one keeps the channels that the other drops."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from udas_fast.config import config_dataclass
from udas_fast.models.backbones import Maps


@config_dataclass
class ChannelDropoutConfig:
    """Two strong views of each image in place of one, with complementary halves of the features' channels.

    UniMatch V2 (Yang et al., TPAMI 2025, arXiv 2410.10777). Each view has changes and boxes of its own.
    """

    whole: Annotated[float, Field(ge=0, le=1)] = 0.5  # share of the images whose two views keep all channels


def draw_factors(n: int, channels: int, config: ChannelDropoutConfig, generator: torch.Generator) -> Tensor:
    """Draw the factors of the channels of the first views of ``n`` images; those of the second are 2 less these.

    Returns:
        float32 ``[n, channels]`` on the CPU: 0 or 2 by an even chance; 1 for the images that stay whole, of which there
        are ⌊whole · n⌋.
    """
    factors = 2.0 * (torch.rand(n, channels, generator=generator) < 0.5)
    rank = torch.rand(n, generator=generator).argsort().argsort()
    return torch.where(rank[:, None] < int(config.whole * n), 1.0, factors)


def scale_channels(maps: Maps, factors: Tensor) -> Maps:
    """Return ``maps`` ``[N, C, h, w]`` times ``factors``.

    ``factors``: float ``[N, channels]``, ``channels`` the sum of the different C; maps of one C share their factors.
    """
    counts = list(dict.fromkeys(m.shape[1] for m in maps))
    parts = dict(zip(counts, factors.split(counts, 1), strict=True))
    first, second, third, fourth = (m * parts[m.shape[1]][:, :, None, None].to(m.dtype) for m in maps)
    return first, second, third, fourth
