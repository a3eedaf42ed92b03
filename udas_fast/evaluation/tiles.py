"""Logits of an image that does not fit into memory at once: overlapping tiles, blended where they meet.

Tiles begin on the grid of the network's coarsest map, so that their logits equal the whole image's except for the
missing surroundings at the cut. In an overlap the outer quarter of either tile has weight 0, and over the middle half
the weight moves linearly from one to the other: a network whose receptive field reaches no further than that quarter
gives the logits of the whole image. A vision transformer's reaches everywhere, so its logits differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from udas_fast.data.regions import Regions
from udas_fast.errors import bad
from udas_fast.models import SegmentationOutput
from udas_fast.models.backbones.base import fit_to_multiple

SMALLEST = 64
"""Pixels of a tile's side."""
OVERLAP = 4
"""Neighbours overlap by this part of a tile's side, one in four pixels."""
GRID = 32  # pixels; the strides of all maps inside a network divide it

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


def tiled_logits(
    forward: Forward, image: Tensor | Slices, tile: tuple[int, int], *, multiple: int = 1
) -> SegmentationOutput:
    """Compute the primary logits of ``image``, uint8 [1, 3, H, W], from tiles of at most ``tile`` (H, W) pixels.

    Memory is that of one tile and of the image's low-resolution logits. An image that fits into one tile is not cut.

    Args:
        forward: uint8 [1, 3, h, w] to logits.
        image: the image.
        tile: (H, W) of the tiles.
        multiple: pixels of which the network makes both sides multiples, such as a vision transformer's patch. The
            whole image is read and resized so before it is cut, unless it is so, and tiles are rounded down.

    Raises:
        InputError: tiles below 64 pixels or two multiples, or a network whose logits are not on a grid of 32 pixels or
            of ``multiple``.
    """
    smallest = max(SMALLEST, 2 * multiple)
    if min(tile) < smallest:
        raise bad("tile", "{}x{}".format(*tile), f"{smallest}x{smallest} or more")
    if image.shape[-2] <= tile[0] and image.shape[-1] <= tile[1]:
        return forward(image[...])
    if any(side % multiple for side in image.shape[-2:]):
        image = fit_to_multiple(image[...].float(), multiple).round().to(torch.uint8)
    tile = tile[0] // multiple * multiple, tile[1] // multiple * multiple
    grid = GRID if multiple == 1 else multiple
    first = forward(image[..., : tile[0], : tile[1]])
    counts = _logits_in_grid(forward, image, tile, first, grid)
    spans = [_spans(*axis, grid) for axis in zip(image.shape[-2:], tile, strict=True)]
    parts = {
        (i, j): forward(image[..., top:bottom, left:right]).primary
        for i, (top, bottom) in enumerate(spans[0])
        for j, (left, right) in enumerate(spans[1])
    }
    starts = [[a // grid * count for a, _ in axis] for axis, count in zip(spans, counts, strict=True)]
    rows = _weights([(start, parts[i, 0].shape[2]) for i, start in enumerate(starts[0])])
    columns = _weights([(start, parts[0, j].shape[3]) for j, start in enumerate(starts[1])])
    whole = first.primary.new_zeros(*first.primary.shape[:2], rows.shape[1], columns.shape[1])
    for (i, j), logits in parts.items():
        top, left = starts[0][i], starts[1][j]
        height, width = logits.shape[-2:]
        weight = rows[i, top : top + height, None] * columns[j, left : left + width]
        whole[..., top : top + height, left : left + width] += logits * weight.to(logits)
    return SegmentationOutput(whole, align_corners=first.align_corners)


def _logits_in_grid(
    forward: Forward, image: Tensor | Slices, tile: tuple[int, int], first: SegmentationOutput, grid: int
) -> tuple[int, ...]:
    """Measure the logits in ``grid`` pixels, in y and x, on a smaller tile; 0 along an axis that is not cut."""
    cut = [have > side for have, side in zip(image.shape[-2:], tile, strict=True)]
    height, width = (side - grid * is_cut for side, is_cut in zip(tile, cut, strict=True))
    smaller = forward(image[..., :height, :width]).primary
    fewer = [first.primary.shape[axis] - smaller.shape[axis] for axis in (-2, -1)]
    if any(is_cut and count < 1 for is_cut, count in zip(cut, fewer, strict=True)):
        found = f"{max(fewer)} logits fewer for {grid} pixels fewer"
        raise bad("network for tiles", found, f"logits on a grid of {grid} pixels")
    return tuple(count if is_cut else 0 for is_cut, count in zip(cut, fewer, strict=True))


def _spans(length: int, tile: int, grid: int) -> list[tuple[int, int]]:
    """Return (first, end) of each tile along one axis, evenly spread over ``length`` pixels, on the grid."""
    last = -(-max(length - tile, 0) // grid) * grid
    step = (tile - tile // OVERLAP) // grid * grid
    gaps = -(-last // step)
    starts = [round(i * last / gaps / grid) * grid for i in range(gaps)] + [last]
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
