"""Source images in the target's look, without training: low-frequency amplitudes exchanged (FDA)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from udas_fast.errors import bad
from udas_fast.objectives.lab import check_pairs


@torch.no_grad()
def match_fda(source: torch.Tensor, target: torch.Tensor, beta: float = 0.01) -> torch.Tensor:
    """Give source image i the low-frequency amplitudes of target image i and keep its phases.

    ``source`` uint8 ``[N, 3, H, W]`` and ``target`` uint8 ``[N, 3, H', W']``, on one device → uint8
    ``[N, 3, H, W]``; a target of another size is resized first. The window holds the frequencies up to
    ⌊β · min(H, W)⌋ in both directions; β = 0 changes nothing. Source: Yang and Soatto, CVPR 2020
    (arXiv 2004.05498), equation 4, with the window of its public code.
    Raises InputError for other shapes and dtypes, and for β outside [0, 0.5).
    """
    check_pairs(source, target)
    if not 0 <= beta < 0.5:
        raise bad("beta", beta, "0 or more, and less than 0.5")
    if beta == 0 or source.numel() == 0:
        return source.clone()
    height, width = size = source.shape[-2:]
    style = target.float()
    if target.shape[-2:] != size:
        style = F.interpolate(style, size, mode="bilinear", antialias=True)
    spectrum, expected = torch.fft.rfft2(source.float()), torch.fft.rfft2(style)
    reach = int(beta * min(height, width))
    # rfft2 keeps the rows of frequency 0, 1, …, -1 and the columns of frequency 0 up only: two corners.
    for rows in (slice(0, reach + 1), slice(height - reach, height)):
        window = (..., rows, slice(0, reach + 1))
        spectrum[window] = torch.polar(expected[window].abs(), spectrum[window].angle())
    return torch.fft.irfft2(spectrum, s=size).round_().clamp_(0, 255).to(torch.uint8)
