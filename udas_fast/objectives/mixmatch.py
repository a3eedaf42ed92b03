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

    q is kept at the logits' resolution; labels and probabilities of the images of a forward are at full resolution.
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
    """Images uint8 ``[N, 3, H, W]``, labels float32 ``[N, C, H, W]``, pixels that count bool ``[N, 1, H, W]``."""

    image: Tensor
    label: Tensor
    valid: Tensor


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
        mixed = self._mixed(batch, *self._guessed(model, batch.views, ctx))

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
    def _guessed(self, model: nn.Module, views: Sequence[Tensor], ctx: StepContext) -> tuple[Tensor, bool]:
        """Return q at the logits' resolution, ``[N, C, h, w]`` of the images as they are, and whether corners align."""
        with keep_statistics(model):
            outputs = [ctx.forward(model, view, domain="target") for view in views]
        p = torch.stack([mirrored(x.primary.float().softmax(1), k) for k, x in enumerate(outputs)]).mean(0)
        return sharpen(p, self.config.temperature), outputs[0].align_corners

    def _mixed(self, batch: MixMatchBatch, q: Tensor, align_corners: bool) -> list[Mixed]:
        """Return the mixed images of each labelled stream, then of each view (collective)."""
        size = batch.views[0].shape[-2:]
        images = [x.image for x in batch.labelled.values()] + list(batch.views)
        labels = [self._one_hot(x.required_label) for x in batch.labelled.values()]
        valid = [x.required_label[:, None] != IGNORE for x in batch.labelled.values()]
        for k, view in enumerate(batch.views):
            own = mirrored(q, k)
            labels.append(F.interpolate(own, size, mode="bilinear", align_corners=align_corners))
            valid.append(torch.ones_like(view[:, :1], dtype=torch.bool))

        def with_partners(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
            every = torch.cat([distributed.all_gather(part) for part in parts])
            return torch.cat(parts), every[batch.partner]

        keep = batch.keep
        x, y = (
            a.float().mul(keep).addcmul(b.float(), 1 - keep) for a, b in map(with_partners, (images, labels))
        )
        here, there = with_partners(valid)
        counts = (here | (keep == 0)) & (there | (keep == 1))
        parts = [len(part) for part in images]
        whole = Mixed(x.round().to(torch.uint8), y, counts)
        return [Mixed(*each) for each in zip(*(part.split(parts) for part in whole), strict=True)]

    def _one_hot(self, label: Tensor) -> Tensor:
        """Return probabilities ``[N, C, H, W]`` of labels ``[N, H, W]``, of no class where these are ignored."""
        classes = torch.arange(self.num_classes, device=label.device)
        return (label[:, None] == classes[:, None, None]).float()

    def _cross_entropy(self, output: SegmentationOutput, images: Mixed) -> Tensor:
        """Return the mean over the pixels that count of −Σ_c y'_c log p_c, by class weights where there are some."""
        size, corners = images.image.shape[-2:], output.align_corners
        scores = ops.upsample(output.primary, size, activation="none", align_corners=corners)
        label = images.label * images.valid
        if self.class_weights is not None:
            label = label * self.class_weights[:, None, None]
        return _mean(-(label * scores.log_softmax(1)).sum(1), label.sum(1))


def squared_error(output: SegmentationOutput, images: Mixed) -> Tensor:
    """Return the mean over the pixels that count of Σ_c (p_c − y'_c)²."""
    size, corners = images.image.shape[-2:], output.align_corners
    p = ops.upsample(output.primary, size, activation="softmax", align_corners=corners)
    valid = images.valid[:, 0].float()
    return _mean((p - images.label).square().sum(1) * valid, valid)


def _mean(each: Tensor, counted: Tensor) -> Tensor:
    """Return the sum of ``each`` pixel divided by that of ``counted``, 0 where none counts (collective)."""
    mean = each.sum() / counted.sum().clamp_min(torch.finfo(counted.dtype).tiny)
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
