"""AutoAugment's operations on colours, equal to Pillow's ImageOps and ImageEnhance, without synchronisation.

Most of them map a value of a channel to another: a table of 256 values. What these read of the image they read of its
histogram, and the histogram after a table follows from that before it. So any number of them needs one pass over a
batch that counts and one that looks up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: Operations that are tables. "contrast" needs the grey of the image before it, and so is the first of a run of them.
TABLES = frozenset({"posterize", "solarize", "invert", "autocontrast", "equalize", "contrast"})


def look_up(images: Tensor, runs: Sequence[Sequence[tuple[str, float]]]) -> Tensor:
    """Apply to image i of uint8 ``[N, 3, H, W]`` the operations ``runs[i]`` of :data:`TABLES`, with their magnitudes.

    Magnitudes: the bits that posterize keeps, the value from which solarize inverts, the factor of contrast.
    """
    index = images.flatten(2).long()
    counts = _count(index) if any(name in _OF_COUNTS for run in runs for name, _ in run) else None
    table = None
    for k in range(max(map(len, runs))):
        step = _tables(images, counts, [run[k] if k < len(run) else ("identity", 0) for run in runs])
        table = step if table is None else step.gather(2, table)
        if counts is not None:
            counts = torch.zeros_like(counts).scatter_add_(2, step, counts)
    assert table is not None
    return table.to(torch.uint8).gather(2, index).view(images.shape)


def _count(index: Tensor) -> Tensor:
    """Return how often each of 256 values occurs in int64 ``[N, 3, pixels]``: int64 ``[N, 3, 256]``."""
    ones = torch.ones((), dtype=torch.int32, device=index.device).expand_as(index)
    zeros = torch.zeros(*index.shape[:2], 256, dtype=torch.int32, device=index.device)
    return zeros.scatter_add_(2, index, ones).long()


def _tables(images: Tensor, counts: Tensor | None, operations: Sequence[tuple[str, float]]) -> Tensor:
    """Return the table of ``operations[i]`` for each channel of image i, int64 ``[N, 3, 256]``."""
    device = images.device
    fixed = torch.stack([_fixed(*each) for each in operations]).to(device, non_blocking=True)
    table = fixed[:, None].repeat(1, 3, 1)
    for name, make in _OF_COUNTS.items():
        chosen = [each == name for each, _ in operations]
        if counts is not None and any(chosen):
            which = torch.tensor(chosen).to(device, non_blocking=True)
            table = torch.where(which[:, None, None], make(counts), table)
    for i, (name, factor) in enumerate(operations):
        if name == "contrast":
            table[i] = _contrast(images[i], factor)
    return table


def _fixed(name: str, magnitude: float) -> Tensor:
    """Return the table, int64 ``[256]`` on the CPU, of an operation that reads nothing of the image; else identity."""
    ramp = torch.arange(256)
    if name == "posterize":
        return ramp & (256 - (1 << (8 - int(magnitude))))
    if name == "solarize":
        return torch.where(ramp < magnitude, ramp, 255 - ramp)
    return 255 - ramp if name == "invert" else ramp


def _autocontrast(counts: Tensor) -> Tensor:
    """Stretch each channel linearly to 0..255."""
    ramp = torch.arange(256, device=counts.device, dtype=torch.float64)
    there = counts > 0
    low = torch.where(there, ramp, 255.0).amin(2, keepdim=True)
    high = torch.where(there, ramp, 0.0).amax(2, keepdim=True)
    # A channel of one value has no contrast to stretch: scale 1 and offset 0 leave it unchanged.
    flat = high == low
    # torch computes number / tensor with the reciprocal, which is not the nearest quotient.
    scale = torch.where(flat, 1.0, torch.full_like(high, 255.0) / (high - low))
    offset = torch.where(flat, 0.0, -low * scale)
    return (ramp * scale + offset).clamp_(0, 255).long()


def _equalize(counts: Tensor) -> Tensor:
    """Flatten the histogram of each channel."""
    ramp = torch.arange(256, device=counts.device)
    highest = torch.where(counts > 0, ramp, 0).amax(2, keepdim=True)
    step = (counts.sum(2, keepdim=True) - counts.gather(2, highest)) // 255
    below = counts.cumsum(2) - counts
    table = ((step // 2 + below) // step.clamp_min(1)).clamp_(0, 255)
    # If nearly all pixels have one value, Pillow leaves the channel unchanged, and so does this.
    return torch.where(step > 0, table, ramp)


_OF_COUNTS: dict[str, Callable[[Tensor], Tensor]] = {"autocontrast": _autocontrast, "equalize": _equalize}


def _contrast(image: Tensor, factor: float) -> Tensor:
    """Blend uint8 ``[3, H, W]`` with its mean grey."""
    mean = (_grey(image.float()).mean(dtype=torch.float64) + 0.5).floor().float()
    return _blend(torch.arange(256, dtype=torch.float32, device=image.device), mean, factor).long()


def color(image: Tensor, factor: float) -> Tensor:
    """Blend uint8 ``[3, H, W]`` with its grey version; a factor of 0 is grey, above 1 more colourful."""
    values = image.float()
    return _blend(values, _grey(values), factor).to(torch.uint8)


def sharpness(image: Tensor, factor: float) -> Tensor:
    """Blend uint8 ``[3, H, W]`` with its smoothed version (3 × 3, centre weight 5 of 13); the rim stays."""
    if min(image.shape[1:]) < 3:
        return image
    wide = image.short()
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[:, 1:-1, 1:-1]
    values = image.float()
    smooth = values.clone()
    smooth[:, 1:-1, 1:-1] = (total.float() / 13 + 0.5).floor_()
    return _blend(values, smooth, factor).to(torch.uint8)


#: Operations that read other channels or pixels, by name: functions of image and factor.
FILTERS: dict[str, Callable[[Tensor, float], Tensor]] = {"color": color, "sharpness": sharpness}


def _grey(values: Tensor) -> Tensor:
    """Return the luma of whole float32 values ``[3, H, W]``: ITU-R 601-2 in 16-bit fixed point, rounded.

    All numbers on the way are whole and below 2²⁴, so that float32 is exact.
    """
    luma = values[0] * 19595
    luma.add_(values[1], alpha=38470).add_(values[2], alpha=7471).add_(0x8000)
    return luma.mul_(2**-16).floor_()


def _blend(values: Tensor, degenerate: Tensor, factor: float) -> Tensor:
    """Return degenerate + factor · (values − degenerate), clipped to 0..255, in the memory of ``values``."""
    return values.sub_(degenerate).mul_(factor).add_(degenerate).clamp_(0, 255)
