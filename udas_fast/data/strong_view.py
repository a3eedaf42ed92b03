"""Strong photometric views: colour jitter, grey and blur, with stated probabilities. Every pixel keeps its place."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from udas_fast.config import config_dataclass
from udas_fast.errors import bad

Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=1)]
Sigma = Annotated[float, Field(gt=0, le=10)]

# RGB to luma and two chroma axes (NTSC's YIQ), in whose plane a hue is an angle.
YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@config_dataclass
class StrongConfig:
    """Photometric changes of each image and their probabilities; the defaults are DACS's, DAFormer's and MIC's."""

    # Brightness, contrast and saturation are multiplied by U(1 − s, 1 + s); hue turns by U(−s, s) of the circle, at
    # most half of it. DACS 0.25, DAFormer 0.2, UniMatch's FixMatch 0.5, 0.5, 0.5, 0.25.
    jitter: tuple[Strength, Strength, Strength, Annotated[float, Field(ge=0, le=0.5)]] = (0.2, 0.2, 0.2, 0.2)
    # 0.8: the authors' files say 0.2, and their code applies the jitter where a uniform number exceeds it.
    jitter_probability: Probability = 0.8
    grey_probability: Probability = 0.0  # 0.2 in UniMatch's FixMatch
    blur: tuple[Sigma, Sigma] = (0.15, 1.15)  # range of the Gaussian's σ in pixels; 0.1 to 2 in UniMatch
    blur_probability: Probability = 0.5

    def __post_init__(self) -> None:
        low, high = self.blur
        if low > high:
            raise bad("blur", f"({low:g}, {high:g})", "(lowest, highest) σ")


def draw_strong(n: int, config: StrongConfig, generator: torch.Generator) -> Tensor:
    """Draw the changes of ``n`` images with ``generator`` (on the CPU): rows of numbers for :func:`apply_strong`.

    Eight numbers are drawn for each image, whatever the probabilities, so that changing one does not move the others.

    Returns:
        float32 ``[n, 12 + 2r + 1]`` on the CPU: a matrix of colours (9), the share of the mean luma that is added (3),
        and the blur's weights, of radius r = ⌈3 · largest σ⌉.
    """
    u = torch.rand(n, 8, generator=generator)
    jitter, grey, blur = (
        u[:, 5 + i] < p
        for i, p in enumerate((config.jitter_probability, config.grey_probability, config.blur_probability))
    )
    strength = torch.tensor(config.jitter)
    change = torch.where(jitter[:, None], strength * (2 * u[:, :4] - 1), 0.0)
    brightness, contrast, saturation = (1 + change[:, :3]).unbind(1)
    saturation = torch.where(grey, 0.0, saturation)
    sigma = config.blur[0] + u[:, 4] * (config.blur[1] - config.blur[0])

    # Luma stays and chroma is turned and scaled, so that the four changes commute and their order does not matter.
    yiq = torch.tensor(YIQ, dtype=torch.float64)
    angle = 2 * math.pi * change[:, 3].double()
    turn = torch.zeros(n, 3, 3, dtype=torch.float64)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = saturation * angle.cos()
    turn[:, 2, 1] = saturation * angle.sin()
    turn[:, 1, 2] = -turn[:, 2, 1]
    colours = yiq.inverse() @ turn @ yiq
    plain = (change == 0).all(1) & ~grey  # exactly the image itself, without the inverse's rounding
    colours = torch.where(plain[:, None, None], torch.eye(3, dtype=torch.float64), colours)
    matrix = (brightness * contrast)[:, None, None] * colours
    lift = (brightness * (1 - contrast))[:, None] * yiq[0]

    radius = math.ceil(3 * config.blur[1])
    place = torch.arange(-radius, radius + 1)
    taps = (-place.square() / (2 * sigma.square())[:, None]).exp()
    taps = torch.where(blur[:, None], taps / taps.sum(1, keepdim=True), (place == 0).float())
    return torch.cat([matrix.flatten(1).float(), lift.float(), taps], 1)


def apply_strong(images: Tensor, drawn: Tensor) -> Tensor:
    """Change the colours of each image and blur it, in float32 whatever the precision of the run.

    Per pixel: x' = b·(c·A·x + (1 − c)·l), b brightness, c contrast, l the image's mean luma and A the saturation and
    the turn of hue in the plane of NTSC's chroma (an angle in HSV in torchvision and kornia); values are clipped once,
    at their end. A Gaussian of the drawn σ follows, which repeats the border's pixels.

    Args:
        images: uint8 ``[N, 3, H, W]``.
        drawn: :func:`draw_strong`'s rows, on the images' device.

    Returns:
        uint8 ``[N, 3, H, W]``; an image for which no change was drawn is the same to the bit.

    Raises:
        InputError: other shapes or dtypes.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise bad("images", f"{images.dtype} {tuple(images.shape)}", "uint8 [N, 3, H, W]")
    n, _, height, width = images.shape
    matrix, lift, taps = drawn[:, :9].view(n, 3, 3), drawn[:, 9:12], drawn[:, 12:]
    with torch.autocast(images.device.type, enabled=False):  # 8 bits of mantissa are too few for 256 values
        pixels = images.flatten(2).float()
        offset = (lift * pixels.mean(2)).sum(1)[:, None, None]
        pixels = torch.baddbmm(offset, matrix, pixels).clamp_(0, 255)
        x = pixels.view(1, 3 * n, height, width)
        radius = taps.shape[1] // 2
        weight = taps[:, None].expand(n, 3, -1).reshape(3 * n, 1, 1, -1)
        x = F.conv2d(F.pad(x, [radius] * 4, "replicate"), weight, groups=3 * n)
        x = F.conv2d(x, weight.mT, groups=3 * n)
        # The weights add up to 1 but for rounding, so that whole values stay within 0 and 255.
        return x.round_().to(torch.uint8).view(n, 3, height, width)
