"""Unsupervised data augmentation for segmentation (Xie et al., NeurIPS 2020, arXiv 1904.12848).

Not UDAS's adaptation, the recipe `uda`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

from udas_fast import distributed, ops
from udas_fast.config import Weight, config_dataclass
from udas_fast.data import Batch
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
from udas_fast.objectives.cutout import CutOutConfig, draw_cutout
from udas_fast.objectives.online_self_training import labelled_images
from udas_fast.objectives.semi_supervised import LabelledDomain, domain_of, learn_labelled, requirements

Annealing: TypeAlias = Literal["linear", "log", "exp"]


@config_dataclass
class UdaXieConfig(ObjectiveConfig, kind="uda_xie"):
    """L = TSA(CE on labelled images) + λ · mean over pixels of 1[max p ≥ τ] · KL(q ‖ f(A(x))) on unlabelled ones.

    p = softmax(f(x)), q = softmax(f(x) / T), both detached; A is AutoAugment of colours, then CutOut, whose pixels do
    not count. TSA, training-signal annealing: labelled pixels with p(y) > η(t) are left out, η from 1/C to 1. Labelled
    and unlabelled images are supposed to be of one distribution.
    """

    # Labelled images: the target's (semi-supervised), the source's, or the source's and the target's where given.
    domain: LabelledDomain = "labelled"
    weight: Weight = 1.0  # λ
    temperature: Annotated[float, Field(gt=0)] = 0.4  # T
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.8  # τ
    cut_out: CutOutConfig | None = field(default_factory=CutOutConfig)
    # η = κ(t)·(1 − 1/C) + 1/C, κ: t, 1 − exp(−5t), exp(5(t − 1)) ("exp" for few labels); None: all pixels count.
    annealing: Annealing | None = None
    auxiliary_weight: Weight = 0.0  # λ_seg; one head, as in the paper

    @property
    def requirements(self) -> Requirements:
        """Labelled and unlabelled images."""
        return requirements(self.domain)

    def build(self, num_classes: int) -> UdaXie:
        """Return the objective."""
        return UdaXie(self, num_classes)

    def small(self) -> UdaXieConfig:
        """Return this configuration for short runs, in which networks are sure of fewer pixels."""
        return replace(self, threshold=min(self.threshold, 0.6))


@dataclass
class UdaXieBatch:
    """Labelled images by the loss's name; target images and A(x), uint8 ``[N, 3, H, W]``.

    Attributes:
        visible: bool ``[N, 1, H, W]``, False in the boxes of CutOut.
        most: −log η(t), a float32 scalar: labelled pixels of a smaller cross-entropy are left out.
    """

    labelled: dict[str, Batch]
    target: Tensor
    augmented: Tensor
    visible: Tensor | None
    most: Tensor | None


class UdaXie(Objective):
    """The network labels weak views, and learns the sharpened labels of the sure pixels on augmented views."""

    def __init__(self, config: UdaXieConfig, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes

    def prepare_batch(self, batch: Batches, ctx: PrepareContext) -> UdaXieBatch:
        """Augment the target images, and find η(t)."""
        config, image = self.config, batch.unlabelled.image
        most = None
        if config.annealing is not None:
            eta = annealed(config.annealing, ctx.progress, self.num_classes)
            most = torch.full((), -math.log(eta), device=image.device)
        return UdaXieBatch(
            labelled_images(batch, config.domain),
            image,
            ctx.augment(image),
            None if config.cut_out is None else draw_cutout(image, config.cut_out, ctx),
            most,
        )

    def training_step(self, model: nn.Module, batch: UdaXieBatch, ctx: StepContext) -> Losses:
        """Minimise L."""
        config = self.config

        # Labelled images, without the pixels that are learnt already.
        labelled = batch.labelled
        if batch.most is not None:
            labelled = {
                name: self._unlearnt(model, name, images, batch.most, ctx)
                for name, images in batch.labelled.items()
            }
        losses = learn_labelled(self, model, labelled, config.domain, config.auxiliary_weight, ctx)

        # Unlabelled images: their labels, and the same from the augmented ones.
        with torch.no_grad(), keep_statistics(model):
            weak = ctx.forward(model, batch.target, domain="target")
        strong = ctx.forward(model, batch.augmented, domain="target", visible=batch.visible)
        losses["consistency"], losses["sure"] = sharpened_kl(
            strong,
            weak,
            (batch.target.shape[-2], batch.target.shape[-1]),
            temperature=config.temperature,
            threshold=config.threshold,
            visible=batch.visible,
        )
        ctx.backward(config.weight * losses["consistency"])
        return {name: loss.detach() for name, loss in losses.items()}

    @torch.no_grad()
    def _unlearnt(self, model: nn.Module, name: str, images: Batch, most: Tensor, ctx: StepContext) -> Batch:
        """Return ``images`` without the labels y of pixels with p(y) > η."""
        with keep_statistics(model):
            output = ctx.forward(model, images.image, domain=domain_of(name, self.config.domain))
        label = images.required_label
        each = ops.cross_entropy(output.primary, label, align_corners=output.align_corners, reduction="none")
        return replace(images, label=torch.where(each >= most, label, IGNORE))


def annealed(annealing: Annealing, progress: float, num_classes: int) -> float:
    """Return η(t), from which on a labelled pixel's p(y) is left out, at the share ``progress`` of the stage."""
    kappa = {
        "linear": progress,
        "log": 1 - math.exp(-5 * progress),
        "exp": math.exp(5 * (progress - 1)),
    }[annealing]
    return kappa * (1 - 1 / num_classes) + 1 / num_classes


def sharpened_kl(
    strong: SegmentationOutput,
    weak: SegmentationOutput,
    size: tuple[int, int],
    *,
    temperature: float,
    threshold: float,
    visible: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return mean over pixels of 1[max p ≥ threshold] · KL(softmax(weak / T) ‖ softmax(strong)), p = softmax(weak).

    Args:
        strong: output that learns.
        weak: output that labels; no gradient reaches it.
        size: (H, W) of the pixels.
        temperature: T, which sharpens below 1.
        threshold: confidence from which a pixel is sure.
        visible: bool ``[N, 1, H, W]``, the pixels that count; None: all. Where several processes share a batch, each
            one's mean counts by its pixels.

    Returns:
        The loss, and the share of sure pixels among all.
    """
    logits = weak.primary.float()
    corners = weak.align_corners
    confidence = ops.pseudo_label([logits], size, threshold=0.0, align_corners=corners).confidence
    sure = (confidence >= threshold).float()
    loss = ops.distillation_kl(
        strong.primary,
        [logits / temperature],
        size,
        mask=None if visible is None else visible[:, 0],
        pixel_weight=sure,
        align_corners=corners,
    )
    if visible is not None and distributed.get_world_size() > 1:
        loss = loss * distributed.loss_scale_for_valid_pixels(visible)
    return loss, sure.mean()
