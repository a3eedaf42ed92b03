"""Steps written as public code writes them: UDAS's two as AdaptSegNet and Seg-Uncertainty, MIC's as DACS and MIC.

A re-statement, not their text: logits are upsampled first, every loss and pseudo-label works on maps of the image's
size with a softmax of its own. What the network is shown in UDAS's steps is made by the package, so that both are given
the same; it is normalised by an operation for each sign of the formula. In MIC's step the chosen classes are, and these
are mixed image by image; colours are changed one after another in floating point, the hue in HSV, as kornia does, so
that they are not the package's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.data import Batch
from udas_fast.data.strong_view import StrongConfig
from udas_fast.models import NetworkInput, SegmentationOutput, keep_statistics, set_domain, to_output
from udas_fast.objectives import Losses, StepContext
from udas_fast.objectives.adaptation import Adaptation, AdaptationBatch
from udas_fast.objectives.base import Domain
from udas_fast.objectives.losses import Agreement
from udas_fast.objectives.online_self_training import (
    OnlineSelfTraining,
    OnlineSelfTrainingBatch,
    StudentView,
    View,
)
from udas_fast.objectives.self_training import SelfTraining, SelfTrainingBatch
from udas_fast.objectives.student_view import sample_classes

Heads = tuple[Tensor, Tensor]


class PublicInput(NetworkInput):
    """Images in float32, normalised step by step."""

    def normalize(self, image: Tensor) -> Tensor:
        """Return (image / 255 - mean) / std of uint8 ``[N, 3, H, W]``."""
        mean, std = (
            torch.tensor(values, device=image.device).view(3, 1, 1)
            for values in (self.normalization.mean, self.normalization.std)
        )
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return ((image.float() / 255 - mean) / std).contiguous(memory_format=layout)


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


class PublicOnlineSelfTraining(OnlineSelfTraining):
    """DACS's training loop with MIC's masked images and FixMatch's boxes."""

    def training_step(self, model: nn.Module, batch: OnlineSelfTrainingBatch, ctx: StepContext) -> Losses:
        """Label by the teacher, then minimise the losses of labelled images, of the mixed and of the masked view."""
        config, size, losses = self.config, batch.target.shape[-2:], {}
        with torch.no_grad():
            maps = F.softmax(self._maps(ctx.forward(self.teacher, batch.target), size)[0].float(), dim=1)
            confidence, label = maps.max(1)
            sure = (confidence >= config.threshold).float()
            if config.share != "pixel":
                part = sure.mean((1, 2), keepdim=True) if config.share == "image" else sure.mean()
                sure = part * torch.ones_like(sure)
        target = View(batch.target, label, sure)
        losses["sure"] = sure.mean()

        for name, images in batch.labelled.items():
            output = ctx.forward(model, images.image, domain="source")
            losses[name] = self._loss(output, images.required_label, None)
            ctx.backward(losses[name])

        (drawn,) = batch.student
        view = self._student_view(target, batch.partner, drawn)
        output = self._forward(model, changed(view.image, config.strong), ctx)
        losses["strong"] = self._loss(output, view.label, view.weight)
        ctx.backward(config.weight * losses["strong"])

        if config.masked is not None and batch.masked is not None:
            _, visible = batch.masked
            image = changed(target.image, config.strong)
            with keep_statistics(model):
                output = self._forward(model, image, ctx, F.interpolate(visible.float(), size))
            losses["masked"] = self._loss(output, target.label, target.weight)
            ctx.backward(config.masked.weight * losses["masked"])
        return {name: loss.detach() for name, loss in losses.items()}

    def _student_view(self, target: View, partner: Batch | None, drawn: StudentView) -> View:
        """Return images, labels and weights mixed one after another, image by image."""
        image, label, weight = (tensor.clone() for tensor in target)
        if drawn.boxes is not None:
            for i, (x0, y0, x1, y1) in enumerate(drawn.boxes.tolist()):
                other = (i + 1) % len(image)
                for mixed, whole in zip((image, label, weight), target, strict=True):
                    mixed[i, ..., y0:y1, x0:x1] = whole[other, ..., y0:y1, x0:x1]
        mix = self.config.class_mix
        if mix is not None and partner is not None and drawn.chance is not None:
            chosen = sample_classes(partner.required_label, drawn.chance, mix.share)
            for i in range(len(image)):
                classes = chosen[i].nonzero()[:, 0]
                mask = (partner.required_label[i][None] == classes[:, None, None]).sum(0)
                image[i] = (mask * partner.image[i] + (1 - mask) * image[i]).to(image.dtype)
                label[i] = mask * partner.required_label[i] + (1 - mask) * label[i]
                weight[i] = mask + (1 - mask) * weight[i]
        return View(image, label, weight)

    def _forward(
        self, model: nn.Module, image: Tensor, ctx: StepContext, visible: Tensor | None = None
    ) -> SegmentationOutput:
        """Return the output on images of [0, 1], which are normalised, then masked."""
        set_domain(model, "target")
        zero = ctx.normalize(torch.zeros(1, 3, 1, 1, dtype=torch.uint8, device=image.device))
        one = ctx.normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8, device=image.device))
        x = image * (one - zero) + zero
        return to_output(model(x if visible is None else x * visible))

    def _maps(self, output: SegmentationOutput, size: torch.Size) -> list[Tensor]:
        """Return the logits of the heads that count, at ``size``."""
        heads = [output.primary, *([output.auxiliary] if self.config.auxiliary_weight else [])]
        corners = output.align_corners
        return [F.interpolate(logits, size, mode="bilinear", align_corners=corners) for logits in heads]

    def _loss(self, output: SegmentationOutput, label: Tensor, weight: Tensor | None) -> Tensor:
        """Return the weighted mean over the pixels that have a label, of the heads that count."""
        counted = (label != 255).sum()
        losses = []
        for logits in self._maps(output, label.shape[-2:]):
            each = F.cross_entropy(logits.float(), label.long(), ignore_index=255, reduction="none")
            losses.append((each if weight is None else each * weight).sum() / counted)
        return losses[0] + self.config.auxiliary_weight * sum(losses[1:])


def changed(image: Tensor, strong: StrongConfig) -> Tensor:
    """Return uint8 ``[N, 3, H, W]`` under a jitter of colours and a blur, image by image, in [0, 1]."""
    return torch.stack([_blurred(_jittered(one, strong), strong) for one in image.float() / 255])


def _jittered(image: Tensor, strong: StrongConfig) -> Tensor:
    """Change brightness, contrast, saturation and hue of ``[3, H, W]`` one after another."""
    if torch.rand(()) >= strong.jitter_probability:
        return image
    brightness, contrast, saturation, hue = ((2 * torch.rand(()).item() - 1) * s for s in strong.jitter)
    image = (image * (1 + brightness)).clamp(0, 1)
    grey = _grey(image).mean()
    image = (grey + (1 + contrast) * (image - grey)).clamp(0, 1)
    grey = _grey(image)
    image = (grey + (1 + saturation) * (image - grey)).clamp(0, 1)
    return _turned(image, hue)


def _grey(image: Tensor) -> Tensor:
    red, green, blue = image
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _turned(image: Tensor, hue: float) -> Tensor:
    """Turn the hue of ``[3, H, W]`` by a share of the circle, through HSV."""
    value, first = image.max(0)
    chroma = value - image.min(0).values
    red, green, blue = image
    sides = torch.stack([green - blue, blue - red, red - green]) / chroma.clamp_min(1e-8)
    angle = (sides.gather(0, first[None])[0] + 2 * first) / 6 + hue
    place = torch.stack([(n + 6 * angle) % 6 for n in (5, 3, 1)])
    return value - chroma * torch.minimum(place, 4 - place).clamp(0, 1)


def _blurred(image: Tensor, strong: StrongConfig) -> Tensor:
    """Blur ``[3, H, W]`` by a Gaussian kernel of a tenth of the shorter side, as DACS's code has it."""
    if torch.rand(()) >= strong.blur_probability:
        return image
    low, high = strong.blur
    sigma = low + torch.rand(()).item() * (high - low)
    radius = min(image.shape[-2:]) // 20
    place = torch.arange(-radius, radius + 1, device=image.device)
    taps = (-place.square() / (2 * sigma**2)).exp()
    taps = (taps / taps.sum()).expand(3, 1, 1, -1)
    x = F.pad(image[None], (radius,) * 4, "reflect")
    return F.conv2d(F.conv2d(x, taps, groups=3), taps.mT, groups=3)[0]
