"""Cross-entropy against labels at full resolution."""

from __future__ import annotations

from torch import Tensor

from udas_fast.ops import _check
from udas_fast.ops._dispatch import dispatch_loss, register_loss


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Compute ``F.cross_entropy(F.interpolate(logits, target.shape[-2:]), target)`` in one pass.

    Full-resolution logits are never in memory.

    Args:
        logits: ``[N, C, h, w]`` float32, float16 or bfloat16, any strides, any h and w.
        target: ``[N, H, W]`` uint8 or int64, any strides; the loss is computed at its size.
        weight: ``[C]`` floating, a factor per class. As in PyTorch, "mean" divides by the weights' sum.
        pixel_weight: ``[N, H, W]`` floating, a factor per pixel. It scales the loss and does not enter the
            divisor of "mean", so that a pseudo-label's confidence lowers its share.
        ignore_index: label of pixels without loss.
        align_corners: as in ``torch.nn.functional.interpolate``.
        reduction: "mean" over the pixels that are not ignored (0 where there is none), "sum" or "none".

    Returns:
        float32, a scalar, or ``[N, H, W]`` for "none".

    Raises:
        InputError: wrong shape, dtype or device; on the CPU also a class weight that is not finite, and a label that
            is neither below C nor ``ignore_index`` (on CUDA the result is NaN, since finding out would wait for the
            device).
    """
    _check.logits("logits", logits)
    _check.labels("target", target, logits)
    return dispatch_loss(
        "cross_entropy",
        logits,
        target=target,
        weight=None if weight is None else _check.class_values("weight", weight, logits),
        pixel_weight=_check.pixel_weight(pixel_weight, logits, target.shape[1:]),
        ignore_index=_check.ignored(ignore_index),
        align_corners=_check.flag("align_corners", align_corners),
        reduction=_check.reduction(reduction),
    )


register_loss("cross_entropy")
