"""Losses without labels: divergences between heads and from teachers, and the entropy of one head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from udas_fast.errors import bad
from udas_fast.ops import _check, _loss


def symmetric_kl(
    a: Tensor,
    b: Tensor,
    size: tuple[int, int],
    *,
    pixel_weight: Tensor | None = None,
    align_corners: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Return KL(p‖q) + KL(q‖p) per pixel, p = softmax(a), q = softmax(b) (UDAS, L_kl with ``kl="symmetric"``).

    Args:
        a: ``[N, C, h, w]`` float32, float16 or bfloat16, any strides. Gradients reach it.
        b: the same; h and w may differ from those of ``a``. Gradients reach it.
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
    size: tuple[int, int],
    *,
    pixel_weight: Tensor | None = None,
    align_corners: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Return KL(m‖primary) + KL(m‖auxiliary) per pixel, m = softmax(0.5·auxiliary + primary) detached.

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
    size: tuple[int, int],
    pixel_weight: Tensor | None,
    align_corners: bool,
    reduction: str,
) -> Tensor:
    _check.logits(*first)
    _check.alike(*second, *first)
    hw = _check.size(size)
    return _loss.dispatch(
        name,
        _check.one_dtype((first[1], second[1])),
        hw,
        pixel_weight=_check.pixel_weight(pixel_weight, first[1], *hw),
        align_corners=_check.flag("align_corners", align_corners),
        reduction=reduction,
    )


def distillation_kl(
    student: Tensor,
    teachers: Sequence[Tensor],
    size: tuple[int, int],
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    align_corners: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Return KL(m‖softmax(student/T)) per pixel, m = mean_k softmax(teacher_k/T) (DDM, student loss).

    No factor T² is applied.

    Args:
        student: ``[N, C, h, w]`` float32, float16 or bfloat16.
        teachers: 1 to 16 maps ``[N, C, h_k, w_k]`` of any size; no gradient reaches them.
        size: (H, W) at which the loss is computed.
        temperature: T > 0.
        mask: bool ``[N, H, W]``, the pixels that count; "mean" divides by their number (0 where none counts).
        pixel_weight: as in :func:`symmetric_kl`.
        align_corners: as in :func:`symmetric_kl`.
        reduction: as in :func:`symmetric_kl`.

    Returns:
        float32, a scalar, or ``[N, H, W]`` for "none".

    Raises:
        InputError: wrong shape, dtype, device or option, a temperature that is not finite and above 0.
    """
    _check.logits("student", student)
    teachers = [t.detach() for t in _check.count("teachers", teachers)]
    for k, teacher in enumerate(teachers):
        _check.alike(f"teachers[{k}]", teacher, "student", student)
    hw = _check.size(size)
    temperature = _check.positive("temperature", temperature)
    pixel_weight = _check.pixel_weight(pixel_weight, student, *hw)
    if mask is not None:
        _check.plane("mask", mask, student, *hw)
        if mask.dtype != torch.bool:
            raise bad("mask", mask.dtype, "bool")
    student, *teachers = _check.one_dtype((student, *teachers))
    return _loss.dispatch(
        "distillation_kl",
        [student],
        teachers,
        hw,
        temperature=temperature,
        mask=mask,
        pixel_weight=pixel_weight,
        align_corners=_check.flag("align_corners", align_corners),
        reduction=reduction,
    )


def entropy(
    logits: Tensor,
    size: tuple[int, int],
    *,
    pixel_weight: Tensor | None = None,
    align_corners: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Return −Σ_c p_c·log p_c / log C per pixel, from 0 to 1 (Vu et al., "ADVENT", 2019, eq. 4: MinEnt).

    Args:
        logits: ``[N, C, h, w]`` float32, float16 or bfloat16.
        size: as in :func:`symmetric_kl`.
        pixel_weight: as in :func:`symmetric_kl`.
        align_corners: as in :func:`symmetric_kl`.
        reduction: as in :func:`symmetric_kl`.

    Returns:
        float32, a scalar, or ``[N, H, W]`` for "none".

    Raises:
        InputError: wrong shape, dtype, device or option.
    """
    _check.logits("logits", logits)
    hw = _check.size(size)
    return _loss.dispatch(
        "entropy",
        [logits],
        hw,
        pixel_weight=_check.pixel_weight(pixel_weight, logits, *hw),
        align_corners=_check.flag("align_corners", align_corners),
        reduction=reduction,
    )


_loss.register("symmetric_kl", maps=2, size_at=2)
_loss.register("ensemble_kl", maps=2, size_at=2)
_loss.register("distillation_kl", maps=1, size_at=2)
_loss.register("entropy", maps=1, size_at=1)
