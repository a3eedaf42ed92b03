"""Full-resolution maps from low-resolution logits, for networks that take them as input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from udas_fast.ops import _check, _library
from udas_fast.ops._dispatch import differentiable_once, dispatch, refuse_forward_mode

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
    schema = size, code, align_corners
    if torch.is_grad_enabled() and logits.requires_grad and _library.is_compiled("upsample", logits):
        refuse_forward_mode("upsample", (logits,))
        return _UpsampleFunction.apply(logits, schema)
    options: dict[str, Any] = {"size": size, "activation": activation, "align_corners": align_corners}
    return dispatch("upsample", logits, schema=schema, **options)


class _UpsampleFunction(torch.autograd.Function):
    """The compiled operator with its gradient, which saves its input alone."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, schema: tuple[Any, ...]) -> Tensor:
        ctx.options = schema[1:]
        ctx.save_for_backward(logits)
        return _library.call("upsample", logits, *schema)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (logits,) = ctx.saved_tensors

        def back() -> list[Tensor]:
            return [_library.call("upsample_backward", gradient, logits, *ctx.options)]

        return *differentiable_once("upsample", back), None


def _fake(logits: Tensor, size: list[int], *_: Any) -> Tensor:
    return logits.new_empty((*logits.shape[:2], *size), dtype=torch.float32)


def _backward_fake(gradient: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape, dtype=torch.float32)


_library.register("upsample", _fake)
if not _library.REASON:
    _library.register_fake("upsample_backward", _backward_fake)
