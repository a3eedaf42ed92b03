"""Cross-entropy against uncertain labels, weighted by the agreement of two heads."""

from __future__ import annotations

from torch import Tensor

from udas_fast.ops import _check
from udas_fast.ops._dispatch import dispatch_loss, register_loss


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
    """Compute mean(CE(primary)·exp(−var)) + mean(var), var = KL(auxiliary‖primary) per pixel.

    The disagreement of the heads estimates the uncertainty of the label (Zheng and Yang, "Rectifying Pseudo Label
    Learning via Uncertainty Estimation", 2020, eq. 8). Both means are over all N·H·W pixels, as in the
    authors' code: an ignored pixel has no cross-entropy but keeps its variance. Gradients reach both heads.

    Args:
        primary: ``[N, C, h, w]`` float32, float16 or bfloat16, the head that learns the labels.
        auxiliary: the same; h and w may differ from those of ``primary``.
        target: ``[N, H, W]`` uint8 or int64.
        pixel_weight: ``[N, H, W]`` floating, a factor per pixel that does not enter the divisor of "mean".
        ignore_index: label of pixels without cross-entropy.
        align_corners: as in ``torch.nn.functional.interpolate``.
        reduction: "mean" over N·H·W pixels, "sum" or "none".

    Returns:
        float32, a scalar, or ``[N, H, W]`` for "none".

    Raises:
        InputError: as in :func:`udas_fast.ops.cross_entropy`.
    """
    _check.logits("primary", primary)
    _check.alike("auxiliary", auxiliary, "primary", primary)
    _check.labels("target", target, primary)
    return dispatch_loss(
        "rectified_cross_entropy",
        *_check.one_dtype((primary, auxiliary)),
        target=target,
        pixel_weight=_check.pixel_weight(pixel_weight, primary, target.shape[1:]),
        ignore_index=_check.ignored(ignore_index),
        align_corners=_check.flag("align_corners", align_corners),
        reduction=_check.reduction(reduction),
    )


register_loss("rectified_cross_entropy")
