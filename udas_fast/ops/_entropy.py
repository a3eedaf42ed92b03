"""Entropy of the predictions of one head."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from udas_fast.ops import _check
from udas_fast.ops._dispatch import dispatch_loss, register_loss


def entropy(
    logits: Tensor,
    size: Sequence[int],
    *,
    pixel_weight: Tensor | None = None,
    align_corners: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Compute −Σ_c p_c·log p_c / log C per pixel, from 0 to 1 (Vu et al., "ADVENT", 2019, eq. 4: MinEnt).

    Args:
        logits: ``[N, C, h, w]`` float32, float16 or bfloat16.
        size: (H, W) at which the loss is computed.
        pixel_weight: ``[N, H, W]`` floating, a factor per pixel that does not enter the divisor of "mean".
        align_corners: as in ``torch.nn.functional.interpolate``.
        reduction: "mean" over N·H·W pixels, "sum" or "none".

    Returns:
        float32, a scalar, or ``[N, H, W]`` for "none".

    Raises:
        InputError: wrong shape, dtype, device or option.
    """
    _check.logits("logits", logits)
    size = _check.size(size)
    return dispatch_loss(
        "entropy",
        logits,
        size=size,
        pixel_weight=_check.pixel_weight(pixel_weight, logits, size),
        align_corners=_check.flag("align_corners", align_corners),
        reduction=_check.reduction(reduction),
    )


register_loss("entropy")
