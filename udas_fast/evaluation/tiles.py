"""Logits of an image that does not fit into memory at once: overlapping tiles, blended where they meet.

Tiles begin on the grid of the network's logits, so that their logits equal the whole image's except for the missing
surroundings at the cut. In an overlap the outer quarter of either tile has weight 0, and over the middle half the
weight moves linearly from one to the other: a network whose receptive field reaches no further than that quarter gives
the logits of the whole image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from udas_fast.data.regions import Regions
from udas_fast.errors import bad
from udas_fast.models import SegmentationOutput

SMALLEST = 64
"""Pixels of a tile's side."""
OVERLAP = 4
"""Neighbours overlap by this part of a tile's side, one in four pixels."""
PROBE = 32  # pixels; a network's stride divides it

Forward = Callable[[Tensor], SegmentationOutput]


class Slices:
    """A file of which regions are read, sliced like a tensor, uint8 [1, 3, H, W]."""

    def __init__(self, regions: Regions) -> None:
        self.regions = regions
        self.shape = (1, 3, regions.height, regions.width)

    def __getitem__(self, key: Any) -> Tensor:
        """Return ``[..., top:bottom, left:right]``, or all for ``...``."""
        places = key[1:] if isinstance(key, tuple) else (slice(None), slice(None))
        (top, bottom, _), (left, right, _) = (
            place.indices(n) for place, n in zip(places, self.shape[2:], strict=True)
        )
        return torch.from_numpy(self.regions.read(top, left, bottom, right)).permute(2, 0, 1)[None]


def tiled_logits(forward: Forward, image: Tensor | Slices, tile: tuple[int, int]) -> SegmentationOutput:
    """Compute the primary logits of ``image``, uint8 [1, 3, H, W], from tiles of at most ``tile`` (H, W) pixels.

    forward: uint8 [1, 3, h, w] to logits. Memory is that of one tile and of the image's low-resolution logits. An
    image that fits into one tile is not cut.

    Raises:
        InputError: tiles below 64 pixels, or a network whose stride is not 1, 2, 4, 8, 16 or 32.
    """
    if min(tile) < SMALLEST:
        raise bad("tile", "{}x{}".format(*tile), f"{SMALLEST}x{SMALLEST} or more")
    size = image.shape[-2:]
    if size[0] <= tile[0] and size[1] <= tile[1]:
        return forward(image[...])
    first = forward(image[..., : tile[0], : tile[1]])
    strides = _strides(forward, image, tile, first)
    spans = [_spans(*axis) for axis in zip(size, tile, strides, strict=True)]
    parts = {
        (i, j): forward(image[..., top:bottom, left:right]).primary
        for i, (top, bottom) in enumerate(spans[0])
        for j, (left, right) in enumerate(spans[1])
    }
    rows = _weights([(a // strides[0], parts[i, 0].shape[2]) for i, (a, _) in enumerate(spans[0])])
    columns = _weights([(a // strides[1], parts[0, j].shape[3]) for j, (a, _) in enumerate(spans[1])])
    whole = first.primary.new_zeros(*first.primary.shape[:2], rows.shape[1], columns.shape[1])
    for (i, j), logits in parts.items():
        top, left = spans[0][i][0] // strides[0], spans[1][j][0] // strides[1]
        height, width = logits.shape[-2:]
        weight = rows[i, top : top + height, None] * columns[j, left : left + width]
        whole[..., top : top + height, left : left + width] += logits * weight.to(logits)
    return SegmentationOutput(whole, align_corners=first.align_corners)


def _strides(
    forward: Forward, image: Tensor | Slices, tile: tuple[int, int], first: SegmentationOutput
) -> tuple[int, ...]:
    """Measure the network's stride in y and x on a smaller tile; 1 along an axis that is not cut."""
    cut = [have > side for have, side in zip(image.shape[-2:], tile, strict=True)]
    height, width = (side - PROBE * is_cut for side, is_cut in zip(tile, cut, strict=True))
    smaller = forward(image[..., :height, :width]).primary
    fewer = [first.primary.shape[axis] - smaller.shape[axis] for axis in (-2, -1)]
    if any(is_cut and (count < 1 or PROBE % count) for is_cut, count in zip(cut, fewer, strict=True)):
        raise bad(
            "network for tiles",
            f"{max(fewer)} logits fewer for {PROBE} pixels fewer",
            "logits in steps of 1, 2, 4, 8, 16 or 32 pixels",
        )
    return tuple(PROBE // count if is_cut else 1 for is_cut, count in zip(cut, fewer, strict=True))


def _spans(length: int, tile: int, stride: int) -> list[tuple[int, int]]:
    """Return (first, end) of each tile along one axis, evenly spread over ``length`` pixels, on the logits' grid."""
    last = -(-max(length - tile, 0) // stride) * stride
    step = (tile - tile // OVERLAP) // stride * stride
    gaps = -(-last // step)
    starts = [round(i * last / gaps / stride) * stride for i in range(gaps)] + [last]
    return [(start, min(start + tile, length)) for start in starts]


def _weights(tiles: list[tuple[int, int]]) -> Tensor:
    """Return the weights [tiles, logits] along one axis of tiles (first logit, number); their sum over tiles is 1."""
    weights = torch.zeros(len(tiles), sum(tiles[-1]))
    for i, (start, count) in enumerate(tiles):
        weight = torch.ones(count)
        if i > 0:
            shared = sum(tiles[i - 1]) - start
            weight[:shared] *= _ramp(shared)
        if i + 1 < len(tiles):
            shared = start + count - tiles[i + 1][0]
            weight[count - shared :] *= _ramp(shared).flip(0)
        weights[i, start : start + count] = weight
    return weights / weights.sum(0)


def _ramp(count: int) -> Tensor:
    """Return 0 over the first quarter, a line over the middle half, 1 over the last; its mirror image adds up to 1."""
    return ((torch.arange(count) + 0.5 - count / 4) / (count / 2)).clamp(0, 1)
