"""Plain PyTorch forms of every operator of :mod:`udas_fast.ops`: oracle of the tests, and fallback.

Written to be read next to the papers, not to be fast: full-resolution maps exist here. Arithmetic is float32,
or float64 where the logits are float64, and PyTorch differentiates. Signatures and meaning are those of the
public operators; arguments are expected to have passed their checks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from udas_fast.errors import bad

HISTOGRAM_BINS = 64
"""Confidences c fall into bin floor(64·c), 1 into the last."""


class PseudoLabel(NamedTuple):
    """Pseudo-label: label uint8 ``[N, H, W]``, confidence float32 ``[N, H, W]``, histogram int64 ``[C, 2, 64]``."""

    label: Tensor
    confidence: Tensor
    histogram: Tensor


def interpolate(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Interpolate bilinearly to ``size`` (H, W), in float32 or float64."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if wide.shape[0] == 0:
        return wide.new_zeros((0, wide.shape[1], *size)) + 0 * wide.sum()
    return F.interpolate(wide, tuple(size), mode="bilinear", align_corners=align_corners)


def upsample(
    logits: Tensor, size: Sequence[int], *, activation: str = "softmax", align_corners: bool = False
) -> Tensor:
    """Return scores, softmax or self-information (AdvEnt) at full resolution; see :func:`udas_fast.ops.upsample`."""
    scores = interpolate(logits, size, align_corners)
    if activation == "none":
        return scores
    p = scores.softmax(1)
    return p if activation == "softmax" else -p * torch.log2(p + 1e-30) / math.log2(logits.shape[1])


def check_labels(name: str, label: Tensor, classes: int, ignore_index: int | None) -> None:
    """Raise InputError where a label is neither a class nor ``ignore_index``; costs a wait on CUDA."""
    if label.is_meta:  # which has no values
        return
    label = label.long()  # a uint8 compared with 256 would wrap
    wrong = (label < 0) | (label >= classes)
    if ignore_index is not None:
        wrong &= label != ignore_index
    if bool(wrong.any()):
        found = int(label[wrong][0])
        raise bad(name, f"label {found}", f"0 to {classes - 1} or the ignored {ignore_index}")


def reduce_loss(loss: Tensor, count: Tensor | float, reduction: str) -> Tensor:
    """Reduce ``loss`` per pixel: mean divides by ``count`` and is 0 where nothing counts."""
    if reduction == "none":
        return loss
    total = loss.sum()
    if reduction == "sum":
        return total
    if not isinstance(count, Tensor):
        count = loss.new_full((), count)  # filled there: a copy from the host waits
    return torch.where(count == 0, 0 * total, total / torch.where(count == 0, torch.ones_like(count), count))


def weighted(loss: Tensor, pixel_weight: Tensor | None) -> Tensor:
    """Return ``loss`` times ``pixel_weight`` where there is one."""
    return loss if pixel_weight is None else loss * pixel_weight.to(loss.dtype)


def sample_boxes(
    n: int,
    size: tuple[int, int],
    *,
    alpha: float = 1.0,
    fit: bool = False,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw CutMix boxes and their share of the image's area; see :func:`udas_fast.ops.sample_boxes`."""
    height, width = size
    concentration = torch.full((2, n), float(alpha), device=device)
    gamma = torch._standard_gamma(concentration, generator=generator)
    cut = torch.sqrt(1 - gamma[0] / (gamma[0] + gamma[1]))
    place = torch.rand((2, n), generator=generator, device=device)
    edges = []
    for extent, where in ((width, place[0]), (height, place[1])):
        length = (extent * cut).to(torch.int32)
        if fit:
            low = (where * (extent - length + 1)).to(torch.int32).minimum(extent - length)
            high = low + length
        else:
            centre = (where * extent).to(torch.int32)
            low = (centre - length // 2).clamp(0, extent)
            high = (centre - length // 2 + length).clamp(0, extent)
        edges.append((low, high))
    (x0, x1), (y0, y1) = edges
    ratio = (x1 - x0).float() * (y1 - y0).float() / float(height * width)
    return torch.stack((x0, y0, x1, y1), dim=1), ratio


def region_mask(region: Tensor, inside_label: Tensor) -> Tensor:
    """Return the bool mask ``[N, H, W]`` of boxes, a class table or a mask."""
    if region.dtype != torch.bool:
        height, width = inside_label.shape[1:]
        y = torch.arange(height, device=region.device).view(1, -1, 1)
        x = torch.arange(width, device=region.device).view(1, 1, -1)
        x0, y0, x1, y1 = region.long().view(-1, 4, 1, 1).unbind(1)
        return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    if region.dim() == 3:
        return region
    classes = region.shape[1]
    check_labels("inside_label", inside_label, classes, 255)
    known = inside_label.long() < classes
    flat = inside_label.long().clamp(max=classes - 1).flatten(1)
    return region.gather(1, flat).view(inside_label.shape) & known


def region_mix(
    inside: Tensor,
    outside: Tensor,
    inside_label: Tensor,
    outside_label: Tensor,
    region: Tensor,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    out_dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return M⊙inside + (1−M)⊙outside, normalised and cast; see :func:`udas_fast.ops.region_mix`."""
    mask = region_mask(region, inside_label)
    image = torch.where(mask.unsqueeze(1), inside, outside)
    label = torch.where(mask, inside_label, outside_label)
    if out_dtype is None:
        plain = mean is None and std is None
        out_dtype = image.dtype if plain or image.is_floating_point() else torch.float32
    if out_dtype != torch.uint8:
        wide = image.to(torch.promote_types(out_dtype, torch.float32))
        wide = wide if image.is_floating_point() else wide / 255
        if mean is not None:
            wide = wide - wide.new_tensor(mean).view(1, -1, 1, 1)
        if std is not None:
            wide = wide / wide.new_tensor(std).view(1, -1, 1, 1)
        image = wide.to(out_dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return image.contiguous(memory_format=layout), label.contiguous()


def flip_table(
    flips: Tensor | Sequence[bool] | Sequence[Sequence[bool]] | None,
    views: int,
    samples: int,
    device: torch.device,
) -> Tensor | None:
    """Return ``flips`` as bool ``[K, N]`` on ``device``, None where nothing is flipped, without a copy that waits."""
    if flips is None:
        return None
    if isinstance(flips, Tensor):
        return flips.to(device=device, dtype=torch.bool).view(views, -1).expand(views, samples)
    if not any(f if isinstance(f, bool) else any(f) for f in flips):
        return None
    table = torch.zeros((views, samples), dtype=torch.bool, device=device)
    rows: Sequence[bool | Sequence[bool]] = flips
    for k, view in enumerate(rows):
        if isinstance(view, bool):
            table[k].fill_(view)
        else:
            for n, flipped in enumerate(view):
                table[k, n].fill_(flipped)
    return table


def unflip(probability: Tensor, flips: Tensor | None, view: int) -> Tensor:
    """Return ``view`` with the horizontal flips of ``flips`` (bool ``[K, N]``) undone."""
    if flips is None:
        return probability
    flipped = flips[view].view(-1, 1, 1, 1)
    return torch.where(flipped, probability.flip(-1), probability)


def pseudo_label(
    views: Sequence[Tensor],
    size: tuple[int, int],
    *,
    threshold: float | Tensor = 0.6,
    temperature: float = 1.0,
    flips: Tensor | Sequence[bool] | Sequence[Sequence[bool]] | None = None,
    reduce: str = "max",
    align_corners: bool = False,
    ignore_index: int = 255,
) -> PseudoLabel:
    """Return label, confidence and histogram of K views; see :func:`udas_fast.ops.pseudo_label`."""
    table = flip_table(flips, len(views), views[0].shape[0], views[0].device)
    probability = [
        unflip((interpolate(view, size, align_corners) / temperature).softmax(1), table, k)
        for k, view in enumerate(views)
    ]
    if reduce == "mean":
        confidence, label = torch.stack(probability).mean(0).max(1)
    else:
        confidence, label = probability[0].max(1)
        for other in probability[1:]:
            value, index = other.max(1)
            better = value > confidence
            confidence = torch.where(better, value, confidence)
            label = torch.where(better, index, label)
    classes = views[0].shape[1]
    limit = threshold.to(confidence)[label] if isinstance(threshold, Tensor) else threshold
    kept = confidence >= limit
    bins = (confidence * HISTOGRAM_BINS).to(torch.int64).clamp(0, HISTOGRAM_BINS - 1)
    cell = (label * 2 + (~kept).long()) * HISTOGRAM_BINS + bins
    histogram = torch.zeros(classes * 2 * HISTOGRAM_BINS, dtype=torch.int64, device=label.device)
    histogram.scatter_add_(0, cell.flatten(), torch.ones_like(cell).flatten())
    kept_label = torch.where(kept, label, torch.full_like(label, ignore_index)).to(torch.uint8)
    return PseudoLabel(kept_label, confidence, histogram.view(classes, 2, HISTOGRAM_BINS))


def pixel_cross_entropy(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return −log softmax(logits)[target] per pixel, 0 where ignored, and the mask of pixels that count."""
    check_labels("target", target, logits.shape[1], ignore_index)
    target = target.long()
    valid = target != ignore_index
    index = torch.where(valid, target, torch.zeros_like(target))
    picked = logits.log_softmax(1).gather(1, index.unsqueeze(1)).squeeze(1)
    return torch.where(valid, -picked, torch.zeros_like(picked)), valid


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
    """Return ``F.cross_entropy(F.interpolate(logits, target.shape[-2:]), target)``, 0 where nothing counts."""
    full = interpolate(logits, target.shape[-2:], align_corners)
    loss, valid = pixel_cross_entropy(full, target, ignore_index)
    count = valid.to(loss.dtype)
    if weight is not None:
        index = torch.where(valid, target.long(), torch.zeros_like(target, dtype=torch.int64))
        count = count * weight.to(loss.dtype)[index]
    return reduce_loss(weighted(loss * count, pixel_weight), count.sum(), reduction)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p‖q) per pixel from log-probabilities ``[N, C, H, W]``."""
    return (log_p.exp() * (log_p - log_q)).sum(1)


def symmetric_kl(
    a: Tensor,
    b: Tensor,
    size: tuple[int, int],
    *,
    pixel_weight: Tensor | None = None,
    align_corners: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Return KL(a‖b) + KL(b‖a) of the two heads' softmaxes."""
    log_a, log_b = (interpolate(x, size, align_corners).log_softmax(1) for x in (a, b))
    loss = kl(log_a, log_b) + kl(log_b, log_a)
    return reduce_loss(weighted(loss, pixel_weight), loss.numel(), reduction)


def ensemble_kl(
    primary: Tensor,
    auxiliary: Tensor,
    size: tuple[int, int],
    *,
    pixel_weight: Tensor | None = None,
    align_corners: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Return KL(m‖primary) + KL(m‖auxiliary), m = softmax(0.5·auxiliary + primary) detached."""
    p, a = (interpolate(x, size, align_corners) for x in (primary, auxiliary))
    log_m = (0.5 * a + p).detach().log_softmax(1)
    loss = kl(log_m, p.log_softmax(1)) + kl(log_m, a.log_softmax(1))
    return reduce_loss(weighted(loss, pixel_weight), loss.numel(), reduction)


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
    """Return KL(mean_k softmax(teacher_k/T) ‖ softmax(student/T)), teachers detached."""
    log_s = (interpolate(student, size, align_corners) / temperature).log_softmax(1)
    soft = [(interpolate(t.detach(), size, align_corners) / temperature).softmax(1) for t in teachers]
    mean = torch.stack(soft).mean(0)
    loss = (torch.special.xlogy(mean, mean) - mean * log_s).sum(1)
    return _reduce_masked(loss, mask, pixel_weight, reduction)


def soft_cross_entropy(
    logits: Tensor,
    probabilities: Tensor,
    size: tuple[int, int],
    *,
    mask: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    align_corners: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Return −Σ q·log softmax(logits), q detached."""
    log_p = interpolate(logits, size, align_corners).log_softmax(1)
    q = interpolate(probabilities.detach(), size, align_corners)
    return _reduce_masked(-(q * log_p).sum(1), mask, pixel_weight, reduction)


def squared_error(
    logits: Tensor,
    target: Tensor,
    size: tuple[int, int],
    *,
    mask: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Return Σ (softmax(logits) − q)², q detached: probabilities, or the one-hot vectors of labels."""
    p = interpolate(logits, size, align_corners).softmax(1)
    if target.dim() == 4:
        q = interpolate(target.detach(), size, align_corners)
    else:
        check_labels("target", target, logits.shape[1], ignore_index)
        counts = target != ignore_index
        mask = counts if mask is None else mask & counts
        q = F.one_hot(target.long() * counts, logits.shape[1]).permute(0, 3, 1, 2).to(p.dtype)
    return _reduce_masked((p - q).square().sum(1), mask, pixel_weight, reduction)


def _reduce_masked(loss: Tensor, mask: Tensor | None, pixel_weight: Tensor | None, reduction: str) -> Tensor:
    """Reduce a loss per pixel over the pixels of ``mask``, all where it is None."""
    if mask is None:
        return reduce_loss(weighted(loss, pixel_weight), loss.numel(), reduction)
    loss = torch.where(mask, loss, torch.zeros_like(loss))
    return reduce_loss(weighted(loss, pixel_weight), mask.sum(), reduction)


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
    """Return mean(CE(primary)·exp(−var)) + mean(var), var = KL(auxiliary‖primary); means over all pixels."""
    p, a = (interpolate(x, target.shape[-2:], align_corners) for x in (primary, auxiliary))
    variance = kl(a.log_softmax(1), p.log_softmax(1))
    loss, _ = pixel_cross_entropy(p, target, ignore_index)
    loss = loss * torch.exp(-variance) + variance
    return reduce_loss(weighted(loss, pixel_weight), loss.numel(), reduction)


def entropy(
    logits: Tensor,
    size: tuple[int, int],
    *,
    pixel_weight: Tensor | None = None,
    align_corners: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Return −Σ p·log p / log C per pixel (MinEnt)."""
    log_p = interpolate(logits, size, align_corners).log_softmax(1)
    loss = -(log_p.exp() * log_p).sum(1) / math.log(logits.shape[1])
    return reduce_loss(weighted(loss, pixel_weight), loss.numel(), reduction)


def confusion_matrix(
    logits: Tensor,
    target: Tensor,
    num_classes: int,
    *,
    ignore_index: int = 255,
    align_corners: bool = False,
) -> Tensor:
    """Return int64 ``[C, C]``: pixels of true class i (row) predicted as class j (column)."""
    check_labels("target", target, num_classes, ignore_index)
    prediction = interpolate(logits, target.shape[-2:], align_corners).argmax(1)
    target = target.long()
    cell = torch.where(target != ignore_index, target * num_classes + prediction, num_classes * num_classes)
    counts = torch.zeros(num_classes * num_classes + 1, dtype=torch.int64, device=cell.device)
    counts.scatter_add_(0, cell.flatten(), torch.ones_like(cell).flatten())
    return counts[:-1].view(num_classes, num_classes)
