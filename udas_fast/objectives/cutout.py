"""CutOut: a box of an image that the network does not see and that has no label (DeVries and Taylor 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

from udas_fast.config import config_dataclass
from udas_fast.data.classes import IGNORE
from udas_fast.objectives.base import PrepareContext
from udas_fast.objectives.student_view import CutMixConfig, draw_boxes


@config_dataclass
class CutOutConfig(CutMixConfig):
    """A box of an image in the mean colour, whose pixels have no label; probability, area and aspect as in CutMix."""


def draw_cutout(images: Tensor, config: CutOutConfig, ctx: PrepareContext) -> Tensor:
    """Draw a box for each of uint8 ``images`` ``[N, 3, H, W]``: bool ``[N, 1, H, W]``, False inside it."""
    height, width = images.shape[-2:]
    boxes = ctx.draw(lambda n: draw_boxes(n, (height, width), config, ctx.generator), len(images))
    return ~boxes_to_pixels(boxes.to(images.device, non_blocking=True), (height, width))[:, None]


def boxes_to_pixels(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return which pixels of ``size`` (H, W) lie in ``boxes``, int ``[N, 4]`` as x0, y0, x1, y1: bool ``[N, H, W]``."""
    x0, y0, x1, y1 = boxes[:, :, None, None].unbind(1)
    rows = torch.arange(size[0], device=boxes.device)[:, None]
    columns = torch.arange(size[1], device=boxes.device)
    return (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)


def without_hidden(label: Tensor, visible: Tensor | None) -> Tensor:
    """Return ``label``, uint8 ``[N, H, W]``, with 255 where ``visible``, bool ``[N, 1, H, W]``, is False.

    None: as it is.
    """
    return label if visible is None else torch.where(visible[:, 0], label, IGNORE)
