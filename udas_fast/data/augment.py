"""AutoAugment: of colours alone, where every pixel keeps its place, or whole, where image and label turn together.

The operations on colours equal Pillow's ImageOps and ImageEnhance, on uint8 tensors on any device, without
synchronisation.

The 25 sub-policies for ImageNet of AutoAugment (Cubuk et al., CVPR 2019, arXiv 1805.09501, table 9), as
operation, probability, level 0 to 9. Those in brackets move pixels: :data:`POLICY` has all of them,
:data:`PHOTOMETRIC` the others:

     1  posterize 0.4 8       (rotate 0.6 9)
     2  solarize 0.6 5        autocontrast 0.6 5
     3  equalize 0.8 8        equalize 0.6 3
     4  posterize 0.6 7       posterize 0.6 6
     5  equalize 0.4 7        solarize 0.2 4
     6  equalize 0.4 4        (rotate 0.8 8)
     7  solarize 0.6 3        equalize 0.6 7
     8  posterize 0.8 5       equalize 1.0 2
     9  (rotate 0.2 3)        solarize 0.6 8
    10  equalize 0.6 8        posterize 0.4 6
    11  (rotate 0.8 8)        color 0.4 0
    12  (rotate 0.4 9)        equalize 0.6 2
    13  equalize 0.0 7        equalize 0.8 8
    14  invert 0.6 4          equalize 1.0 8
    15  color 0.6 4           contrast 1.0 8
    16  (rotate 0.8 8)        color 1.0 2
    17  color 0.8 8           solarize 0.8 7
    18  sharpness 0.4 7       invert 0.6 8
    19  (shear x 0.6 5)       equalize 1.0 9
    20  color 0.4 0           equalize 0.6 3
    21  equalize 0.4 7        solarize 0.2 4
    22  solarize 0.6 5        autocontrast 0.6 5
    23  invert 0.6 4          equalize 1.0 8
    24  color 0.6 4           contrast 1.0 8
    25  equalize 0.8 8        equalize 0.6 3
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch.nn import functional as F

from udas_fast.data.classes import IGNORE
from udas_fast.errors import bad

Operations = tuple[tuple[str, int], ...]
"""Operations on an image: (operation, level 0..9), in this order; a negative level turns the other way."""

ViewKind: TypeAlias = Literal["identity", "weak", "strong"]
"""An image as it is, with colour and contrast changed by a tenth (ours), or by photometric AutoAugment."""

Policy: TypeAlias = tuple[tuple[tuple[str, float, int], ...], ...]

GEOMETRIC = frozenset({"rotate", "shear_x"})
FILL = 128  # grey of the pixels that come from outside, as in the authors' code

# (operation, probability, level) of the table above.
POLICY: Policy = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
    (("color", 0.4, 0), ("equalize", 0.6, 3)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
)
PHOTOMETRIC: Policy = tuple(tuple(each for each in pair if each[0] not in GEOMETRIC) for pair in POLICY)


def auto_augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Augment each image by a sub-policy of its own, drawn with ``generator`` (on the CPU).

    ``images`` uint8 ``[N, 3, H, W]`` → new uint8 tensor of that shape on the same device. Three numbers are
    drawn for each image, whatever the result.

    Raises:
        InputError: other shapes or dtypes.
    """
    return apply_each(images, draw_each(len(images), generator))


def draw_each(n: int, generator: torch.Generator, kind: ViewKind = "strong") -> list[Operations]:
    """Draw the operations of each of ``n`` images for a view of ``kind``, from the CPU ``generator``."""
    if kind == "identity":
        return [()] * n
    if kind == "weak":
        return [_weak(levels) for levels in torch.randint(4, 6, (n, 2), generator=generator).tolist()]
    picks = torch.randint(len(PHOTOMETRIC), (n,), generator=generator).tolist()
    chances = torch.rand(n, 2, generator=generator).tolist()
    return [_select(PHOTOMETRIC[pick], pair) for pick, pair in zip(picks, chances, strict=True)]


def draw_whole(n: int, generator: torch.Generator) -> list[Operations]:
    """Draw the operations of each of ``n`` images from the whole :data:`POLICY`; half of them turn the other way."""
    picks = torch.randint(len(POLICY), (n,), generator=generator).tolist()
    chances = torch.rand(n, 2, generator=generator).tolist()
    signs = (1 - 2 * torch.randint(2, (n,), generator=generator)).tolist()
    return [
        tuple(
            (name, sign * level if name in GEOMETRIC else level)
            for name, level in _select(POLICY[pick], pair)
        )
        for pick, pair, sign in zip(picks, chances, signs, strict=True)
    ]


def apply_each(images: torch.Tensor, operations: Sequence[Operations]) -> torch.Tensor:
    """Apply ``operations[i]`` to image i of uint8 ``[N, 3, H, W]``; raise InputError for other shapes or dtypes."""
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise bad("images", f"{images.dtype} {tuple(images.shape)}", "uint8 [N, 3, H, W]")
    out = torch.empty_like(images)
    for i, (image, each) in enumerate(zip(images, operations, strict=True)):
        out[i] = apply_all(image, each)
    return out


def draw(rng: np.random.Generator, kind: ViewKind = "strong") -> Operations:
    """Draw the operations of one image for a view of ``kind`` from ``rng``."""
    if kind == "identity":
        return ()
    if kind == "weak":
        return _weak(rng.integers(4, 6, 2).tolist())
    return _select(PHOTOMETRIC[int(rng.integers(len(PHOTOMETRIC)))], rng.random(2).tolist())


def _weak(levels: Sequence[int]) -> Operations:
    """Return colour and contrast at ``levels`` of 4 or 5: factors of 0.9 or 1.1."""
    return (("color", levels[0]), ("contrast", levels[1]))


def _select(pair: Sequence[tuple[str, float, int]], chances: Sequence[float]) -> Operations:
    """Return the operations of a sub-policy whose chance, uniform in [0, 1), is below their probability."""
    return tuple(
        (name, level)
        for (name, probability, level), chance in zip(pair, chances, strict=False)
        if chance < probability
    )


def apply_to_pairs(
    images: torch.Tensor, labels: torch.Tensor, operations: Sequence[Operations]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply ``operations[i]`` to image i of uint8 ``[N, 3, H, W]`` and to its label, uint8 ``[N, H, W]``.

    What moves the pixels of an image moves those of its label alike; pixels from outside are grey and 255.
    """
    image, label = torch.empty_like(images), torch.empty_like(labels)
    for i, each in enumerate(operations):
        turned, turned_label = images[i], labels[i]
        for name, level in each:
            if name in GEOMETRIC:
                turned, turned_label = _move(turned, turned_label, name, level)
            else:
                turned = apply(name, turned, level)
        image[i], label[i] = turned, turned_label
    return image, label


def _move(
    image: torch.Tensor, label: torch.Tensor, name: str, level: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate about the centre by up to 30°, or shear by up to 0.3 along x from the top (table 6)."""
    height, width = label.shape
    # The place in the input, from -1 to 1 each way, that each pixel of the output comes from.
    if name == "rotate":
        angle = math.radians(30 * level / 9)
        cos, sin = math.cos(angle), math.sin(angle)
        theta = [[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]]
    else:
        shear = 0.3 * level / 9 * height / width
        theta = [[1.0, shear, shear], [0.0, 1.0, 0.0]]
    grid = F.affine_grid(torch.tensor([theta]), [1, 1, height, width], align_corners=False).to(image.device)

    def sample(values: torch.Tensor, mode: str, outside: int) -> torch.Tensor:
        shifted = values.float()[None] - outside  # grid_sample fills with 0
        return F.grid_sample(shifted, grid, mode=mode, align_corners=False)[0] + outside

    moved = sample(image, "bilinear", FILL).round_().to(torch.uint8)
    return moved, sample(label[None], "nearest", IGNORE)[0].to(torch.uint8)


def apply_all(image: torch.Tensor, operations: Operations) -> torch.Tensor:
    """Apply ``operations`` to uint8 ``[3, H, W]``, in their order."""
    for name, level in operations:
        image = apply(name, image, level)
    return image


def apply(name: str, image: torch.Tensor, level: int) -> torch.Tensor:
    """Apply operation ``name`` at ``level`` 0..9 of the paper's range of magnitudes (table 6).

    Posterize to 8..4 bits and solarize above 256..0 (a higher level is stronger, as in the authors' code),
    enhancement by a factor of 0.1..1.9 (1 changes nothing); the other operations have no magnitude.
    """
    if name == "posterize":
        return posterize(image, 8 - round(4 * level / 9))
    if name == "solarize":
        return solarize(image, 256 - round(256 * level / 9))
    if name in _ENHANCEMENTS:
        return _ENHANCEMENTS[name](image, 0.1 + 1.8 * level / 9)
    return _PLAIN[name](image)


def posterize(image: torch.Tensor, bits: int) -> torch.Tensor:
    """Keep the ``bits`` highest bits of each value of uint8 ``[3, H, W]``."""
    return image & (256 - (1 << (8 - bits)))


def solarize(image: torch.Tensor, threshold: int) -> torch.Tensor:
    """Invert the values of uint8 ``[3, H, W]`` that are at least ``threshold`` 0..256."""
    ramp = torch.arange(256, device=image.device)
    return _look_up(image, torch.where(ramp < threshold, ramp, 255 - ramp).expand(3, 256))


def invert(image: torch.Tensor) -> torch.Tensor:
    """Return 255 − value, uint8 ``[3, H, W]``."""
    return ~image


def autocontrast(image: torch.Tensor) -> torch.Tensor:
    """Stretch each channel of uint8 ``[3, H, W]`` linearly to 0..255."""
    low = image.flatten(1).amin(1, keepdim=True).double()
    high = image.flatten(1).amax(1, keepdim=True).double()
    ramp = torch.arange(256, device=image.device, dtype=torch.float64).expand(3, 256)
    # A channel of one value has no contrast to stretch: scale 1 and offset 0 leave it unchanged.
    flat = high == low
    # torch computes number / tensor with the reciprocal, which is not the nearest quotient.
    scale = torch.where(flat, 1.0, torch.full_like(high, 255.0) / (high - low))
    offset = torch.where(flat, 0.0, -low * scale)
    return _look_up(image, (ramp * scale + offset).clamp_(0, 255))


def equalize(image: torch.Tensor) -> torch.Tensor:
    """Flatten the histogram of each channel of uint8 ``[3, H, W]``."""
    bins = image.flatten(1).long() + torch.arange(0, 768, 256, device=image.device)[:, None]
    ones = torch.ones((), dtype=torch.int32, device=image.device).expand(bins.numel())
    counts = torch.zeros(768, dtype=torch.int32, device=image.device)
    counts = counts.scatter_add_(0, bins.flatten(), ones).view(3, 256).long()
    highest = image.flatten(1).amax(1, keepdim=True).long()
    step = (image[0].numel() - counts.gather(1, highest)) // 255
    below = counts.cumsum(1) - counts
    table = ((step // 2 + below) // step.clamp_min(1)).clamp_(0, 255)
    # If nearly all pixels have one value, Pillow leaves the channel unchanged, and so does this.
    ramp = torch.arange(256, device=image.device).expand(3, 256)
    return _look_up(image, torch.where(step > 0, table, ramp))


def color(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Blend uint8 ``[3, H, W]`` with its grey version; a factor of 0 is grey, above 1 more colourful."""
    return _blend(_grey(image), image, factor)


def contrast(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Blend uint8 ``[3, H, W]`` with its mean grey."""
    mean = (_grey(image).double().mean() + 0.5).floor().float()
    return _blend(mean, image, factor)


def sharpness(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Blend uint8 ``[3, H, W]`` with its smoothed version (3 × 3, centre weight 5 of 13); the rim stays."""
    if min(image.shape[1:]) < 3:
        return image
    wide = image.short()
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[:, 1:-1, 1:-1]
    smooth = wide.clone()
    smooth[:, 1:-1, 1:-1] = (total.float() / 13 + 0.5).short()
    return _blend(smooth, image, factor)


_Enhancement = Callable[[torch.Tensor, float], torch.Tensor]
_ENHANCEMENTS: dict[str, _Enhancement] = {
    "color": color,
    "contrast": contrast,
    "sharpness": sharpness,
}
_PLAIN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": invert,
}


def _look_up(image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return ``table[c, image[c]]`` for uint8 ``[3, H, W]`` and a table ``[3, 256]``, truncated to whole numbers."""
    return table.to(torch.uint8).gather(1, image.flatten(1).long()).view_as(image)


def _grey(image: torch.Tensor) -> torch.Tensor:
    """Return the luma of uint8 ``[3, H, W]`` as int32 ``[H, W]``: ITU-R 601-2 in 16-bit fixed point, rounded."""
    red, green, blue = image.int()
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _blend(degenerate: torch.Tensor, image: torch.Tensor, factor: float) -> torch.Tensor:
    """Return degenerate + factor · (image − degenerate), clipped to 0..255 and truncated to whole numbers."""
    base = degenerate.float()
    return (base + factor * (image.float() - base)).clamp_(0, 255).to(torch.uint8)
