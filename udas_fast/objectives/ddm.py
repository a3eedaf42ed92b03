"""Dual-level domain mixing (Chen et al., CVPR 2021): two domain-mixed teachers, and the student that they teach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from udas_fast import ops
from udas_fast.config import Weight, config_dataclass
from udas_fast.data import Batch
from udas_fast.models import MeanNetwork
from udas_fast.objectives.base import (
    Batches,
    Domain,
    Losses,
    Objective,
    ObjectiveConfig,
    PrepareContext,
    Requirements,
    StepContext,
    StreamName,
)
from udas_fast.objectives.losses import segmentation_loss
from udas_fast.objectives.mixing import (
    FdaBeta,
    MixingConfig,
    Translate,
    domain_cutmix,
    image_size,
    translated_source,
)
from udas_fast.objectives.pseudo_labels import PseudoLabelConfig, PseudoLabeller


@config_dataclass
class DomainMixingConfig(ObjectiveConfig, kind="domain_mixing"):
    """A domain-mixed teacher, learning from labelled source and labelled target images 1:1 (3.1, 3.2)."""

    # A rectangle of one domain in the other, or both as they are.
    level: Literal["region", "sample"] = "region"
    translate: Translate = "lab"  # the source in the target's colours
    fda_beta: FdaBeta = 0.01
    # x = M⊙x_t + (1−M)⊙x_s, a rectangle of the target in the source.
    mixing: MixingConfig = field(default_factory=lambda: MixingConfig(augment="none"))
    auxiliary_weight: Weight = 0.0  # DDM has one head
    # Progressive improvement: the network that labels unlabelled target images; None: there is none yet.
    labeller: str | None = None
    # Share of the steps whose target images are such; "proportional": their share of all labelled and pseudo-labelled
    # images, as those of a union have ("update target-unlabelled to target-labelled"); a half of a user's own batches.
    pseudo_share: Annotated[float, Field(ge=0, le=1)] | Literal["proportional"] = "proportional"
    # Thresholds by class keep the surer half, and everything from a confidence of 0.9 on.
    pseudo_labels: PseudoLabelConfig = field(
        default_factory=lambda: PseudoLabelConfig(views=("identity",), threshold="balanced")
    )

    @property
    def requirements(self) -> Requirements:
        """All three streams, and the network that labels."""
        translated: tuple[StreamName, ...] = () if self.translate == "none" else ("unlabelled",)
        mixed: tuple[StreamName, ...] = ("labelled",) if self.level == "region" else ()
        if mixed and self.labeller is not None:
            mixed = ("labelled", "unlabelled")  # whose pseudo-labelled images are mixed by turns
        return Requirements(
            streams=("source", "labelled", "unlabelled"),
            paired=tuple(dict.fromkeys(("source", *mixed, *translated))),
            networks=() if self.labeller is None else (self.labeller,),
            whole_images=self.labeller is not None and self.pseudo_labels.labels == "disk",
            # Labelled and pseudo-labelled target images at one scale.
            source_sized=("labelled",) if self.labeller is None else ("labelled", "unlabelled"),
        )

    def build(self, num_classes: int) -> DomainMixing:
        """Return the objective."""
        return DomainMixing(self, num_classes)


class DomainMixing(Objective):
    """L_RL = CE(M⊙x_t + (1−M)⊙x_s), or L_SL = CE(x_s) + CE(x_t)."""

    def __init__(self, config: DomainMixingConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        if config.labeller is not None:
            self.labeller = PseudoLabeller(config.pseudo_labels, num_classes)

    def on_round_start(self, model: nn.Module) -> None:
        """Let the last student label; it learns in none of the teachers' stages."""
        if self.labeller is not None and self.config.labeller is not None:
            self.labeller.set_teacher(self.networks[self.config.labeller])

    def prepare_batch(self, batch: Batches, ctx: PrepareContext) -> dict[str, Batch]:
        """Mix by region, or return both domains' images, by the loss's name."""
        config = self.config
        source = translated_source(batch, config.translate, config.fda_beta)

        # The labelled target images, which those with pseudo-labels have joined since the second round.
        target = batch.labelled
        joined = torch.rand((), generator=ctx.generator).item() < self._pseudo_share()
        if self.labeller is not None and joined:
            target = self._label(self.labeller, batch.unlabelled, ctx)

        if config.level == "region":
            return {"seg_mixed": domain_cutmix(source, target, config.mixing, ctx)}
        return {"seg": source, "seg_target": target}

    def _pseudo_share(self) -> float:
        share = self.config.pseudo_share
        if share != "proportional":
            return share
        labelled, unlabelled = (self.images.get(name, 0) for name in ("labelled", "unlabelled"))
        return unlabelled / (labelled + unlabelled) if labelled and unlabelled else 0.5

    def _label(self, labeller: PseudoLabeller, target: Batch, ctx: PrepareContext) -> Batch:
        """Return ``target`` with the last student's class-balanced labels."""
        if labeller.config.labels == "disk":
            return target
        views, flips = labeller.views(labeller.photometric_views(target, ctx.augment), ctx.normalize)
        return replace(target, label=labeller.label_online(views, flips, image_size(target)))

    def training_step(self, model: nn.Module, batch: dict[str, Batch], ctx: StepContext) -> Losses:
        """Minimise L_RL or L_SL."""
        losses = {}
        for name, images in batch.items():
            # The target's statistics are those that score it, and mixed images are all that move them.
            domain: Domain = "source" if name == "seg" else "target"
            output = ctx.forward(model, images.image, domain=domain)
            loss = segmentation_loss(
                output,
                images.required_label,
                self.config.auxiliary_weight,
                class_weights=self.class_weights,
            )
            ctx.backward(loss)
            losses[name] = loss.detach()
        return losses


@config_dataclass
class DistillationConfig(ObjectiveConfig, kind="distillation"):
    """L = λ_kd · KL(mean of the teachers ‖ student) on unlabelled + CE on labelled target images (3.3)."""

    # Networks of the run.
    teachers: Annotated[tuple[str, ...], Field(min_length=1)] = ("region", "sample")
    distillation_weight: Weight = 0.5  # λ_kd (DDM)
    auxiliary_weight: Weight = 0.0  # DDM has one head

    @property
    def requirements(self) -> Requirements:
        """Labelled and unlabelled target images, and the teachers."""
        return Requirements(("labelled", "unlabelled"), networks=self.teachers)

    def build(self, num_classes: int) -> Distillation:
        """Return the objective."""
        return Distillation(self)


class Distillation(Objective):
    """Multi-teacher knowledge distillation; the teachers stay as they are."""

    def __init__(self, config: DistillationConfig) -> None:
        super().__init__()
        self.config = config

    def scored(self) -> Mapping[str, nn.Module]:
        """Return the mean of the teachers."""
        return {"teachers": MeanNetwork(self._teachers())}

    def training_step(self, model: nn.Module, batch: Batches, ctx: StepContext) -> Losses:
        """Minimise the KL to the teachers and the labelled cross-entropy."""
        config = self.config

        # Unlabelled target images: the mean of both teachers.
        images = batch.unlabelled
        with torch.no_grad():
            teachers = [ctx.forward(teacher.eval(), images.image).primary for teacher in self._teachers()]
        student = ctx.forward(model, images.image)
        distilled = ops.distillation_kl(
            student.primary, teachers, image_size(images), align_corners=student.align_corners
        )
        ctx.backward(config.distillation_weight * distilled)

        # Labelled target images.
        output = ctx.forward(model, batch.labelled.image)
        label = batch.labelled.required_label
        loss = segmentation_loss(output, label, config.auxiliary_weight, class_weights=self.class_weights)
        ctx.backward(loss)
        return {"distilled": distilled.detach(), "seg": loss.detach()}

    def _teachers(self) -> list[nn.Module]:
        return [self.networks[name] for name in self.config.teachers]
