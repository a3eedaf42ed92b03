"""Mixing two images and their labels by a region."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from udas_fast.errors import bad
from udas_fast.ops import _check, _library
from udas_fast.ops._dispatch import dispatch

IMAGE_DTYPES = (torch.uint8, *_check.LOGIT_DTYPES)


def region_mix(
    inside: Tensor,
    outside: Tensor,
    inside_label: Tensor,
    outside_label: Tensor,
    region: Tensor,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    out_dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute M⊙inside + (1−M)⊙outside for image and label, normalised, cast and laid out in one pass.

    Args:
        inside: images ``[N, channels, H, W]``, uint8, float32, float16 or bfloat16, any strides.
        outside: images of the same shape and dtype.
        inside_label: labels ``[N, H, W]``, uint8 or int64.
        outside_label: labels of the same shape and dtype.
        region: M, as int32 boxes ``[N, 4]`` (x0, y0, x1, y1), as a bool class table ``[N, C]`` (ClassMix: M
            where ``inside_label`` is in the sample's set; 255 never is), or as a bool mask ``[N, H, W]``.
        mean: one number per channel, which is subtracted. uint8 images that become floating are scaled to
            [0, 1] before; floating images are taken as they are.
        std: one number per channel, by which the difference is divided.
        out_dtype: of the image; by default its own dtype, or float32 for normalised uint8.
        channels_last: memory layout of the image.

    Returns:
        image ``[N, channels, H, W]`` and label ``[N, H, W]``, both new.

    Raises:
        InputError: wrong shape, dtype or device; on the CPU a label outside the class table.
    """
    _check_images(inside, outside)
    _check.labels("inside_label", inside_label, inside)
    height, width = inside.shape[2:]
    for name, label in (("inside_label", inside_label), ("outside_label", outside_label)):
        _check.plane(name, label, inside, height, width)
    if outside_label.dtype != inside_label.dtype:
        raise bad("outside_label", outside_label.dtype, f"the dtype of inside_label, {inside_label.dtype}")
    _check_region(region, inside)
    channels_last = _check.flag("channels_last", channels_last)
    mean, std = _per_channel("mean", mean, inside), _per_channel("std", std, inside)
    if any(s == 0 for s in std):
        raise bad("std", list(std), "numbers other than 0")
    dtype = _out_dtype(out_dtype, inside, bool(mean or std))
    return dispatch(
        "region_mix",
        inside,
        outside,
        inside_label,
        outside_label,
        region,
        mean=mean or None,
        std=std or None,
        out_dtype=dtype,
        channels_last=channels_last,
        schema=(mean, std, dtype, channels_last),
    )


def _check_images(inside: Tensor, outside: Tensor) -> None:
    _check.tensor("inside", inside, "an image tensor [N, channels, H, W]")
    _check.tensor("outside", outside, "an image tensor [N, channels, H, W]")
    if inside.dim() != 4:
        raise bad("inside", _check.shape(inside), "[N, channels, H, W]")
    if inside.dtype not in IMAGE_DTYPES:
        raise bad("inside", inside.dtype, "uint8, float32, float16 or bfloat16")
    if outside.shape != inside.shape or outside.dtype != inside.dtype:
        found = f"{outside.dtype} {list(outside.shape)}"
        raise bad("outside", found, f"as inside, {inside.dtype} {list(inside.shape)}")
    _check.same_device("outside", outside, "inside", inside)
    _check.constant("inside", inside)
    _check.constant("outside", outside)


def _check_region(region: Tensor, image: Tensor) -> None:
    _check.tensor("region", region, "a tensor of boxes, classes or pixels")
    n, _, height, width = image.shape
    boxes = region.dtype == torch.int32 and region.shape == (n, 4)
    table = region.dtype == torch.bool and region.dim() == 2 and region.shape[0] == n and region.shape[1] >= 1
    mask = region.dtype == torch.bool and region.shape == (n, height, width)
    if not (boxes or table or mask):
        expected = (
            f"int32 boxes [{n}, 4], a bool class table [{n}, C] or a bool mask [{n}, {height}, {width}]"
        )
        raise bad("region", f"{region.dtype} {list(region.shape)}", expected)
    _check.same_device("region", region, "inside", image)


def _per_channel(name: str, values: Sequence[float] | None, image: Tensor) -> list[float]:
    if values is None:
        return []
    numbers = list(values) if isinstance(values, (Sequence, Tensor)) and len(values) == image.shape[1] else []
    if not numbers or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in numbers):
        raise bad(name, values, f"{image.shape[1]} finite numbers, one per channel")
    return [float(v) for v in numbers]


def _out_dtype(dtype: torch.dtype | None, image: Tensor, normalised: bool) -> torch.dtype:
    if dtype is None:
        return torch.float32 if normalised and image.dtype == torch.uint8 else image.dtype
    if dtype not in IMAGE_DTYPES:
        raise bad("out_dtype", dtype, "uint8, float32, float16 or bfloat16")
    if dtype == torch.uint8 and (normalised or image.dtype != torch.uint8):
        raise bad("out_dtype", dtype, "a floating dtype, since the image is floating or normalised")
    return dtype


def _fake(
    inside: Tensor,
    outside: Tensor,
    inside_label: Tensor,
    outside_label: Tensor,
    region: Tensor,
    mean: list[float],
    std: list[float],
    out_dtype: torch.dtype,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    image = torch.empty(inside.shape, dtype=out_dtype, device=inside.device, memory_format=layout)
    return image, inside_label.new_empty(inside_label.shape)


_library.register("region_mix", _fake)
