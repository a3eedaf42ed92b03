"""MixMatch for segmentation (Berthelot et al., NeurIPS 2019, arXiv 1905.02249)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from udas_fast import distributed, ops
from udas_fast.config import Weight, config_dataclass
from udas_fast.data import Batch
from udas_fast.data.augment import ViewKind
from udas_fast.data.classes import IGNORE
from udas_fast.models import SegmentationOutput, keep_statistics
from udas_fast.objectives.base import (
    Batches,
    Losses,
    Objective,
    ObjectiveConfig,
    PrepareContext,
    Requirements,
    StepContext,
)
from udas_fast.objectives.cutout import boxes_to_pixels
from udas_fast.objectives.mixing import image_size
from udas_fast.objectives.online_self_training import labelled_images
from udas_fast.objectives.pseudo_labels import MAX_VIEWS
from udas_fast.objectives.semi_supervised import LabelledDomain, Share, domain_of, ramp, requirements

Positive = Annotated[float, Field(gt=0)]


@config_dataclass
class MixMatchConfig(ObjectiveConfig, kind="mixmatch"):
    """L = CE of mixed labelled images with mixed labels + λ(t) · mean over pixels of Σ_c (p − y')² of mixed others.

    The label of an unlabelled image is q = sharpen(mean of softmax(f) over its K views, T), sharpen(p, T) = p^(1/T),
    scaled to the sum 1. Each image of labelled ∪ K views of unlabelled images is mixed with one of a shuffle of them:
    x' = λ'·x_i + (1 − λ')·x_j and likewise y', λ' = max(l, 1 − l), l ~ Beta(α, α), at the same pixels. A mixed pixel
    counts if both of its pixels do. Labelled and unlabelled images are supposed to be of one distribution.

    q is kept at the logits' resolution, and no label of C channels is at full resolution.
    """

    # Labelled images: the target's (semi-supervised), the source's, or the source's and the target's where given.
    domain: LabelledDomain = "labelled"
    # K views by kind; every second one is mirrored as well, and its label back.
    views: Annotated[tuple[ViewKind, ...], Field(min_length=1, max_length=MAX_VIEWS)] = ("weak", "weak")
    temperature: Positive = 0.5  # T
    alpha: Positive = 0.75  # α
    # "cutmix": a box of area 1 − λ' of x_j in x_i, which does better in segmentation than the paper's transparent mix.
    mix: Literal["mixup", "cutmix"] = "mixup"
    # λ. The paper's 75 is of the squared error's mean over 10 classes: 7.5 of their sum; 100 at most.
    weight: Weight = 10.0
    rise: Share = 0.4  # share of the stage in which λ(t) rises from 0

    @property
    def requirements(self) -> Requirements:
        """Labelled and unlabelled images of one size."""
        return requirements(self.domain, mixed=True)

    def build(self, num_classes: int) -> MixMatch:
        """Return the objective."""
        return MixMatch(self, num_classes)


@dataclass
class MixMatchBatch:
    """Images and random numbers of one step.

    The images are, in this order, those of each labelled stream and those of each view; among all processes', each of
    these groups is of all processes.

    Attributes:
        labelled: labelled images by the loss's name.
        views: K views of the target images, uint8 ``[N, 3, H, W]``.
        partner: int64, for each image the number of the one that is mixed into it, among all processes'.
        keep: share of each image in its mix, float32 ``[images, 1, 1, 1]`` or, of a box, ``[images, 1, H, W]``.
        weight: λ(t).
    """

    labelled: dict[str, Batch]
    views: Sequence[Tensor]
    partner: Tensor
    keep: Tensor
    weight: Tensor


class Mixed(NamedTuple):
    """Images and both of the labels that are mixed in each, whose shares add up to 1 at the pixels that count.

    Attributes:
        image: uint8 ``[N, 3, H, W]``.
        own: label of the image that others are mixed into, uint8 ``[N, H, W]``, or its q, ``[N, C, h, w]``.
        share: of ``own``, float32 ``[N, H, W]``; 0 at pixels that do not count.
        label: of the partner, uint8 ``[N, H, W]``; 255 everywhere where it is an unlabelled image.
        q: of the partner, ``[N, C, h, w]``; 0 everywhere where it is a labelled image.
        other: share of the partner, float32 ``[N, H, W]``; 0 at pixels that do not count.
        guessed: 1 where the partner is an unlabelled image, float32 ``[N]``.
    """

    image: Tensor
    own: Tensor
    share: Tensor
    label: Tensor
    q: Tensor
    other: Tensor
    guessed: Tensor


class MixMatch(Objective):
    """The network labels the unlabelled images, then learns from mixed ones."""

    def __init__(self, config: MixMatchConfig, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes

    def prepare_batch(self, batch: Batches, ctx: PrepareContext) -> MixMatchBatch:
        """Draw views, partners and λ'."""
        config, target = self.config, batch.unlabelled
        device, size = target.image.device, image_size(target)
        labelled = labelled_images(batch, config.domain)
        views = [ctx.augment(target.image, kind) for kind in config.views]
        views = [mirrored(view, k) for k, view in enumerate(views)]

        own = own_rows([len(image) for image in (*(x.image for x in labelled.values()), *views)])
        count = len(own) * distributed.get_world_size()
        boxes, share = ops.sample_boxes(count, size, alpha=config.alpha, fit=True, generator=ctx.generator)
        partner = torch.randperm(count, generator=ctx.generator)
        boxes, share, partner = (x[own].to(device, non_blocking=True) for x in (boxes, share, partner))
        keep = torch.maximum(share, 1 - share)[:, None, None, None]
        if config.mix == "cutmix":
            keep = (boxes_to_pixels(boxes, size) == (share > 0.5)[:, None, None])[:, None].float()
        return MixMatchBatch(labelled, views, partner, keep, ramp(config.weight, config.rise, ctx, device))

    def training_step(self, model: nn.Module, batch: MixMatchBatch, ctx: StepContext) -> Losses:
        """Minimise L."""
        config, losses = self.config, dict[str, Tensor]()
        mixed = self._mixed(batch, self._guessed(model, batch.views, ctx))

        # Labelled images that others are mixed into.
        for (name, _), images in zip(batch.labelled.items(), mixed, strict=False):
            output = ctx.forward(model, images.image, domain=domain_of(name, config.domain))
            losses[name] = self._cross_entropy(output, images)
            ctx.backward(losses[name])

        # Unlabelled images that others are mixed into: their views, one by one.
        parts = []
        for images in mixed[len(batch.labelled) :]:
            output = ctx.forward(model, images.image, domain="target")
            parts.append(squared_error(output, images))
            ctx.backward(batch.weight / len(batch.views) * parts[-1])
        losses["squares"] = torch.stack(parts).mean()
        return {name: loss.detach() for name, loss in losses.items()}

    @torch.no_grad()
    def _guessed(self, model: nn.Module, views: Sequence[Tensor], ctx: StepContext) -> Tensor:
        """Return q at the logits' resolution, ``[N, C, h, w]``, of the images as they are."""
        with keep_statistics(model):
            outputs = [ctx.forward(model, view, domain="target") for view in views]
        p = torch.stack([mirrored(x.primary.float().softmax(1), k) for k, x in enumerate(outputs)]).mean(0)
        return sharpen(p, self.config.temperature)

    def _mixed(self, batch: MixMatchBatch, q: Tensor) -> list[Mixed]:
        """Return the mixed images of each labelled stream, then of each view (collective)."""
        labelled = [x.required_label for x in batch.labelled.values()]
        guessed = [mirrored(q, k) for k in range(len(batch.views))]
        images = [x.image for x in batch.labelled.values()] + list(batch.views)
        labels = labelled + [torch.full_like(view[:, 0], IGNORE) for view in batch.views]
        maps = [q.new_zeros((len(label), *q.shape[1:])) for label in labelled] + guessed
        kinds = [q.new_full((len(image),), float(k >= len(labelled))) for k, image in enumerate(images)]

        def of_partners(parts: list[Tensor]) -> Tensor:
            return torch.cat([distributed.all_gather(part) for part in parts])[batch.partner]

        own, keep = torch.cat(images), batch.keep
        x = own.float().mul(keep).addcmul(of_partners(images).float(), 1 - keep).round().to(torch.uint8)
        label, other_q, kind = of_partners(labels), of_partners(maps), of_partners(kinds)
        keep = keep[:, 0]
        here = (torch.cat(labels) != IGNORE) | (torch.cat(kinds) > 0)[:, None, None]
        there = (label != IGNORE) | (kind > 0)[:, None, None]
        counts = (here | (keep == 0)) & (there | (keep == 1))
        parts = [len(part) for part in images]
        whole = (x, keep * counts, label, other_q, (1 - keep) * counts, kind)
        split = zip(*(part.split(parts) for part in whole), strict=True)
        return [Mixed(x, y, *rest) for y, (x, *rest) in zip([*labelled, *guessed], split, strict=True)]

    def _cross_entropy(self, output: SegmentationOutput, images: Mixed) -> Tensor:
        """Return the mean over the pixels that count of −Σ_c y'_c log p_c, by class weights where there are some."""
        size, corners, logits = images.image.shape[-2:], output.align_corners, output.primary
        weights = self.class_weights
        if weights is None:
            weights = logits.new_ones(self.num_classes, dtype=torch.float32)
        q = images.q * weights[:, None, None]
        of_class = F.pad(weights, (0, 256 - len(weights)))

        def to_label(label: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
            loss = ops.cross_entropy(
                logits, label, weight=weights, pixel_weight=share, align_corners=corners, reduction="sum"
            )
            return loss, of_class[label.long()] * share

        first, counted = to_label(images.own, images.share)
        second, of_labels = to_label(images.label, images.other)
        third = ops.soft_cross_entropy(
            logits, q, size, pixel_weight=images.other, align_corners=corners, reduction="sum"
        )
        of_q = F.interpolate(q.sum(1, keepdim=True), size, mode="bilinear", align_corners=corners)[:, 0]
        return _mean(first + second + third, counted + of_labels + of_q * images.other)


def squared_error(output: SegmentationOutput, images: Mixed) -> Tensor:
    """Return the mean over the pixels that count of Σ_c (p_c − y'_c)², without a part that no parameter moves.

    With y' = λ'·a + (1 − λ')·b it is λ'·Σ(p − a)² + (1 − λ')·Σ(p − b)² − λ'(1 − λ')·Σ(a − b)²: errors to the two labels
    themselves, of which none is at full resolution. The last term is left out.
    """
    size, corners = images.image.shape[-2:], output.align_corners

    def to(target: Tensor, share: Tensor) -> Tensor:
        return ops.squared_error(
            output.primary, target, size, pixel_weight=share, align_corners=corners, reduction="sum"
        )

    guessed = images.other * images.guessed[:, None, None]
    total = to(images.own, images.share) + to(images.label, images.other) + to(images.q, guessed)
    return _mean(total, images.share + images.other)


def _mean(total: Tensor, counted: Tensor) -> Tensor:
    """Return ``total`` divided by the sum of ``counted``, 0 where none counts (collective)."""
    mean = total / counted.sum().clamp_min(torch.finfo(counted.dtype).tiny)
    if distributed.get_world_size() > 1:
        mean = mean * distributed.loss_scale_for_valid_pixels(counted)
    return mean


def sharpen(p: Tensor, temperature: float) -> Tensor:
    """Return p^(1/T) of probabilities ``[N, C, h, w]``, scaled to the sum 1 over the classes."""
    return (p.log() / temperature).softmax(1)


def mirrored(x: Tensor, k: int) -> Tensor:
    """Return ``x`` ``[N, …, W]`` mirrored where ``k``, the number of a view, is odd."""
    return x.flip(-1) if k % 2 else x


def own_rows(counts: Sequence[int]) -> Tensor:
    """Return the places of this process's rows among all processes', int64 on the CPU.

    ``counts``: rows of each group of a process; all processes' rows are ordered by group, then by rank.
    """
    world, rank = distributed.get_world_size(), distributed.get_rank()
    groups = [
        torch.arange(count) + world * (end - count) + rank * count
        for count, end in zip(counts, accumulate(counts), strict=True)
    ]
    return torch.cat(groups)
