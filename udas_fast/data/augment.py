"""AutoAugment: of colours alone, where every pixel keeps its place, or whole, where image and label turn together.

The operations on colours are those of :mod:`udas_fast.data.photometric`, on uint8 tensors on any device.

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
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import torch
from torch.nn import functional as F

from udas_fast.data.classes import IGNORE
from udas_fast.data.photometric import FILTERS, TABLES, look_up
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


def apply_each(images: torch.Tensor, operations: Sequence[Operations]) -> torch.Tensor:
    """Apply ``operations[i]`` to image i of uint8 ``[N, 3, H, W]``; raise InputError for other shapes or dtypes."""
    return _apply(images, None, operations)[0]


def apply_to_pairs(
    images: torch.Tensor, labels: torch.Tensor, operations: Sequence[Operations]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply ``operations[i]`` to image i of uint8 ``[N, 3, H, W]`` and to its label, uint8 ``[N, H, W]``.

    What moves the pixels of an image moves those of its label alike; pixels from outside are grey and 255.
    """
    return _apply(images, labels, operations)


_Labels = TypeVar("_Labels", torch.Tensor, None)


def _apply(
    images: torch.Tensor, labels: _Labels, operations: Sequence[Operations]
) -> tuple[torch.Tensor, _Labels]:
    """Apply to each image its operations in their order; the tables of the whole batch are one."""
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise bad("images", f"{images.dtype} {tuple(images.shape)}", "uint8 [N, 3, H, W]")
    image, left = images, [list(each) for each in operations]
    while any(left):
        changed, turned = {}, {}
        for i, each in enumerate(left):
            if not each or each[0][0] in TABLES:
                continue
            name, level = each.pop(0)
            if name not in GEOMETRIC:
                changed[i] = FILTERS[name](image[i], _magnitude(name, level))
                continue
            grid = _grid(name, level, images)
            changed[i] = _sample(image[i], grid, "bilinear", FILL)
            if labels is not None:
                turned[i] = _sample(labels[i][None], grid, "nearest", IGNORE)[0]
        image = _replaced(image, changed)
        labels = labels if labels is None else _replaced(labels, turned)
        runs = [_take_tables(each) for each in left]
        if any(runs):
            image = look_up(image, runs)
    return image.clone() if image is images else image, labels


def _take_tables(left: list[tuple[str, int]]) -> list[tuple[str, float]]:
    """Remove and return the first operations of ``left``, with their magnitudes, as far as they are tables."""
    taken: list[tuple[str, float]] = []
    while left and left[0][0] in TABLES and (left[0][0] != "contrast" or not taken):
        name, level = left.pop(0)
        taken.append((name, _magnitude(name, level)))
    return taken


def _magnitude(name: str, level: int) -> float:
    """Return the magnitude of ``level`` 0..9 in the paper's range (table 6); unused where there is none.

    Posterize to 8..4 bits and solarize above 256..0 (a higher level is stronger, as in the authors' code),
    enhancement by a factor of 0.1..1.9 (1 changes nothing).
    """
    if name == "posterize":
        return 8 - round(4 * level / 9)
    if name == "solarize":
        return 256 - round(256 * level / 9)
    return 0.1 + 1.8 * level / 9


def _replaced(rows: torch.Tensor, new: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """Return ``rows`` with those of ``new`` in their places; the same tensor where there are none."""
    return torch.stack([new.get(i, row) for i, row in enumerate(rows)]) if new else rows


def _grid(name: str, level: int, images: torch.Tensor) -> torch.Tensor:
    """Return where each pixel comes from: rotation about the centre by up to 30°, or shear by up to 0.3 (table 6).

    The shear is along x from the top. Places are from -1 to 1 each way, ``[1, H, W, 2]``.
    """
    height, width = images.shape[2:]
    if name == "rotate":
        angle = math.radians(30 * level / 9)
        cos, sin = math.cos(angle), math.sin(angle)
        theta = [[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]]
    else:
        shear = 0.3 * level / 9 * height / width
        theta = [[1.0, shear, shear], [0.0, 1.0, 0.0]]
    grid = F.affine_grid(torch.tensor([theta]), [1, 1, height, width], align_corners=False)
    return grid.to(images.device)


def _sample(values: torch.Tensor, grid: torch.Tensor, mode: str, outside: int) -> torch.Tensor:
    """Return uint8 ``[C, H, W]`` at the places of ``grid``, ``outside`` where these are outside."""
    shifted = values.float()[None] - outside  # grid_sample fills with 0
    moved = F.grid_sample(shifted, grid, mode=mode, align_corners=False)[0] + outside
    return moved.round_().to(torch.uint8)
