"""Style transfer without training: give source images the colours or the low frequencies of target images."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from udas_fast.errors import bad

# Linear sRGB to XYZ: IEC 61966-2-1, white point D65, 2° observer.
_RGB_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
_XYZ_TO_RGB = tuple(map(tuple, torch.linalg.inv(torch.tensor(_RGB_TO_XYZ, dtype=torch.float64)).tolist()))
# X, Y, Z of sRGB white, so that greys have a = b = 0.
_WHITE = tuple(sum(row) for row in _RGB_TO_XYZ)
# CIE 15: f(t) is a cube root above (6/29)³ and linear below.
_KNEE = 6 / 29


@torch.no_grad()
def match_lab(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Give source image i the mean and standard deviation of target image i in CIE LAB.

    ``source`` uint8 ``[N, 3, H, W]`` and ``target`` uint8 ``[N, 3, H', W']``, sRGB, on one device → uint8
    ``[N, 3, H, W]``: lab = (lab_s − mean_s) · std_t / std_s + mean_t for each channel, colours outside sRGB
    clipped. Source: Reinhard et al. 2001, with LAB in place of lαβ as in DDM (arXiv 2103.04705).

    Raises:
        InputError: other shapes or dtypes.
    """
    _check_pairs(source, target)
    if source.numel() == 0:
        return source.clone()
    lab = rgb_to_lab(source)
    mean, std = _mean_and_std(lab)
    target_mean, target_std = _mean_and_std(rgb_to_lab(target))
    # In a grey image a and b are constant: their small spread is rounding and must not be amplified.
    gain = target_std / std.clamp_min(0.01)
    return lab_to_rgb((lab - mean) * gain + target_mean)


@torch.no_grad()
def match_fda(source: torch.Tensor, target: torch.Tensor, beta: float = 0.01) -> torch.Tensor:
    """Give source image i the low-frequency amplitudes of target image i and keep its phases.

    ``source`` uint8 ``[N, 3, H, W]`` and ``target`` uint8 ``[N, 3, H', W']``, on one device → uint8
    ``[N, 3, H, W]``; a target of another size is resized first. The window holds the frequencies up to
    ⌊β · min(H, W)⌋ in both directions; β = 0 changes nothing. Source: FDA, Yang and Soatto, CVPR 2020
    (arXiv 2004.05498), equation 4, with the window of its public code.

    Raises:
        InputError: other shapes or dtypes, or β outside [0, 0.5).
    """
    _check_pairs(source, target)
    if not 0 <= beta < 0.5:
        raise bad("beta", beta, "0 or more, and less than 0.5")
    if beta == 0 or source.numel() == 0:
        return source.clone()
    height, width = size = source.shape[-2:]
    style = target.float()
    if target.shape[-2:] != size:
        style = F.interpolate(style, size, mode="bilinear", antialias=True)
    spectrum, style_spectrum = torch.fft.rfft2(source.float()), torch.fft.rfft2(style)
    reach = int(beta * min(height, width))
    # rfft2 keeps the rows of frequency 0, 1, …, -1 and only the columns of frequency 0 and above: two corners.
    for rows in (slice(0, reach + 1), slice(height - reach, height)):
        window = (..., rows, slice(0, reach + 1))
        spectrum[window] = torch.polar(style_spectrum[window].abs(), spectrum[window].angle())
    return torch.fft.irfft2(spectrum, s=size).round_().clamp_(0, 255).to(torch.uint8)


def rgb_to_lab(images: torch.Tensor) -> torch.Tensor:
    """Convert sRGB uint8 ``[N, 3, H, W]`` to CIE LAB float32 of that shape: L 0..100, a and b about -110..100."""
    linear = _linear_rgb_table(images.device)[images.int()]
    xyz = _multiply_channels(_RGB_TO_XYZ, linear)
    x, y, z = (_lab_f(value / white) for value, white in zip(xyz, _WHITE, strict=True))
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=1)


def lab_to_rgb(lab: torch.Tensor) -> torch.Tensor:
    """Convert CIE LAB float32 ``[N, 3, H, W]`` to sRGB uint8, rounded, colours outside sRGB clipped."""
    lightness, a, b = lab.unbind(1)
    y = (lightness + 16) / 116
    fs = (y + a / 500, y, y - b / 200)
    xyz = torch.stack([_inverse_lab_f(f) * white for f, white in zip(fs, _WHITE, strict=True)], dim=1)
    linear = torch.stack(_multiply_channels(_XYZ_TO_RGB, xyz), dim=1).clamp_(0, 1)
    # IEC 61966-2-1: linear for the darkest values, a power above.
    encoded = torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.pow(1 / 2.4) - 0.055)
    return (encoded * 255).round_().to(torch.uint8)


def _check_pairs(source: torch.Tensor, target: torch.Tensor) -> None:
    """Raise InputError unless both are uint8 ``[N, 3, H, W]`` with the same N; the sizes may differ."""
    for name, images in (("source", source), ("target", target)):
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise bad(name, f"{images.dtype} {tuple(images.shape)}", "uint8 [N, 3, H, W]")
    if len(source) != len(target):
        raise bad("target", f"{len(target)} images", f"{len(source)}, one for each source image")


def _mean_and_std(lab: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and standard deviation over the pixels, each ``[N, 3, 1, 1]``."""
    std, mean = torch.std_mean(lab, dim=(2, 3), correction=0, keepdim=True)
    return mean, std


def _multiply_channels(matrix: tuple[tuple[float, ...], ...], images: torch.Tensor) -> list[torch.Tensor]:
    """Multiply the channels by a 3 × 3 ``matrix``, written out: autocast would run a matmul in TF32 or bf16."""
    first, second, third = images.unbind(1)
    return [row[0] * first + row[1] * second + row[2] * third for row in matrix]


def _lab_f(t: torch.Tensor) -> torch.Tensor:
    line = t / (3 * _KNEE**2) + 4 / 29
    return torch.where(t > _KNEE**3, t.clamp_min(_KNEE**3).pow(1 / 3), line)


def _inverse_lab_f(f: torch.Tensor) -> torch.Tensor:
    return torch.where(f > _KNEE, f * f * f, 3 * _KNEE**2 * (f - 4 / 29))


def _linear_rgb_table(device: torch.device) -> torch.Tensor:
    """Return the linear light 0..1 of each sRGB value 0..255, float32 ``[256]``."""
    value = torch.arange(256, dtype=torch.float64, device=device) / 255
    linear = torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return linear.float()
