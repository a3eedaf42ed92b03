"""Losses of segmentation outputs that several methods share; each works on low-resolution logits (udas_fast.ops)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from udas_fast import distributed, ops
from udas_fast.data.classes import IGNORE
from udas_fast.errors import InputError
from udas_fast.models import SegmentationOutput


def segmentation_loss(
    output: SegmentationOutput,
    label: Tensor,
    auxiliary_weight: float,
    *,
    class_weights: Tensor | None = None,
    pixel_weight: Tensor | None = None,
) -> Tensor:
    """Return L_seg = CE(primary) + λ_seg · CE(auxiliary) at the label's size (UDAS section 3.3).

    Args:
        output: logits of a batch.
        label: uint8 ``[N, H, W]`` train ids; 255 is ignored, and a batch of nothing else gives zero. Where several
            processes share a batch, each one's mean counts by its labelled pixels.
        auxiliary_weight: λ_seg; unused where the network has no auxiliary head.
        class_weights: float ``[C]``, :attr:`Objective.class_weights`, for labelled images: the mean over the pixels is
            weighted by that of their class.
        pixel_weight: float ``[N, H, W]``, multiplies each pixel's cross-entropy; the mean is still over all pixels that
            have a label.
    """
    loss = _cross_entropy(output.primary, output, label, class_weights, pixel_weight)
    if output.auxiliary is not None and auxiliary_weight:
        second = _cross_entropy(output.auxiliary, output, label, class_weights, pixel_weight)
        loss = loss + auxiliary_weight * second
    if distributed.get_world_size() == 1:
        return loss
    counted = label != IGNORE
    if class_weights is not None:
        counted = F.pad(class_weights, (0, 256 - len(class_weights)))[label.long()]
    return loss * distributed.loss_scale_for_valid_pixels(counted)


def _cross_entropy(
    logits: Tensor,
    output: SegmentationOutput,
    label: Tensor,
    class_weights: Tensor | None,
    pixel_weight: Tensor | None,
) -> Tensor:
    return ops.cross_entropy(
        logits, label, weight=class_weights, pixel_weight=pixel_weight, align_corners=output.align_corners
    )


Agreement: TypeAlias = Literal["cross_entropy", "symmetric", "mean"]


def agreement_loss(output: SegmentationOutput, size: tuple[int, int], kl: Agreement) -> Tensor:
    """Return L_kl between the heads, averaged over the pixels of ``size`` (H, W).

    ``cross_entropy``: −Σ F_a log F_p − Σ F_p log F_a, as UDAS 3.3 prints it: ``symmetric`` and both heads' entropies.
    ``symmetric``: KL(auxiliary‖primary) + KL(primary‖auxiliary), what UDAS calls it; nothing is detached in either.
    ``mean``: KL(m‖primary) + KL(m‖auxiliary) with m = softmax(0.5·auxiliary + primary) detached (MRNet's code).

    Raises:
        InputError: the network has no auxiliary head.
    """
    primary, auxiliary = both_heads(output, "the KL between heads")
    if kl == "mean":
        return ops.ensemble_kl(primary, auxiliary, size, align_corners=output.align_corners)
    loss = ops.symmetric_kl(auxiliary, primary, size, align_corners=output.align_corners)
    if kl == "symmetric":
        return loss
    # ops.entropy is normalised by log C.
    entropies = [ops.entropy(head, size, align_corners=output.align_corners) for head in (auxiliary, primary)]
    return loss + math.log(primary.shape[1]) * (entropies[0] + entropies[1])


def surest_view(views: Sequence[SegmentationOutput], size: tuple[int, int]) -> Tensor:
    """Return the number of the view whose largest probability is the largest, int64 ``[N, H, W]`` at ``size`` (H, W).

    ``views`` are outputs of the primary head for K views of the same images; the first of equally sure ones counts
    (UDAS 3.5).
    """
    confidence = [
        ops.pseudo_label([view.primary], size, threshold=0.0, align_corners=view.align_corners).confidence
        for view in views
    ]
    return torch.stack(confidence).argmax(0)


def view_loss(output: SegmentationOutput, label: Tensor, surest: Tensor) -> Tensor:
    """Return a view's part of KL(ground truth ‖ maximum confidence map of K views) (UDAS 3.5).

    Its cross-entropy where it is ``surest``, bool ``[N, H, W]``, divided by all pixels that have a label: the parts of
    the K views add up to the mean cross-entropy of each pixel's surest view. ``label``: uint8 ``[N, H, W]``, 255 is
    ignored, and a batch of nothing else gives zero.
    """
    counted = label != IGNORE
    own = torch.where(surest, label, IGNORE)
    total = ops.cross_entropy(output.primary, own, align_corners=output.align_corners, reduction="sum")
    loss = total / counted.sum().clamp_min(1)
    return (
        loss if distributed.get_world_size() == 1 else loss * distributed.loss_scale_for_valid_pixels(counted)
    )


def entropy_loss(
    output: SegmentationOutput,
    size: tuple[int, int],
    weights: tuple[float, float],
    robust: float | None = None,
) -> Tensor:
    """Return Σ weight·E over (primary, auxiliary), E from the normalised entropies e of the pixels of ``size``.

    E = mean(e) (MinEnt, Vu et al. 2019, eq. 4), or with ``robust`` = η the Charbonnier penalty
    mean((e² + 0.001²)^η), which spares sure pixels more than unsure ones (FDA, Yang and Soatto 2020, eq. 4).
    Gradients reach every head whose weight is not 0.
    """
    losses = []
    corners = output.align_corners
    for weight, logits in zip(weights, (output.primary, output.auxiliary), strict=True):
        if not weight or logits is None:
            continue
        if robust is None:
            loss = ops.entropy(logits, size, align_corners=corners)
        else:
            e = ops.entropy(logits, size, align_corners=corners, reduction="none")
            loss = (e.square() + 0.001**2).pow(robust).mean()
        losses.append(weight * loss)
    return torch.stack(losses).sum()


def rectified_loss(output: SegmentationOutput, label: Tensor, auxiliary_weight: float) -> Tensor:
    """Return R(primary, auxiliary) + λ_seg · R(auxiliary, primary), R of :func:`udas_fast.ops.rectified_cross_entropy`.

    R(p, a) = mean(CE(p)·exp(−var)) + mean(var) with var = KL(a‖p) (Zheng and Yang 2020, eq. 8): a label that the
    heads disagree about counts less, and disagreement has its price. ``label``: uint8 ``[N, H, W]``.

    Raises:
        InputError: the network has no auxiliary head.
    """
    primary, auxiliary = both_heads(output, "the uncertainty of pseudo-labels")
    corners = output.align_corners
    loss = ops.rectified_cross_entropy(primary, auxiliary, label, align_corners=corners)
    second = ops.rectified_cross_entropy(auxiliary, primary, label, align_corners=corners)
    return loss + auxiliary_weight * second


def both_heads(output: SegmentationOutput, purpose: str) -> tuple[Tensor, Tensor]:
    """Return primary and auxiliary logits; raises InputError where there is one head, naming the ``purpose``."""
    if output.auxiliary is None:
        raise InputError(f"{purpose} needs a network with an auxiliary head")
    return output.primary, output.auxiliary
