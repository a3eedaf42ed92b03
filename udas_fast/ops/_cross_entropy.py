"""Losses against labels: cross-entropy at full resolution, and its rectified form."""

from __future__ import annotations

from torch import Tensor

from udas_fast.ops import _check, _loss


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
    """Return ``F.cross_entropy(F.interpolate(logits, target.shape[-2:]), target)`` without full-resolution logits.

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
        InputError: wrong shape, dtype or device; on the CPU also a label that is neither below C nor
            ``ignore_index`` (on CUDA the result is NaN, since finding out would wait for the device).
    """
    _check.logits("logits", logits)
    _check.labels("target", target, logits)
    height, width = target.shape[1:]
    pixel_weight = _check.pixel_weight(pixel_weight, logits, height, width)
    weight = None if weight is None else _check.class_values("weight", weight, logits)
    ignore_index, align_corners = _check.ignored(ignore_index), _check.flag("align_corners", align_corners)
    return _loss.dispatch(
        "cross_entropy",
        [logits],
        target,
        weight=weight,
        pixel_weight=pixel_weight,
        ignore_index=ignore_index,
        align_corners=align_corners,
        reduction=reduction,
    )


def rectified_cross_entropy(
    primary: Tensor,
    auxiliary: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Return mean(CE(primary)·exp(−var)) + mean(var), var = KL(auxiliary‖primary) per pixel.

    The heads' disagreement stands for the label's uncertainty (Zheng and Yang, "Rectifying Pseudo Label
    Learning via Uncertainty Estimation", 2020, eq. 8). Both means are over all N·H·W pixels, as in its code:
    an ignored pixel has no cross-entropy but keeps its variance. Gradients reach both heads.

    Args:
        primary: ``[N, C, h, w]`` float32, float16 or bfloat16.
        auxiliary: the same; h and w may differ from the primary's.
        target: ``[N, H, W]`` uint8 or int64.
        pixel_weight: as in :func:`cross_entropy`.
        ignore_index: as in :func:`cross_entropy`.
        align_corners: as in :func:`cross_entropy`.
        reduction: as in :func:`cross_entropy`.

    Returns:
        float32, a scalar, or ``[N, H, W]`` for "none".

    Raises:
        InputError: as in :func:`cross_entropy`.
    """
    _check.logits("primary", primary)
    _check.alike("auxiliary", auxiliary, "primary", primary)
    _check.labels("target", target, primary)
    height, width = target.shape[1:]
    pixel_weight = _check.pixel_weight(pixel_weight, primary, height, width)
    ignore_index, align_corners = _check.ignored(ignore_index), _check.flag("align_corners", align_corners)
    return _loss.dispatch(
        "rectified_cross_entropy",
        _check.one_dtype((primary, auxiliary)),
        target,
        pixel_weight=pixel_weight,
        ignore_index=ignore_index,
        align_corners=align_corners,
        reduction=reduction,
    )


_loss.register("cross_entropy", maps=1, size_at=1)
_loss.register("rectified_cross_entropy", maps=2, size_at=2)
