"""Source images in the target's colours, without training: statistics matched in CIE LAB."""

from __future__ import annotations

import torch

from udas_fast.errors import bad

# Linear sRGB → XYZ, and the white it is relative to: IEC 61966-2-1, D65, 2° observer.
_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
_FROM_XYZ = tuple(map(tuple, torch.linalg.inv(torch.tensor(_TO_XYZ, dtype=torch.float64)).tolist()))
# X, Y, Z of sRGB white, so that greys have a = b = 0.
_WHITE = tuple(sum(row) for row in _TO_XYZ)
# CIE 15: f(t) is a cube root above (6/29)³ and a line below.
_KNEE = 6 / 29


def check_pairs(source: torch.Tensor, target: torch.Tensor) -> None:
    """Raise InputError unless both are uint8 ``[N, 3, H, W]`` with as many images; the sizes may differ."""
    for name, images in (("source", source), ("target", target)):
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise bad(name, f"{images.dtype} {tuple(images.shape)}", "uint8 [N, 3, H, W]")
    if len(source) != len(target):
        raise bad("target", f"{len(target)} images", f"{len(source)}, one for each source image")


@torch.no_grad()
def match_lab(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Give source image i the mean and standard deviation of target image i in CIE LAB.

    ``source`` uint8 ``[N, 3, H, W]`` and ``target`` uint8 ``[N, 3, H', W']``, sRGB, on one device → uint8
    ``[N, 3, H, W]``: lab = (lab_s − mean_s) · std_t / std_s + mean_t for each channel, colours outside sRGB
    clipped. Source: Reinhard et al. 2001, with LAB in place of lαβ as in DDM (arXiv 2103.04705).
    Raises InputError for other shapes and dtypes.
    """
    check_pairs(source, target)
    if source.numel() == 0:
        return source.clone()
    lab = rgb_to_lab(source)
    mean, std = _statistics(lab)
    wanted_mean, wanted_std = _statistics(rgb_to_lab(target))
    # A grey image has a and b of one value: what little they spread is rounding, and is not to be blown up.
    gain = wanted_std / std.clamp_min(0.01)
    return lab_to_rgb((lab - mean) * gain + wanted_mean)


def rgb_to_lab(images: torch.Tensor) -> torch.Tensor:
    """sRGB uint8 ``[N, 3, H, W]`` to CIE LAB float32 of that shape: L 0..100, a and b about -110..100."""
    linear = _gamma_table(images.device)[images.int()]
    x, y, z = (_curve(v / w) for v, w in zip(_product(_TO_XYZ, linear), _WHITE, strict=True))
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=1)


def lab_to_rgb(lab: torch.Tensor) -> torch.Tensor:
    """CIE LAB float32 ``[N, 3, H, W]`` to sRGB uint8, rounded, colours outside sRGB clipped."""
    lightness, a, b = lab.unbind(1)
    y = (lightness + 16) / 116
    parts = (y + a / 500, y, y - b / 200)
    xyz = torch.stack([_uncurve(f) * w for f, w in zip(parts, _WHITE, strict=True)], dim=1)
    linear = torch.stack(_product(_FROM_XYZ, xyz), dim=1).clamp_(0, 1)
    # IEC 61966-2-1: a line for the darkest values, a power above.
    encoded = torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.pow(1 / 2.4) - 0.055)
    return (encoded * 255).round_().to(torch.uint8)


def _statistics(lab: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation over the pixels, each ``[N, 3, 1, 1]``."""
    std, mean = torch.std_mean(lab, dim=(2, 3), correction=0, keepdim=True)
    return mean, std


def _product(matrix: tuple[tuple[float, ...], ...], images: torch.Tensor) -> list[torch.Tensor]:
    """3 × 3 ``matrix`` times the channels, written out: a matmul would be cut to TF32 or bf16 by autocast."""
    first, second, third = images.unbind(1)
    return [row[0] * first + row[1] * second + row[2] * third for row in matrix]


def _curve(t: torch.Tensor) -> torch.Tensor:
    line = t / (3 * _KNEE**2) + 4 / 29
    return torch.where(t > _KNEE**3, t.clamp_min(_KNEE**3).pow(1 / 3), line)


def _uncurve(f: torch.Tensor) -> torch.Tensor:
    return torch.where(f > _KNEE, f * f * f, 3 * _KNEE**2 * (f - 4 / 29))


def _gamma_table(device: torch.device) -> torch.Tensor:
    """sRGB value 0..255 → linear light 0..1, float32 ``[256]``."""
    value = torch.arange(256, dtype=torch.float64, device=device) / 255
    linear = torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return linear.float()
