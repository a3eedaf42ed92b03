"""UDAS's two steps written as the public code of AdaptSegNet and Seg-Uncertainty writes them.

A re-statement, not their text: logits are upsampled first, every loss and pseudo-label works on maps of the image's
size with a softmax of its own. What the network is shown is made by the package, so that both are given the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.data import Batch
from udas_fast.models import SegmentationOutput
from udas_fast.objectives import Losses, StepContext
from udas_fast.objectives.adaptation import Adaptation, AdaptationBatch
from udas_fast.objectives.base import Domain
from udas_fast.objectives.losses import Agreement
from udas_fast.objectives.self_training import SelfTraining, SelfTrainingBatch

Heads = tuple[Tensor, Tensor]


def upsampled(output: SegmentationOutput, size: torch.Size) -> Heads:
    """Return both heads' logits ``[N, C, H, W]`` at the image's size."""
    primary, auxiliary = (
        F.interpolate(logits, size, mode="bilinear", align_corners=output.align_corners) for logits in output
    )
    return primary, auxiliary


def segmentation_loss(maps: Heads, label: Tensor, weight: float) -> Tensor:
    """Return CE(primary) + weight · CE(auxiliary)."""
    primary, auxiliary = (F.cross_entropy(m.float(), label.long(), ignore_index=255) for m in maps)
    return primary + weight * auxiliary


def bce(answer: Tensor, domain: float) -> Tensor:
    """Return the discriminators' loss against one domain."""
    return F.binary_cross_entropy_with_logits(answer, torch.full_like(answer, domain))


def kl(target: Tensor, logits: Tensor) -> Tensor:
    """Return KL(target ‖ softmax(logits)), averaged over the pixels."""
    return F.kl_div(F.log_softmax(logits, dim=1), target, reduction="sum") / target[:, 0].numel()


def agreement(primary: Tensor, auxiliary: Tensor, kind: Agreement) -> Tensor:
    """Return the KL between the heads: "mean" as in MRNet's code, the others as in UDAS's text and its formula."""
    if kind == "cross_entropy":
        p, q = (F.log_softmax(m, dim=1) for m in (primary, auxiliary))
        return -(q.exp() * p + p.exp() * q).sum(1).mean()
    if kind == "symmetric":
        return kl(F.softmax(auxiliary, dim=1), primary) + kl(F.softmax(primary, dim=1), auxiliary)
    mean = F.softmax((0.5 * auxiliary + primary).detach(), dim=1)
    return kl(mean, primary) + kl(mean, auxiliary)


class PublicAdaptation(Adaptation):
    """AdaptSegNet's training loop with MRNet's KL and a second labelled batch."""

    def training_step(self, model: nn.Module, batch: AdaptationBatch, ctx: StepContext) -> Losses:
        """Minimise the network's losses, then the discriminators' loss."""
        config, target = self.config, batch.target
        discriminators = self.adversary.primary, self.adversary.auxiliary  # None: a single level
        losses, source_maps = {}, None

        self.adversary.requires_grad_(False)
        for name, images in batch.labelled.items():
            output = ctx.forward(model, images.image, domain="source")
            maps = upsampled(output, images.image.shape[-2:])
            losses[name] = segmentation_loss(maps, images.label, config.auxiliary_weight)
            ctx.backward(losses[name])
            source_maps = source_maps or maps

        output = ctx.forward(model, target.image, domain="target")
        target_maps = primary, auxiliary = upsampled(output, target.image.shape[-2:])
        adversarial = [
            weight * bce(discriminator(F.softmax(m, dim=1)), 0.0)
            for weight, discriminator, m in zip(
                config.adversary.weights, discriminators, target_maps, strict=True
            )
            if discriminator is not None
        ]
        losses["adv"] = loss = sum(adversarial)
        if batch.agree:
            losses["kl"] = agreement(primary, auxiliary, config.agreement.kl)
            loss = loss + config.agreement.weight * losses["kl"]
        ctx.backward(loss)

        self.adversary.requires_grad_(True)
        losses["dis"] = torch.zeros((), device=primary.device)
        for maps, domain in ((source_maps, 0.0), (target_maps, 1.0)):
            for discriminator, m in zip(discriminators, maps, strict=True):
                if discriminator is None:
                    continue
                loss = 0.5 * bce(discriminator(F.softmax(m.detach(), dim=1)), domain)
                ctx.backward(loss)
                losses["dis"] = losses["dis"] + loss.detach()
        return {name: loss.detach() for name, loss in losses.items()}


class PublicSelfTraining(SelfTraining):
    """Pseudo-labels from K softmax maps of full size, then upsampled cross-entropies."""

    @torch.no_grad()
    def pseudo_label(self, photometric: Sequence[Tensor], ctx: StepContext) -> Tensor:
        """Return labels int64 ``[N, H, W]``, 255 where no view is sure."""
        config, maps = self.config.pseudo_labels, []
        outputs, flips = self.labeller.views(photometric, ctx.normalize)
        for view, flip in zip(outputs, flips, strict=True):
            primary, _ = upsampled(view, photometric[0].shape[-2:])
            maps.append(F.softmax((primary.flip(-1) if flip else primary).float(), dim=1))
        views = torch.stack(maps)
        confidence, label = (views.mean(0) if config.reduce == "mean" else views.amax(0)).max(1)
        label[confidence < config.threshold] = 255
        return label

    def training_step(self, model: nn.Module, batch: SelfTrainingBatch, ctx: StepContext) -> Losses:
        """Label the target images, then minimise the cross-entropy of these and of the labelled images."""
        target = replace(batch.target, label=self.pseudo_label(batch.views, ctx))
        losses = {"pseudo": self._train(model, ctx, target, "target")}
        for name, images in batch.mixed.items():
            losses[name] = self._train(model, ctx, images, "source")
        if batch.labelled is not None:
            losses["seg_labelled"] = self._train(model, ctx, batch.labelled, "target")
        return losses

    def _train(self, model: nn.Module, ctx: StepContext, images: Batch, domain: Domain) -> Tensor:
        maps = upsampled(ctx.forward(model, images.image, domain=domain), images.image.shape[-2:])
        loss = segmentation_loss(maps, images.label, self.config.auxiliary_weight)
        ctx.backward(loss)
        return loss.detach()
