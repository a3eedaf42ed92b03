"""Virtual adversarial training for segmentation (Miyato et al., TPAMI 2018, arXiv 1704.03976)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from udas_fast import ops
from udas_fast.config import Weight, config_dataclass
from udas_fast.data import Batch
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
from udas_fast.objectives.losses import entropy_loss
from udas_fast.objectives.mixing import image_size
from udas_fast.objectives.online_self_training import labelled_images
from udas_fast.objectives.semi_supervised import LabelledDomain, Share, learn_labelled, ramp, requirements

Positive = Annotated[float, Field(gt=0)]


@config_dataclass
class VatConfig(ObjectiveConfig, kind="vat"):
    """L = CE on labelled images + λ(t) · mean over pixels of KL(p ‖ f(x + r)) on unlabelled target images.

    p = softmax(f(x)), detached; r = ε · g/‖g‖ with g = ∇_d Σ_pixels KL(p ‖ f(x + ξd)) for a random direction d: the
    step of length ε that changes the prediction most, by one iteration of the power method. Norms are of an image, x is
    normalised. Labelled and unlabelled images are supposed to be of one distribution.
    """

    # Labelled images: the target's (semi-supervised), the source's, or the source's and the target's where given.
    domain: LabelledDomain = "labelled"
    weight: Weight = 1.0  # λ
    rise: Share = 0.4  # share of the stage in which λ(t) rises from 0 (USB)
    # ρ. Adaptive: ε = ρ/2 · norm of the image's differences between the next and the last pixel, so that ρ = 1 is the
    # distance to the image moved by a pixel, at every resolution (French et al., BMVC 2020). Else ε = ρ · √(3HW).
    radius: Positive = 1.0
    adaptive: bool = True
    # ξ/√(3HW), of d with ‖d‖ = 1. At the published 1e-6 float32's rounding is as large as the difference itself.
    step: Positive = 1e-4
    entropy_weight: Weight = 0.0  # of the entropy of f(x) as a loss (VAT + EntMin); USB: 0.06
    auxiliary_weight: Weight = 0.0  # λ_seg; one head, as in the papers

    @property
    def requirements(self) -> Requirements:
        """Labelled and unlabelled images."""
        return requirements(self.domain)

    def build(self, num_classes: int) -> Vat:
        """Return the objective."""
        return Vat(self)


@dataclass
class VatBatch:
    """Labelled images by the loss's name, target images, d as N(0, 1) ``[N, 3, H, W]``, and λ(t)."""

    labelled: dict[str, Batch]
    target: Batch
    direction: Tensor
    weight: Tensor


class Vat(Objective):
    """Three forwards of the target images: as they are, moved by ξd, and moved by r."""

    def __init__(self, config: VatConfig) -> None:
        super().__init__()
        self.config = config

    def prepare_batch(self, batch: Batches, ctx: PrepareContext) -> VatBatch:
        """Draw the directions."""
        target, config = batch.unlabelled, self.config
        shape, device = target.image.shape, target.image.device
        direction = ctx.draw(lambda n: torch.randn(n, *shape[1:], generator=ctx.generator), shape[0])
        return VatBatch(
            labelled_images(batch, config.domain),
            target,
            direction.to(device, non_blocking=True),
            ramp(config.weight, config.rise, ctx, device),
        )

    def training_step(self, model: nn.Module, batch: VatBatch, ctx: StepContext) -> Losses:
        """Minimise L."""
        config, target = self.config, batch.target
        losses = learn_labelled(self, model, batch.labelled, config.domain, config.auxiliary_weight, ctx)

        # p, in float32 as it is compared with f(x + ξd). This pass alone moves the batch norms' statistics.
        with torch.autocast(target.image.device.type, enabled=False):
            with torch.set_grad_enabled(config.entropy_weight > 0):
                clean = ctx.forward(model, target.image, domain="target")
            if config.entropy_weight:
                losses["ent"] = entropy_loss(clean, image_size(target), (1.0, 0.0))
                ctx.backward(config.entropy_weight * losses["ent"])

            # r: one iteration of the power method.
            moved = self._step(batch, ctx) * unit(batch.direction)
            with keep_statistics(model), torch.enable_grad():
                output = ctx.forward(model, target.image, domain="target", added=moved.requires_grad_())
                (g,) = torch.autograd.grad(_kl(output, clean, target, "sum"), moved)
            r = self._radius(ctx.normalize(target.image)) * unit(g)

        with keep_statistics(model):
            output = ctx.forward(model, target.image, domain="target", added=r)
        losses["vat"] = _kl(output, clean, target, "mean")
        ctx.backward(batch.weight * losses["vat"])
        return {name: loss.detach() for name, loss in losses.items()}

    def _step(self, batch: VatBatch, ctx: StepContext) -> float:
        return self.config.step * math.sqrt(batch.direction[0].numel())

    def _radius(self, x: Tensor) -> Tensor:
        """Return ε of each image, ``[N, 1, 1, 1]``."""
        if not self.config.adaptive:
            return torch.full_like(x[:, :1, :1, :1], self.config.radius * math.sqrt(x[0].numel()))
        down, right = x[:, :, 2:] - x[:, :, :-2], x[..., 2:] - x[..., :-2]
        squares = down.square().sum((1, 2, 3)) + right.square().sum((1, 2, 3))
        return (self.config.radius / 2 * squares.sqrt())[:, None, None, None]


def unit(x: Tensor) -> Tensor:
    """Return each image of float ``[N, 3, H, W]`` divided by its norm; zero stays zero."""
    norm = x.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    return x / norm[:, None, None, None]


def _kl(output: SegmentationOutput, clean: SegmentationOutput, target: Batch, reduction: str) -> Tensor:
    """Return KL(clean ‖ output) of the primary heads over the pixels of ``target``."""
    return ops.distillation_kl(
        output.primary,
        [clean.primary.float()],
        image_size(target),
        align_corners=output.align_corners,
        reduction=reduction,
    )
