"""Full-resolution maps from low-resolution logits, for networks that take them as input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from udas_fast.ops import _check, _library
from udas_fast.ops._dispatch import differentiable_once, dispatch

ACTIVATIONS = {"none": 0, "softmax": 1, "self_information": 2}


def upsample(
    logits: Tensor, size: Sequence[int], *, activation: str = "softmax", align_corners: bool = False
) -> Tensor:
    """Upsample logits bilinearly and apply an activation over the classes, as input of discriminators.

    No other map of the result's size is made, and only ``logits`` are kept for the backward pass.

    Args:
        logits: ``[N, C, h, w]`` float32, float16 or bfloat16, any strides, any h and w.
        size: (H, W) of the result.
        activation: "softmax" p (AdaptSegNet), "self_information" −p·log2(p + 1e-30) / log2 C (AdvEnt, Vu et
            al. 2019, eq. 5), or "none", the scores (CyCADA).
        align_corners: as in ``torch.nn.functional.interpolate``.

    Returns:
        float32 ``[N, C, H, W]``, contiguous.

    Raises:
        InputError: wrong shape, dtype or option.
    """
    _check.logits("logits", logits)
    size = _check.size(size)
    code = ACTIVATIONS[_check.choice("activation", activation, ACTIVATIONS)]
    align_corners = _check.flag("align_corners", align_corners)
    options: dict[str, Any] = {"size": size, "activation": activation, "align_corners": align_corners}
    return dispatch("upsample", logits, schema={"activation": code}, **options)


def _fake(logits: Tensor, size: list[int], *_: Any) -> Tensor:
    return logits.new_empty((*logits.shape[:2], *size), dtype=torch.float32)


def _backward_fake(gradient: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape, dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, _, ctx.activation, ctx.align_corners = inputs
    ctx.save_for_backward(logits)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (logits,) = ctx.saved_tensors
    with torch.no_grad():
        back = torch.ops.udas_fast.upsample_backward.default(
            gradient, logits, ctx.activation, ctx.align_corners
        )
    return *differentiable_once("upsample", [back.to(logits.dtype)]), None, None, None


_library.register("upsample", _fake)
if not _library.REASON:
    _library.register_fake("upsample_backward", _backward_fake)
    torch.library.register_autograd("udas_fast::upsample", _backward, setup_context=_setup_context)
