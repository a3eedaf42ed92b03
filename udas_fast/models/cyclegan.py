"""CycleGAN's networks (Zhu et al. 2017, section 4 and appendix 7.2): two generators, patch discriminators.

Images are RGB in [-1, 1], float ``[N, 3, H, W]``.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.errors import bad

SHORTEST = 8  # pixels: reflection padding needs as many
SHORTEST_PATCH = 32  # pixels: a discriminator's output is empty below


def to_signed(image: Tensor) -> Tensor:
    """Convert uint8 to float32 in [-1, 1]."""
    return image.float() / 127.5 - 1


def to_uint8(image: Tensor) -> Tensor:
    """Convert [-1, 1] to uint8, the exact inverse of :func:`to_signed`."""
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class Generator(nn.Module):
    """Network from an image to the same image in the other domain's style; 11,378,179 parameters as published.

    c7s1-64, d128, d256, ``blocks`` residual blocks, u128, u64, c7s1-3 with reflection padding, instance
    normalisation and tanh, weights from N(0, 0.02). ``width`` is the 64; 9 blocks are for images of 256 pixels or more.
    """

    def __init__(self, width: int = 64, blocks: int = 9) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.ReflectionPad2d(3),
            *_normalized(nn.Conv2d(3, width, 7)),
            *_normalized(nn.Conv2d(width, width * 2, 3, 2, 1)),
            *_normalized(nn.Conv2d(width * 2, width * 4, 3, 2, 1)),
        )
        self.blocks = nn.Sequential(*(_Block(width * 4) for _ in range(blocks)))
        self.decoder = nn.Sequential(
            *_normalized(nn.ConvTranspose2d(width * 4, width * 2, 3, 2, 1, 1)),
            *_normalized(nn.ConvTranspose2d(width * 2, width, 3, 2, 1, 1)),
            nn.ReflectionPad2d(3),
            nn.Conv2d(width, 3, 7),
        )
        self.apply(_initialize)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, 3, H, W]`` in [-1, 1] to float32 of the same shape.

        Sides that are no multiple of 4 are padded by reflection, and the output is cropped.

        Raises:
            InputError: another number of channels, or a side below 8.
        """
        if x.dim() != 4 or x.shape[1] != 3 or min(x.shape[-2:]) < SHORTEST:
            raise bad("generator input", list(x.shape), f"[N, 3, H >= {SHORTEST}, W >= {SHORTEST}]")
        height, width = x.shape[-2:]
        if height % 4 or width % 4:
            x = F.pad(x, (0, -width % 4, 0, -height % 4), mode="reflect")
        y = self.decoder(self.blocks(self.encoder(x)))
        return y[..., :height, :width].float().tanh()  # float32: half types have fewer steps than uint8


class CycleGenerators(nn.Module):
    """Generators of both directions: ``to_target`` gives source images the target's style, ``to_source`` vice versa."""

    def __init__(self, width: int = 64, blocks: int = 9) -> None:
        super().__init__()
        self.to_target = Generator(width, blocks)
        self.to_source = Generator(width, blocks)

    def forward(self, x: Tensor, to: Literal["target", "source"]) -> Tensor:
        """Return ``x`` in the style of domain ``to``."""
        return (self.to_target if to == "target" else self.to_source)(x)


class PatchDiscriminator(nn.Module):
    """Discriminator of 70×70 patches, real or generated: ``[N, 3, H, W]`` to ``[N, 1, H / 8 - 2, W / 8 - 2]``.

    C64-C128-C256-C512 and one channel, 4×4 convolutions of stride 2, 2, 2, 1 and 1, instance normalisation after
    all but the first and the last, LeakyReLU(0.2), weights from N(0, 0.02). 2,764,737 parameters at width 64.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1),
            nn.LeakyReLU(0.2, inplace=True),
            *_normalized(nn.Conv2d(width, width * 2, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)),
            *_normalized(nn.Conv2d(width * 2, width * 4, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)),
            *_normalized(nn.Conv2d(width * 4, width * 8, 4, 1, 1), nn.LeakyReLU(0.2, inplace=True)),
            nn.Conv2d(width * 8, 1, 4, 1, 1),
        )
        self.apply(_initialize)

    def forward(self, x: Tensor) -> Tensor:
        """Score the patches of ``x``.

        Raises:
            InputError: another number of channels, or a side below 32.
        """
        if x.dim() != 4 or x.shape[1] != 3 or min(x.shape[-2:]) < SHORTEST_PATCH:
            expected = f"[N, 3, H >= {SHORTEST_PATCH}, W >= {SHORTEST_PATCH}]"
            raise bad("discriminator input", list(x.shape), expected)
        return self.layers(x)


class _Block(nn.Module):
    """Residual block: x plus two 3×3 convolutions of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1),
            *_normalized(nn.Conv2d(channels, channels, 3)),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _normalized(
    conv: nn.Conv2d | nn.ConvTranspose2d, activation: nn.Module | None = None
) -> tuple[nn.Module, ...]:
    return conv, nn.InstanceNorm2d(conv.out_channels), activation or nn.ReLU(inplace=True)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
