"""The loss operators as modules, for training code that is written with ``torch.nn`` losses.

Each calls the function of :mod:`udas_fast.ops` that has its name, and takes low-resolution logits like it. Options
are given once, at construction; ``pixel_weight`` and ``mask`` belong to the images, and are given with them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from udas_fast import ops
from udas_fast.ops import _check

__all__ = [
    "CrossEntropyLoss",
    "DistillationKLLoss",
    "EnsembleKLLoss",
    "EntropyLoss",
    "RectifiedCrossEntropyLoss",
    "SymmetricKLLoss",
]


class _Loss(nn.Module):
    """Options that every loss has, checked when it is made."""

    def __init__(self, *, align_corners: bool = False, reduction: str = "mean") -> None:
        super().__init__()
        _check.reduction(reduction)
        self.align_corners = _check.flag("align_corners", align_corners)
        self.reduction = reduction

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return ", ".join(
            f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_") and k != "training"
        )


class CrossEntropyLoss(_Loss):
    """Cross-entropy at the target's size (:func:`udas_fast.ops.cross_entropy`), in place of ``nn.CrossEntropyLoss``.

    Args:
        weight: ``[C]`` floating, a factor per class, or None. A buffer: it moves with the module.
        ignore_index: label of pixels without loss.
        align_corners: as in ``torch.nn.functional.interpolate``.
        reduction: "mean", "sum" or "none".

    Raises:
        InputError: an unknown reduction or a wrong option.
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = 255,
        align_corners: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(align_corners=align_corners, reduction=reduction)
        self.ignore_index = _check.ignored(ignore_index)
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, target: Tensor, pixel_weight: Tensor | None = None) -> Tensor:
        """Return the loss of ``logits`` ``[N, C, h, w]`` against ``target`` ``[N, H, W]``."""
        return ops.cross_entropy(
            logits,
            target,
            weight=self.weight,
            pixel_weight=pixel_weight,
            ignore_index=self.ignore_index,
            align_corners=self.align_corners,
            reduction=self.reduction,
        )


class RectifiedCrossEntropyLoss(_Loss):
    """Cross-entropy rectified by two heads' variance (:func:`udas_fast.ops.rectified_cross_entropy`).

    Args:
        ignore_index: label of pixels without cross-entropy.
        align_corners: as in ``torch.nn.functional.interpolate``.
        reduction: "mean", "sum" or "none".

    Raises:
        InputError: an unknown reduction or a wrong option.
    """

    def __init__(
        self, *, ignore_index: int = 255, align_corners: bool = False, reduction: str = "mean"
    ) -> None:
        super().__init__(align_corners=align_corners, reduction=reduction)
        self.ignore_index = _check.ignored(ignore_index)

    def forward(
        self, primary: Tensor, auxiliary: Tensor, target: Tensor, pixel_weight: Tensor | None = None
    ) -> Tensor:
        """Return the loss of both heads' logits ``[N, C, h, w]`` against ``target`` ``[N, H, W]``."""
        return ops.rectified_cross_entropy(
            primary,
            auxiliary,
            target,
            pixel_weight=pixel_weight,
            ignore_index=self.ignore_index,
            align_corners=self.align_corners,
            reduction=self.reduction,
        )


class SymmetricKLLoss(_Loss):
    """KL(p‖q) + KL(q‖p) between two heads (:func:`udas_fast.ops.symmetric_kl`).

    Args:
        align_corners: as in ``torch.nn.functional.interpolate``.
        reduction: "mean", "sum" or "none".

    Raises:
        InputError: an unknown reduction or a wrong option.
    """

    def forward(
        self, a: Tensor, b: Tensor, size: tuple[int, int], pixel_weight: Tensor | None = None
    ) -> Tensor:
        """Return the divergence of logits ``a`` and ``b`` ``[N, C, h, w]`` at ``size`` (H, W)."""
        return ops.symmetric_kl(
            a,
            b,
            size,
            pixel_weight=pixel_weight,
            align_corners=self.align_corners,
            reduction=self.reduction,
        )


class EnsembleKLLoss(_Loss):
    """KL from the heads' ensemble to each head (:func:`udas_fast.ops.ensemble_kl`).

    Args:
        align_corners: as in ``torch.nn.functional.interpolate``.
        reduction: "mean", "sum" or "none".

    Raises:
        InputError: an unknown reduction or a wrong option.
    """

    def forward(
        self, primary: Tensor, auxiliary: Tensor, size: tuple[int, int], pixel_weight: Tensor | None = None
    ) -> Tensor:
        """Return the divergence of both heads' logits ``[N, C, h, w]`` from their ensemble at ``size`` (H, W)."""
        return ops.ensemble_kl(
            primary,
            auxiliary,
            size,
            pixel_weight=pixel_weight,
            align_corners=self.align_corners,
            reduction=self.reduction,
        )


class DistillationKLLoss(_Loss):
    """KL from the teachers' mean to the student (:func:`udas_fast.ops.distillation_kl`).

    Args:
        temperature: T > 0.
        align_corners: as in ``torch.nn.functional.interpolate``.
        reduction: "mean", "sum" or "none".

    Raises:
        InputError: an unknown reduction or a wrong option.
    """

    def __init__(
        self, temperature: float = 1.0, *, align_corners: bool = False, reduction: str = "mean"
    ) -> None:
        super().__init__(align_corners=align_corners, reduction=reduction)
        self.temperature = _check.positive("temperature", temperature)

    def forward(
        self,
        student: Tensor,
        teachers: Sequence[Tensor],
        size: tuple[int, int],
        mask: Tensor | None = None,
        pixel_weight: Tensor | None = None,
    ) -> Tensor:
        """Return the divergence of ``student`` ``[N, C, h, w]`` from ``teachers`` at ``size`` (H, W)."""
        return ops.distillation_kl(
            student,
            teachers,
            size,
            temperature=self.temperature,
            mask=mask,
            pixel_weight=pixel_weight,
            align_corners=self.align_corners,
            reduction=self.reduction,
        )


class EntropyLoss(_Loss):
    """Normalised entropy of the predictions, from 0 to 1 (:func:`udas_fast.ops.entropy`).

    Args:
        align_corners: as in ``torch.nn.functional.interpolate``.
        reduction: "mean", "sum" or "none".

    Raises:
        InputError: an unknown reduction or a wrong option.
    """

    def forward(self, logits: Tensor, size: tuple[int, int], pixel_weight: Tensor | None = None) -> Tensor:
        """Return the entropy of ``logits`` ``[N, C, h, w]`` at ``size`` (H, W)."""
        return ops.entropy(
            logits,
            size,
            pixel_weight=pixel_weight,
            align_corners=self.align_corners,
            reduction=self.reduction,
        )
