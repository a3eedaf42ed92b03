"""UDAS's two steps written as the public code of AdaptSegNet and Seg-Uncertainty writes them.

A re-statement, not their text: logits are upsampled first, every loss and pseudo-label works on maps of the image's
size with a softmax of its own. What the network is shown is made by the package, so that both are given the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.models import set_domain, to_output
from udas_fast.objectives import Learning
from udas_fast.objectives.adaptation import Adaptation
from udas_fast.objectives.self_training import SelfTraining

Heads = tuple[Tensor, Tensor]


def upsampled(output: object, size: torch.Size) -> Heads:
    """Both heads' logits ``[N, C, H, W]`` at the image's size."""
    both = to_output(output)
    return tuple(
        F.interpolate(logits, size, mode="bilinear", align_corners=both.align_corners) for logits in both
    )


def segmentation_loss(maps: Heads, label: Tensor, weight: float) -> Tensor:
    """CE(primary) + weight · CE(auxiliary)."""
    primary, auxiliary = (F.cross_entropy(m.float(), label.long(), ignore_index=255) for m in maps)
    return primary + weight * auxiliary


def bce(answer: Tensor, domain: float) -> Tensor:
    """The discriminators' loss against one domain."""
    return F.binary_cross_entropy_with_logits(answer, torch.full_like(answer, domain))


def kl(target: Tensor, logits: Tensor) -> Tensor:
    """KL(target ‖ softmax(logits)), averaged over the pixels."""
    return F.kl_div(F.log_softmax(logits, dim=1), target, reduction="sum") / target[:, 0].numel()


def agreement(primary: Tensor, auxiliary: Tensor, kind: str) -> Tensor:
    """The KL between the heads: "mean" as in MRNet's code, "symmetric" as in UDAS's text."""
    if kind == "symmetric":
        return kl(F.softmax(auxiliary, dim=1), primary) + kl(F.softmax(primary, dim=1), auxiliary)
    mean = F.softmax((0.5 * auxiliary + primary).detach(), dim=1)
    return kl(mean, primary) + kl(mean, auxiliary)


class PublicAdaptation(Adaptation):
    """AdaptSegNet's training loop with MRNet's KL and a second labelled batch."""

    def learn(self, model: nn.Module, inputs: Mapping[str, Any], step: Learning) -> dict[str, Tensor]:
        config, target = self.config, inputs["target"]
        discriminators = self.adversary.primary, self.adversary.auxiliary  # None: a single level
        losses, source_maps = {}, None

        self.adversary.requires_grad_(False)
        set_domain(model, "source")
        for name, batch in inputs["labelled"].items():
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
            if discriminator is not None
        ]
        losses["adv"] = loss = sum(adversarial)
        if inputs["agree"]:
            losses["kl"] = agreement(primary, auxiliary, config.kl)
            loss = loss + config.kl_weight * losses["kl"]
        step.backward(loss)

        self.adversary.requires_grad_(True)
        losses["dis"] = torch.zeros((), device=primary.device)
        for maps, domain in ((source_maps, 0.0), (target_maps, 1.0)):
            for discriminator, m in zip(discriminators, maps, strict=True):
                if discriminator is None:
                    continue
                loss = 0.5 * bce(discriminator(F.softmax(m.detach(), dim=1)), domain)
                step.backward(loss)
                losses["dis"] = losses["dis"] + loss.detach()
        return {name: loss.detach() for name, loss in losses.items()}


class PublicSelfTraining(SelfTraining):
    """Pseudo-labels from K softmax maps of full size, then upsampled cross-entropies."""

    @torch.no_grad()
    def pseudo_label(self, photometric: Sequence[Tensor], step: Learning) -> Tensor:
        """int64 ``[N, H, W]`` with 255 where no view is sure."""
        views, flips = self.look(photometric, step.normalize)
        maps = []
        for view, flip in zip(views, flips, strict=True):
            primary, _ = upsampled(view, photometric[0].shape[-2:])
            maps.append(F.softmax((primary.flip(-1) if flip else primary).float(), dim=1))
        views = torch.stack(maps)
        confidence, label = (views.mean(0) if self.config.reduce == "mean" else views.amax(0)).max(1)
        label[confidence < self.config.threshold] = 255
        return label

    def learn(self, model: nn.Module, inputs: Mapping[str, Any], step: Learning) -> dict[str, Tensor]:
        label = self.pseudo_label(inputs["views"], step)
        losses = {"pseudo": self._train(model, step, inputs["image"], label, "target")}
        for name, batch in inputs["mixed"].items():
            losses[name] = self._train(model, step, batch.image, batch.label, "source")
        if "labelled" in inputs:
            batch = inputs["labelled"]
            losses["seg_labelled"] = self._train(model, step, batch.image, batch.label, "target")
        return losses

    def _train(self, model: nn.Module, step: Learning, image: Tensor, label: Tensor, domain: str) -> Tensor:
        set_domain(model, domain)
        maps = upsampled(model(step.normalize(image)), image.shape[-2:])
        loss = segmentation_loss(maps, label, self.config.auxiliary_weight)
        step.backward(loss)
        return loss.detach()
