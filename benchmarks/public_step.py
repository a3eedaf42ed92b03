"""UDAS's two steps written as the public code of AdaptSegNet and Seg-Uncertainty writes them.

A re-statement, not their text: logits are upsampled first, every loss and pseudo-label works on maps of the image's
size with a softmax of its own. What the network is shown is made by the package, so that both are given the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.data import Batch
from udas_fast.models import set_domain
from udas_fast.objectives import Step
from udas_fast.objectives.adaptation import Adaptation
from udas_fast.objectives.mixing import labelled_batches
from udas_fast.objectives.self_training import SelfTraining

Heads = tuple[Tensor, Tensor]


def upsampled(output: object, size: torch.Size) -> Heads:
    """Both heads' logits ``[N, C, H, W]`` at the image's size."""
    return tuple(F.interpolate(logits, size, mode="bilinear", align_corners=False) for logits in output)


def segmentation_loss(maps: Heads, label: Tensor, weight: float) -> Tensor:
    """CE(primary) + weight · CE(auxiliary)."""
    primary, auxiliary = (F.cross_entropy(m.float(), label.long(), ignore_index=255) for m in maps)
    return primary + weight * auxiliary


def bce(answer: Tensor, domain: float) -> Tensor:
    """The discriminators' loss against one domain."""
    return F.binary_cross_entropy_with_logits(answer, torch.full_like(answer, domain))


class PublicAdaptation(Adaptation):
    """AdaptSegNet's training loop with MRNet's KL and a second labelled batch."""

    def step(self, model: nn.Module, batches: Mapping[str, Batch], step: Step) -> dict[str, Tensor]:
        config, target = self.config, batches["unlabelled"]
        discriminators = self.adversary.primary, self.adversary.auxiliary
        losses, source_maps = {}, None

        self.adversary.requires_grad_(False)
        set_domain(model, "source")
        for name, batch in labelled_batches(batches, config.mixing, step).items():
            maps = upsampled(model(step.normalize(batch.image)), batch.image.shape[-2:])
            losses[name] = segmentation_loss(maps, batch.label, config.auxiliary_weight)
            step.backward(losses[name])
            source_maps = source_maps or maps

        set_domain(model, "target")
        target_maps = primary, auxiliary = upsampled(
            model(step.normalize(target.image)), target.image.shape[-2:]
        )
        adversarial = [
            weight * bce(discriminator(F.softmax(m, dim=1)), 0.0)
            for weight, discriminator, m in zip(
                config.adversarial_weights, discriminators, target_maps, strict=True
            )
        ]
        losses["adv"] = adversarial[0] + adversarial[1]
        mean = F.softmax((0.5 * auxiliary + primary).detach(), dim=1)
        pixels = mean[:, 0].numel()
        losses["kl"] = (
            F.kl_div(F.log_softmax(primary, dim=1), mean, reduction="sum") / pixels
            + F.kl_div(F.log_softmax(auxiliary, dim=1), mean, reduction="sum") / pixels
        )
        step.backward(losses["adv"] + config.kl_weight * losses["kl"])

        self.adversary.requires_grad_(True)
        losses["dis"] = torch.zeros((), device=primary.device)
        for maps, domain in ((source_maps, 0.0), (target_maps, 1.0)):
            for discriminator, m in zip(discriminators, maps, strict=True):
                loss = 0.5 * bce(discriminator(F.softmax(m.detach(), dim=1)), domain)
                step.backward(loss)
                losses["dis"] = losses["dis"] + loss.detach()
        return {name: loss.detach() for name, loss in losses.items()}


class PublicSelfTraining(SelfTraining):
    """Pseudo-labels from K softmax maps of full size, then upsampled cross-entropies."""

    @torch.no_grad()
    def pseudo_label(self, target: Batch, step: Step) -> Tensor:
        """int64 ``[N, H, W]`` with 255 where no view is sure."""
        views, _ = self.look(target, step.augment, step.normalize)
        size = target.image.shape[-2:]
        maps = [
            F.softmax(F.interpolate(v.primary, size, mode="bilinear", align_corners=False).float(), dim=1)
            for v in views
        ]
        confidence, label = torch.stack(maps).amax(0).max(1)
        label[confidence < self.config.threshold] = 255
        return label

    def step(self, model: nn.Module, batches: Mapping[str, Batch], step: Step) -> dict[str, Tensor]:
        config, target = self.config, batches["unlabelled"]
        label = self.pseudo_label(target, step)
        image = step.augment(target.image)
        losses = {"pseudo": self._train(model, step, image, label, "target")}
        for name, batch in labelled_batches(batches, config.mixing, step).items():
            losses[name] = self._train(model, step, batch.image, batch.label, "source")
        if "labelled" in batches:
            labelled = batches["labelled"]
            image = step.augment(labelled.image)
            losses["seg_labelled"] = self._train(model, step, image, labelled.label, "target")
        return losses

    def _train(self, model: nn.Module, step: Step, image: Tensor, label: Tensor, domain: str) -> Tensor:
        set_domain(model, domain)
        maps = upsampled(model(step.normalize(image)), image.shape[-2:])
        loss = segmentation_loss(maps, label, self.config.auxiliary_weight)
        step.backward(loss)
        return loss.detach()
