"""The student's view of a target image: classes or a box of another image in it, and patches that are hidden."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from udas_fast import distributed
from udas_fast.config import Weight, config_dataclass
from udas_fast.data.strong_view import Probability
from udas_fast.errors import bad

Positive = Annotated[float, Field(gt=0)]
Part = Annotated[float, Field(gt=0, le=1)]


@config_dataclass
class ClassMixConfig:
    """Half of the classes of a labelled image, pasted with their labels into a target image (ClassMix, DACS).

    The classes are drawn from those of the image itself, as in DACS; DAFormer, HRDA and MIC draw from all of the batch,
    so that an image often gives fewer. Ignored pixels are never pasted.
    """

    share: Part = 0.5  # of the classes, rounded up
    # The labelled image: of the source, of the target where there are some (no class is pasted where there are none),
    # or of either by an even chance.
    partner: Literal["source", "labelled", "both"] = "source"


@config_dataclass
class CutMixConfig:
    """A box of another target image, with the teacher's labels and weights there (UniMatch's FixMatch)."""

    probability: Probability = 0.5
    area: tuple[Part, Part] = (0.02, 0.4)  # range of the box's share of the image
    aspect: tuple[Positive, Positive] = (0.3, 1 / 0.3)  # range of its height over its width

    def __post_init__(self) -> None:
        for name, (low, high) in (("area", self.area), ("aspect", self.aspect)):
            if low > high:
                raise bad(name, f"({low:g}, {high:g})", "(lowest, highest)")


@config_dataclass
class MaskConfig:
    """Hidden patches of a target image, all of whose pixels the student labels (MIC)."""

    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.7  # share of the patches that are hidden
    # Side of a patch as a share of the image's shorter side: 64 of 1024 pixels and 32 of 512. "token": the tokens of a
    # vision transformer, which sees its mask token in their place (VFM-UDA).
    patch: Part | Literal["token"] = 1 / 16
    weight: Weight = 1.0  # of the term


def sample_classes(label: Tensor, chance: Tensor, share: float = 0.5) -> Tensor:
    """Choose a ``share`` of each label's own classes, rounded up: a class table for :func:`udas_fast.ops.region_mix`.

    Olsson et al., ClassMix (WACV 2021, arXiv 2007.07936); ignored pixels are no class. Nothing waits for the device.

    Args:
        label: uint8 ``[N, H, W]`` train ids, 255 is ignored.
        chance: float ``[N, C]``, uniform in [0, 1); each image's classes of the largest numbers are chosen.
        share: above 0, at most 1.

    Returns:
        bool ``[N, C]``, True where a class is chosen.
    """
    n, classes = chance.shape
    there = torch.zeros(n, 256, dtype=torch.bool, device=label.device)
    there = there.scatter_(1, label.flatten(1).long(), True)[:, :classes]
    rank = torch.where(there, chance, -1.0).argsort(1, descending=True).argsort(1)
    return there & (rank < (share * there.sum(1, keepdim=True)).ceil())


def draw_boxes(n: int, size: tuple[int, int], config: CutMixConfig, generator: torch.Generator) -> Tensor:
    """Draw ``n`` boxes that fit into images of ``size`` (H, W), empty ones where no box is mixed.

    Five numbers are drawn for each image with ``generator`` (on the CPU).

    Returns:
        int32 ``[n, 4]`` on the CPU, as x0, y0, x1, y1 in pixels (x1 and y1 outside).
    """
    u = torch.rand(n, 5, generator=generator)
    area = config.area[0] + u[:, 0] * (config.area[1] - config.area[0])
    aspect = config.aspect[0] + u[:, 1] * (config.aspect[1] - config.aspect[0])
    sides = torch.stack([area / aspect, area * aspect], 1) * (size[0] * size[1])
    limit = torch.tensor([size[1], size[0]])
    sides = torch.minimum(sides.sqrt().int(), limit.int())  # width, height
    first = (u[:, 2:4] * (limit - sides + 1)).int()
    box = torch.cat([first, first + sides], 1)
    return torch.where(u[:, 4:] < config.probability, box, 0).int()


def draw_visible(
    n: int, size: tuple[int, int], config: MaskConfig, generator: torch.Generator, token: int = 0
) -> Tensor:
    """Draw which patches of ``n`` images of ``size`` (H, W) are visible: bool ``[n, 1, rows, columns]`` on the CPU.

    There are ⌊H/b⌉ × ⌊W/b⌉ patches, b their side; each is visible by its own chance, 1 − ratio. ``token``: the side of
    a vision transformer's patches, for ``patch`` "token".
    """
    side = token if config.patch == "token" else config.patch * min(size)
    rows, columns = (max(1, math.floor(length / side + 0.5)) for length in size)
    return torch.rand(n, 1, rows, columns, generator=generator) > config.ratio


def patches_to_pixels(visible: Tensor, size: Sequence[int]) -> Tensor:
    """Return :func:`draw_visible`'s patches at ``size`` (H, W), float32 ``[N, 1, H, W]`` of 0 and 1, by the nearest."""
    return F.interpolate(visible.float(), list(size), mode="nearest")


def of_the_next(rows: Tensor) -> Tensor:
    """Return for each image of the batch the row of ``rows`` ``[N, …]`` of the next image (collective).

    The batch is that of all processes, and the last image's next one is the first: with two images or more, no image
    is its own next one.
    """
    first = distributed.get_rank() * len(rows)
    return distributed.all_gather(rows).roll(-1, 0)[first : first + len(rows)]
