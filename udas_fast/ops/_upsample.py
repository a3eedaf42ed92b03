"""Full-resolution maps of low-resolution logits, for networks (discriminators) that see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from udas_fast.ops import _check, _library, reference

ACTIVATIONS = {"none": 0, "softmax": 1, "self_information": 2}


def upsample(
    logits: Tensor, size: Sequence[int], *, activation: str = "softmax", align_corners: bool = False
) -> Tensor:
    """Return bilinearly upsampled logits with an activation over the classes, the input of discriminators.

    Beside the result nothing of its size is made, and for the backward pass only ``logits`` are kept.

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
    hw = _check.size(size)
    code = ACTIVATIONS[_check.choice("activation", activation, ACTIVATIONS)]
    align_corners = _check.flag("align_corners", align_corners)
    if not _library.compiled("upsample", logits):
        return reference.upsample(logits, hw, activation=activation, align_corners=align_corners)
    return _library.call("upsample", logits, hw, code, align_corners)


def _fake(logits: Tensor, size: list[int], *_: Any) -> Tensor:
    return logits.new_empty((*logits.shape[:2], *size), dtype=torch.float32)


def _backward_fake(gradient: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape, dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, _, ctx.activation, ctx.align_corners = inputs
    ctx.save_for_backward(logits)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    logits, gradient = ctx.saved_tensors[0].detach(), gradient.detach()  # no second derivative
    back = torch.ops.udas_fast.upsample_backward.default(gradient, logits, ctx.activation, ctx.align_corners)
    return back.to(logits.dtype), None, None, None


_library.register_fake("upsample", _fake)
_library.register_fake("upsample_backward", _backward_fake)
if not _library.REASON:
    torch.library.register_autograd("udas_fast::upsample", _backward, setup_context=_setup_context)
