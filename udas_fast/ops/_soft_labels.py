"""Cross-entropy and squared error against probabilities at low resolution."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from udas_fast.ops import _check
from udas_fast.ops._dispatch import dispatch_loss, register_loss


def soft_cross_entropy(
    logits: Tensor,
    probabilities: Tensor,
    size: Sequence[int],
    *,
    mask: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    align_corners: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Compute −Σ_c q_c · log p_c per pixel, p = softmax(logits) (MixMatch, eq. 3).

    q is interpolated like the logits, and need not add up to 1: factors by class or by image may be in it.

    Args:
        logits: ``[N, C, h, w]`` float32, float16 or bfloat16.
        probabilities: q, ``[N, C, h_q, w_q]`` of any size; no gradient reaches it.
        size: (H, W) at which the loss is computed.
        mask: bool ``[N, H, W]``, the pixels that count; "mean" divides by their number (0 where none counts).
        pixel_weight: ``[N, H, W]`` floating, a factor per pixel that does not enter the divisor of "mean".
        align_corners: as in ``torch.nn.functional.interpolate``, of both maps.
        reduction: "mean" over the pixels that count, "sum" or "none".

    Returns:
        float32, a scalar, or ``[N, H, W]`` for "none".

    Raises:
        InputError: wrong shape, dtype, device or option.
    """
    _check.logits("logits", logits)
    _check.alike("probabilities", probabilities, "logits", logits)
    size = _check.size(size)
    _check.mask(mask, logits, size)
    logits, probabilities = _check.one_dtype((logits, probabilities))
    return dispatch_loss(
        "soft_cross_entropy",
        logits,
        probabilities=probabilities,
        size=size,
        mask=mask,
        pixel_weight=_check.pixel_weight(pixel_weight, logits, size),
        align_corners=_check.flag("align_corners", align_corners),
        reduction=_check.reduction(reduction),
    )


def squared_error(
    logits: Tensor,
    target: Tensor,
    size: Sequence[int],
    *,
    mask: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Compute Σ_c (p_c − q_c)² per pixel, p = softmax(logits) (MixMatch, eq. 4; of labels, Brier's score).

    Args:
        logits: ``[N, C, h, w]`` float32, float16 or bfloat16.
        target: q, floating ``[N, C, h_q, w_q]`` of any size, to which no gradient flows; or labels, uint8 or int64
            ``[N, H, W]``, whose one-hot vectors are q.
        size: (H, W) at which the loss is computed.
        mask: bool ``[N, H, W]``, the pixels that count; "mean" divides by their number (0 where none counts).
        pixel_weight: ``[N, H, W]`` floating, a factor per pixel that does not enter the divisor of "mean".
        ignore_index: label of pixels that do not count.
        align_corners: as in ``torch.nn.functional.interpolate``, of both maps.
        reduction: "mean" over the pixels that count, "sum" or "none".

    Returns:
        float32, a scalar, or ``[N, H, W]`` for "none".

    Raises:
        InputError: wrong shape, dtype, device or option; on the CPU also a label that is neither below C nor
            ``ignore_index`` (on CUDA the result is NaN).
    """
    _check.logits("logits", logits)
    size, ignore_index = _check.size(size), _check.ignored(ignore_index)
    _check.mask(mask, logits, size)
    if isinstance(target, Tensor) and target.dim() == 4:
        _check.alike("target", target, "logits", logits)
        logits, target = _check.one_dtype((logits, target))
    else:
        _check.labels("target", target, logits)
        _check.plane("target", target, logits, *size)
        counts = target != ignore_index
        mask = counts if mask is None else mask & counts
    return dispatch_loss(
        "squared_error",
        logits,
        target=target,
        size=size,
        mask=mask,
        pixel_weight=_check.pixel_weight(pixel_weight, logits, size),
        ignore_index=ignore_index,
        align_corners=_check.flag("align_corners", align_corners),
        reduction=_check.reduction(reduction),
    )


register_loss("soft_cross_entropy")
register_loss("squared_error")
