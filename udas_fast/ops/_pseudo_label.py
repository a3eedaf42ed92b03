"""Pseudo-labels of several views at full resolution, with confidences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from udas_fast.errors import bad
from udas_fast.ops import _check, _library, reference
from udas_fast.ops._dispatch import dispatch
from udas_fast.ops.reference import HISTOGRAM_BINS, PseudoLabel

Flips = Tensor | Sequence[bool] | Sequence[Sequence[bool]] | None


def pseudo_label(
    views: Sequence[Tensor],
    size: Sequence[int],
    *,
    threshold: float | Tensor = 0.6,
    temperature: float = 1.0,
    flips: Flips = None,
    reduce: str = "max",
    align_corners: bool = False,
    ignore_index: int = 255,
) -> PseudoLabel:
    """Compute pseudo-labels from K views of the same images, with confidences and their histogram.

    p_k = softmax(views_k / T) at full resolution. "max": the view with the largest maximum wins (UDAS,
    maximum confidence map; the lowest k of equals). "mean": the mean of the p_k decides (MixMatch, DDM). The class is
    the arg-max (the lowest of equals), and it is kept where its probability is at least the threshold.

    Args:
        views: 1 to 16 maps ``[N, C, h_k, w_k]`` float32, float16 or bfloat16; sizes may differ.
        size: (H, W) of the result.
        threshold: a finite number, or floating ``[C]``, one per class.
        temperature: T > 0.
        flips: which views are of the mirrored image, undone here: ``flips[k]`` or ``flips[k][n]``, or a bool
            tensor ``[K]`` or ``[K, N]``.
        reduce: "max" or "mean".
        align_corners: as in ``torch.nn.functional.interpolate``.
        ignore_index: the label of dropped pixels, 0 to 255.

    Returns:
        PseudoLabel(label, confidence, histogram): uint8 ``[N, H, W]``, float32 ``[N, H, W]``, and int64
        ``[C, 2, 64]``, which counts kept (0) and dropped (1) pixels by predicted class and floor(64·confidence).

    Raises:
        InputError: wrong shape, dtype, device or option; a threshold that is not finite.
    """
    views = _check.count("views", views)
    _check.logits("views[0]", views[0])
    for k, view in enumerate(views):
        _check.alike(f"views[{k}]", view, "views[0]", views[0])
    size = _check.size(size)
    temperature = _check.positive("temperature", temperature)
    number, per_class = _threshold(threshold, views[0])
    table, flipped_views = _flips(flips, views)
    _check.choice("reduce", reduce, ("max", "mean"))
    ignore_index = _check.ignore_byte(ignore_index)
    align_corners = _check.flag("align_corners", align_corners)
    found = dispatch(
        "pseudo_label",
        _check.one_dtype(views),
        size=size,
        threshold=number if per_class is None else per_class,
        temperature=temperature,
        flips=flips,
        reduce=reduce,
        align_corners=align_corners,
        ignore_index=ignore_index,
        schema=(
            size,
            number,
            per_class,
            temperature,
            table,
            flipped_views,
            reduce == "mean",
            align_corners,
            ignore_index,
        ),
    )
    return PseudoLabel(*found)


def _threshold(value: float | Tensor, like: Tensor) -> tuple[float, Tensor | None]:
    """Check the threshold and return (number, None) or (0, per class)."""
    if not isinstance(value, Tensor):
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise bad("threshold", value, "a finite number or a tensor [C]")
        return float(value), None
    return 0.0, _check.class_values("threshold", value, like)


def _flips(flips: Flips, views: Sequence[Tensor]) -> tuple[Tensor | None, int]:
    """Check the flips and return those by sample as a table ``[K, N]``, those of whole views as the bits of a number.

    A number is passed by value: a table on a GPU is made by a kernel for each view.
    """
    k, n = len(views), views[0].shape[0]
    if isinstance(flips, Tensor):
        good = flips.dtype == torch.bool and (flips.shape == (k,) or flips.shape == (k, n))
        found: Any = f"{flips.dtype} {list(flips.shape)}"
    elif flips is not None:
        good = isinstance(flips, Sequence) and len(flips) == k and all(_is_flip(f, n) for f in flips)
        found = flips
    else:
        return None, 0
    if not good:
        raise bad("flips", found, f"{k} booleans, one per view, or {k} rows of {n}")
    if not isinstance(flips, Tensor) and all(isinstance(flip, bool) for flip in flips):
        return None, sum(1 << view for view, flip in enumerate(flips) if flip)
    return reference.flip_table(flips, k, n, views[0].device), 0


def _is_flip(value: Any, n: int) -> bool:
    """Return whether ``value`` is a bool, or one for each of ``n`` samples."""
    if isinstance(value, Tensor):
        return value.dtype == torch.bool and value.shape in ((), (n,))
    many = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == n
    return isinstance(value, bool) or (many and all(isinstance(v, bool) for v in value))


def _fake(views: list[Tensor], size: list[int], *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    like = views[0]
    shape = (like.shape[0], *size)
    return (
        like.new_empty(shape, dtype=torch.uint8),
        like.new_empty(shape, dtype=torch.float32),
        like.new_empty((like.shape[1], 2, HISTOGRAM_BINS), dtype=torch.int64),
    )


_library.register("pseudo_label", _fake)
