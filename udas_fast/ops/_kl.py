"""Divergences between two heads, and from teachers to a student."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from udas_fast.ops import _check
from udas_fast.ops._dispatch import dispatch_loss, register_loss


def symmetric_kl(
    a: Tensor,
    b: Tensor,
    size: Sequence[int],
    *,
    pixel_weight: Tensor | None = None,
    align_corners: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Compute KL(p‖q) + KL(q‖p) per pixel, p = softmax(a), q = softmax(b) (UDAS, L_kl with ``kl="symmetric"``).

    Args:
        a: ``[N, C, h, w]`` float32, float16 or bfloat16, any strides.
        b: the same; h and w may differ from those of ``a``. Gradients reach both.
        size: (H, W) at which the loss is computed.
        pixel_weight: ``[N, H, W]`` floating, a factor per pixel that does not enter the divisor of "mean".
        align_corners: as in ``torch.nn.functional.interpolate``.
        reduction: "mean" over N·H·W pixels, "sum" or "none".

    Returns:
        float32, a scalar, or ``[N, H, W]`` for "none".

    Raises:
        InputError: wrong shape, dtype, device or option.
    """
    return _two_heads("symmetric_kl", ("a", a), ("b", b), size, pixel_weight, align_corners, reduction)


def ensemble_kl(
    primary: Tensor,
    auxiliary: Tensor,
    size: Sequence[int],
    *,
    pixel_weight: Tensor | None = None,
    align_corners: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Compute KL(m‖primary) + KL(m‖auxiliary) per pixel, m = softmax(0.5·auxiliary + primary) detached.

    The memory regularisation of MRNet (Zheng and Yang, "Unsupervised Scene Adaptation with Memory
    Regularization in vivo", 2020), UDAS's L_kl by default. Arguments, result and errors as in
    :func:`symmetric_kl`.
    """
    heads = ("primary", primary), ("auxiliary", auxiliary)
    return _two_heads("ensemble_kl", *heads, size, pixel_weight, align_corners, reduction)


def _two_heads(
    name: str,
    first: tuple[str, Tensor],
    second: tuple[str, Tensor],
    size: Sequence[int],
    pixel_weight: Tensor | None,
    align_corners: bool,
    reduction: str,
) -> Tensor:
    _check.logits(*first)
    _check.alike(*second, *first)
    size = _check.size(size)
    return dispatch_loss(
        name,
        *_check.one_dtype((first[1], second[1])),
        size=size,
        pixel_weight=_check.pixel_weight(pixel_weight, first[1], size),
        align_corners=_check.flag("align_corners", align_corners),
        reduction=_check.reduction(reduction),
    )


def distillation_kl(
    student: Tensor,
    teachers: Sequence[Tensor],
    size: Sequence[int],
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    align_corners: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Compute KL(m‖softmax(student/T)) per pixel, m = mean_k softmax(teacher_k/T) (DDM, student loss).

    No factor T² is applied.

    Args:
        student: ``[N, C, h, w]`` float32, float16 or bfloat16.
        teachers: 1 to 16 maps ``[N, C, h_k, w_k]`` of any size; no gradient reaches them.
        size: (H, W) at which the loss is computed.
        temperature: T > 0.
        mask: bool ``[N, H, W]``, the pixels that count; "mean" divides by their number (0 where none counts).
        pixel_weight: ``[N, H, W]`` floating, a factor per pixel that does not enter the divisor of "mean".
        align_corners: as in ``torch.nn.functional.interpolate``.
        reduction: "mean" over the pixels that count, "sum" or "none".

    Returns:
        float32, a scalar, or ``[N, H, W]`` for "none".

    Raises:
        InputError: wrong shape, dtype, device or option, a temperature that is not finite and above 0.
    """
    _check.logits("student", student)
    teachers = _check.count("teachers", teachers)
    for k, teacher in enumerate(teachers):
        _check.alike(f"teachers[{k}]", teacher, "student", student)
    size = _check.size(size)
    _check.mask(mask, student, size)
    student, *teachers = _check.one_dtype((student, *teachers))
    return dispatch_loss(
        "distillation_kl",
        student,
        teachers=teachers,
        size=size,
        temperature=_check.positive("temperature", temperature),
        mask=mask,
        pixel_weight=_check.pixel_weight(pixel_weight, student, size),
        align_corners=_check.flag("align_corners", align_corners),
        reduction=_check.reduction(reduction),
    )


register_loss("symmetric_kl")
register_loss("ensemble_kl")
register_loss("distillation_kl")
