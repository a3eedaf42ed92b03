"""The losses of :mod:`udas_fast.ops` as modules: options in the constructor, tensors in ``forward``.

Logits are ``[N, C, h, w]`` of any resolution, float32, float16 or bfloat16; each loss is computed at the resolution of
its labels, or at ``size``, and full-resolution logits are never in memory. A result is float32: a scalar, or
``[N, H, W]`` with ``reduction="none"``. Wrong tensors and options raise :class:`udas_fast.errors.InputError`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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


class _Loss(torch.nn.Module):
    """Options that every loss has."""

    shown: tuple[str, ...] = ()
    """Names of the other options, for ``repr``."""

    def __init__(self, *, align_corners: bool = False, reduction: str = "mean") -> None:
        super().__init__()
        self.align_corners = _check.flag("align_corners", align_corners)
        self.reduction = _check.choice("reduction", reduction, _check.REDUCTIONS)

    def extra_repr(self) -> str:
        """List the options."""
        names = (*self.shown, "align_corners", "reduction")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


class CrossEntropyLoss(_Loss):
    """Cross-entropy of upsampled logits, as ``torch.nn.CrossEntropyLoss`` computes it at full resolution.

    Args:
        weight: ``[C]`` floating, a factor per class; a buffer of the module. "mean" divides by the weights' sum.
        ignore_index: label of pixels without loss.
        align_corners: as in ``torch.nn.functional.interpolate``.
        reduction: "mean" over the pixels that are not ignored (0 where there is none), "sum" or "none".

    Shape:
        logits ``[N, C, h, w]``, target ``[N, H, W]`` uint8 or int64, pixel_weight ``[N, H, W]`` or None.

    See :func:`udas_fast.ops.cross_entropy`.
    """

    shown = ("ignore_index",)
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
        if weight is not None:
            _check.class_vector("weight", weight)
        self.ignore_index = _check.ignored(ignore_index)
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, target: Tensor, pixel_weight: Tensor | None = None) -> Tensor:
        """Return the loss of ``logits`` against ``target``."""
        return ops.cross_entropy(
            logits,
            target,
            weight=self.weight,
            pixel_weight=pixel_weight,
            ignore_index=self.ignore_index,
            align_corners=self.align_corners,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """List the options, the class weights by their number."""
        weighted = "" if self.weight is None else f"weight=[{self.weight.numel()}], "
        return weighted + super().extra_repr()


class RectifiedCrossEntropyLoss(_Loss):
    """Cross-entropy of the primary head, weighted by its agreement with the auxiliary head, plus their variance.

    Args:
        ignore_index: label of pixels without cross-entropy.
        align_corners: as in ``torch.nn.functional.interpolate``.
        reduction: "mean" over all pixels, "sum" or "none".

    Shape:
        primary and auxiliary ``[N, C, h, w]``, h and w of their own, target ``[N, H, W]`` uint8 or int64,
        pixel_weight ``[N, H, W]`` or None.

    See :func:`udas_fast.ops.rectified_cross_entropy`.
    """

    shown = ("ignore_index",)

    def __init__(
        self, *, ignore_index: int = 255, align_corners: bool = False, reduction: str = "mean"
    ) -> None:
        super().__init__(align_corners=align_corners, reduction=reduction)
        self.ignore_index = _check.ignored(ignore_index)

    def forward(
        self, primary: Tensor, auxiliary: Tensor, target: Tensor, pixel_weight: Tensor | None = None
    ) -> Tensor:
        """Return the loss of both heads against ``target``."""
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
    """KL(a‖b) + KL(b‖a) of the softmaxes of two heads; both learn.

    Args:
        align_corners: as in ``torch.nn.functional.interpolate``.
        reduction: "mean" over all pixels, "sum" or "none".

    Shape:
        a and b ``[N, C, h, w]``, h and w of their own, size (H, W), pixel_weight ``[N, H, W]`` or None.

    See :func:`udas_fast.ops.symmetric_kl`.
    """

    def forward(
        self, a: Tensor, b: Tensor, size: Sequence[int], pixel_weight: Tensor | None = None
    ) -> Tensor:
        """Return the divergence of ``a`` and ``b`` at ``size``."""
        return ops.symmetric_kl(
            a,
            b,
            size,
            pixel_weight=pixel_weight,
            align_corners=self.align_corners,
            reduction=self.reduction,
        )


class EnsembleKLLoss(_Loss):
    """KL of the ensemble of two heads, held constant, to each of them (MRNet's memory regularisation).

    Args:
        align_corners: as in ``torch.nn.functional.interpolate``.
        reduction: "mean" over all pixels, "sum" or "none".

    Shape:
        primary and auxiliary ``[N, C, h, w]``, h and w of their own, size (H, W), pixel_weight ``[N, H, W]`` or
        None.

    See :func:`udas_fast.ops.ensemble_kl`.
    """

    def forward(
        self, primary: Tensor, auxiliary: Tensor, size: Sequence[int], pixel_weight: Tensor | None = None
    ) -> Tensor:
        """Return the divergence of both heads from their ensemble at ``size``."""
        return ops.ensemble_kl(
            primary,
            auxiliary,
            size,
            pixel_weight=pixel_weight,
            align_corners=self.align_corners,
            reduction=self.reduction,
        )


class DistillationKLLoss(_Loss):
    """KL of the mean of the teachers' softmaxes, held constant, to the student's softmax.

    Args:
        temperature: T > 0, by which all logits are divided; no factor T² is applied.
        align_corners: as in ``torch.nn.functional.interpolate``.
        reduction: "mean" over the pixels that count, "sum" or "none".

    Shape:
        student ``[N, C, h, w]``, teachers 1 to 16 maps ``[N, C, h_k, w_k]``, size (H, W), mask bool ``[N, H, W]``
        (the pixels that count) or None, pixel_weight ``[N, H, W]`` or None.

    See :func:`udas_fast.ops.distillation_kl`.
    """

    shown = ("temperature",)

    def __init__(
        self, temperature: float = 1.0, *, align_corners: bool = False, reduction: str = "mean"
    ) -> None:
        super().__init__(align_corners=align_corners, reduction=reduction)
        self.temperature = _check.positive("temperature", temperature)

    def forward(
        self,
        student: Tensor,
        teachers: Sequence[Tensor],
        size: Sequence[int],
        mask: Tensor | None = None,
        pixel_weight: Tensor | None = None,
    ) -> Tensor:
        """Return the divergence of ``student`` from ``teachers`` at ``size``."""
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
    """Entropy of the softmax, from 0 to 1 (MinEnt).

    Args:
        align_corners: as in ``torch.nn.functional.interpolate``.
        reduction: "mean" over all pixels, "sum" or "none".

    Shape:
        logits ``[N, C, h, w]``, size (H, W), pixel_weight ``[N, H, W]`` or None.

    See :func:`udas_fast.ops.entropy`.
    """

    def forward(self, logits: Tensor, size: Sequence[int], pixel_weight: Tensor | None = None) -> Tensor:
        """Return the entropy of ``logits`` at ``size``."""
        return ops.entropy(
            logits,
            size,
            pixel_weight=pixel_weight,
            align_corners=self.align_corners,
            reduction=self.reduction,
        )
