"""UDAS's self-training: a frozen teacher labels K views, a student learns from the sure labels (3.5)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from udas_fast import ops
from udas_fast.config import Weight, config_dataclass
from udas_fast.data import Batch
from udas_fast.data.classes import IGNORE
from udas_fast.errors import bad
from udas_fast.models import SegmentationOutput, keep_statistics, normalization_of
from udas_fast.objectives.base import (
    Batches,
    Domain,
    Losses,
    Objective,
    ObjectiveConfig,
    PrepareContext,
    Requirements,
    StepContext,
)
from udas_fast.objectives.cutout import CutOutConfig, draw_cutout, without_hidden
from udas_fast.objectives.losses import segmentation_loss, surest_view, view_loss
from udas_fast.objectives.mixing import (
    FdaBeta,
    MixingConfig,
    Translate,
    image_size,
    labelled_batches,
    paired_streams,
    translated_source,
)
from udas_fast.objectives.pseudo_labels import PseudoLabelConfig, PseudoLabeller, loader_views


@config_dataclass
class ConsistencyConfig:
    """KL(mean of the teacher's views ‖ the student's view) on unlabelled images (UDAS's overview figure)."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0  # of both sides


@config_dataclass
class SelfTrainingConfig(ObjectiveConfig, kind="self_training"):
    """A round of self-training; at the round's end the student becomes the teacher.

    Noisy Student (Xie et al., CVPR 2020, arXiv 1911.04252) is this with labels on disk, no threshold, CutOut, and
    dropout of the network: L = CE on labelled images + CE of the student's noisy view with the labels of a teacher that
    is free of noise.
    """

    small_lr: ClassVar[float] = 1.5e-3

    pseudo_labels: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    pseudo_weight: Weight = 1.0
    auxiliary_weight: Weight = 0.1
    # Where a round's student starts from: "another, new student" has the run's first weights (UDAS 3.5).
    student: Literal["teacher", "fresh"] = "fresh"
    augment: bool = True  # photometric AutoAugment on the target images that the student sees
    cut_out: CutOutConfig | None = None  # and a box of each that it does not see
    # Labelled source images; False: only the labelled target images where there are some.
    source: bool = True
    # Another network of the run that labels (`Stage.network`), of any architecture; None: the last round's student.
    teacher: str | None = None
    consistency: ConsistencyConfig | None = field(default_factory=ConsistencyConfig)
    # λ of the KL between the ground truth and the student's own pseudo-labelling of labelled images (UDAS 3.5).
    label_consistency_weight: Weight = 1.0
    translate: Translate = "none"  # the source in the target's style: LAB statistics (DDM), or FDA
    fda_beta: FdaBeta = 0.01
    mixing: MixingConfig | None = None

    def __post_init__(self) -> None:
        if not self.source and (self.translate != "none" or self.mixing is not None):
            raise bad(
                "source", "false with translate or mixing, which need one", "translate: none and mixing: null"
            )
        if self.cut_out is not None and self.consistency is not None:
            raise bad("consistency", "one with cut_out, whose boxes have no views", "null")

    @property
    def requirements(self) -> Requirements:
        """Unlabelled target images, labelled source images, and labelled target images where they are given."""
        online = self.pseudo_labels.labels == "online"
        return Requirements(
            streams=("source", "unlabelled") if self.source else ("unlabelled",),
            optional_streams=("labelled",),
            paired=paired_streams(self.translate, self.mixing),
            auxiliary_head=None
            if self.pseudo_labels.heads == "primary"
            else "the teacher's ensemble of heads",
            views=loader_views(self.pseudo_labels.views) if online else (),
            networks=() if self.teacher is None else (self.teacher,),
            whole_images=not online,
            fresh_start=self.student == "fresh",
        )

    def build(self, num_classes: int) -> SelfTraining:
        """Return the objective."""
        return SelfTraining(self, num_classes)


@dataclass
class SelfTrainingBatch:
    """Batches of one step.

    Attributes:
        target: target images as the student sees them, with the labels made before the round, if any.
        views: photometric views for the teacher; empty where it sees none.
        mixed: source images and their Domain CutMix by the loss's name.
        labelled: labelled target images as the student sees them.
        own_views: K views of the labelled images of each domain for the student, and their labels.
        visible: bool ``[N, 1, H, W]`` of the target and the labelled images, False where the student sees nothing.
    """

    target: Batch
    views: Sequence[Tensor]
    mixed: dict[str, Batch]
    labelled: Batch | None
    own_views: dict[Domain, tuple[Sequence[Tensor], Tensor]]
    visible: dict[str, Tensor]


class SelfTraining(Objective):
    """Teacher: K views, maximum confidence, threshold. Student: pseudo-labels and labelled images."""

    labeller: PseudoLabeller

    def __init__(self, config: SelfTrainingConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.labeller = PseudoLabeller(config.pseudo_labels, num_classes)

    def on_round_start(self, model: nn.Module) -> None:
        """Freeze a copy of the network as the teacher, unless another network of the run is.

        Raises:
            InputError: that network expects images that are normalised otherwise.
        """
        if (name := self.config.teacher) is None:
            self.teacher = copy.deepcopy(model).requires_grad_(False)
            self.labeller.set_teacher(self.teacher)
            return
        teacher = self.networks[name]
        if (found := normalization_of(teacher)) != (expected := normalization_of(model)):
            raise bad(f"normalization of teacher {name!r}", found, f"its student's, {expected}")
        self.labeller.set_teacher(teacher)

    def prepare_batch(self, batch: Batches, ctx: PrepareContext) -> SelfTrainingBatch:
        """Augment the target images and mix the labelled ones."""
        config, target, labelled = self.config, batch.unlabelled, batch.get("labelled")

        def augmented(images: Batch) -> Batch:
            return replace(images, image=ctx.augment(images.image)) if config.augment else images

        seen = config.pseudo_labels.labels == "online" or config.consistency is not None
        views = self.labeller.photometric_views(target, ctx.augment) if seen else []
        student = replace(augmented(target), views=None)
        source = translated_source(batch, config.translate, config.fda_beta) if config.source else None
        mixed = {} if source is None else labelled_batches(source, labelled, config.mixing, ctx)
        own_views: dict[Domain, tuple[Sequence[Tensor], Tensor]] = {}
        if config.label_consistency_weight:
            domains: dict[Domain, Batch | None] = {"source": source, "target": labelled}
            for domain, images in domains.items():
                if images is not None:
                    views_of = self.labeller.photometric_views(images, ctx.augment)
                    own_views[domain] = views_of, images.required_label
        labelled = None if labelled is None else augmented(labelled)
        visible = {}
        if config.cut_out is not None:
            noisy = {"target": student} if labelled is None else {"target": student, "labelled": labelled}
            visible = {name: draw_cutout(images.image, config.cut_out, ctx) for name, images in noisy.items()}
        return SelfTrainingBatch(student, views, mixed, labelled, own_views, visible)

    def training_step(self, model: nn.Module, batch: SelfTrainingBatch, ctx: StepContext) -> Losses:
        """Label by the teacher, then minimise the student's losses."""
        config, target = self.config, batch.target
        size = image_size(target)

        # Teacher: sure labels of its K views, now or before the round.
        views: list[SegmentationOutput] = []
        flips: list[bool] = []
        if batch.views:
            views, flips = self.labeller.views(batch.views, ctx.normalize)
        if config.pseudo_labels.labels == "online":
            label = self.labeller.label_online(views, flips, size)
        else:
            label = target.required_label

        # Student: the same images, strongly augmented.
        visible = batch.visible.get("target")
        output = ctx.forward(model, target.image, domain="target", visible=visible)
        label = without_hidden(label, visible)
        losses = {"pseudo": segmentation_loss(output, label, config.auxiliary_weight)}
        total = config.pseudo_weight * losses["pseudo"]
        if config.consistency is not None:
            teacher = [
                v.primary.flip(-1) if flip else v.primary for v, flip in zip(views, flips, strict=True)
            ]
            losses["consistency"] = ops.distillation_kl(
                output.primary,
                teacher,
                size,
                temperature=config.consistency.temperature,
                align_corners=output.align_corners,
            )
            total = total + config.consistency.weight * losses["consistency"]
        ctx.backward(total)
        losses["kept"] = (label != IGNORE).float().mean()

        # Labelled images: translated source, and its Domain CutMix with labelled target images.
        for name, mixed in batch.mixed.items():
            output = ctx.forward(model, mixed.image, domain="source")
            losses[name] = self._labelled_loss(output, mixed)
            ctx.backward(losses[name])

        # Labelled images of either domain: the student's own pseudo-labelling agrees with the ground truth.
        # Which view is the surest is found without gradients, so that no two of them need their memory at once.
        for domain, (own, label) in batch.own_views.items():
            with torch.no_grad(), keep_statistics(model):
                outputs = [ctx.forward(model, view, domain=domain) for view in own]
            surest = surest_view(outputs, (label.shape[-2], label.shape[-1]))
            parts = []
            for k, view in enumerate(own):
                loss = view_loss(ctx.forward(model, view, domain=domain), label, surest == k)
                ctx.backward(config.label_consistency_weight * loss)
                parts.append(loss.detach())
            losses[f"views_{domain}"] = torch.stack(parts).sum()

        # Labelled target images themselves, augmented.
        if batch.labelled is not None:
            visible = batch.visible.get("labelled")
            output = ctx.forward(model, batch.labelled.image, domain="target", visible=visible)
            label = without_hidden(batch.labelled.required_label, visible)
            loss = self._labelled_loss(output, replace(batch.labelled, label=label))
            ctx.backward(loss)
            losses["seg_labelled"] = loss
        return {name: loss.detach() for name, loss in losses.items()}

    def _labelled_loss(self, output: SegmentationOutput, images: Batch) -> Tensor:
        return segmentation_loss(
            output, images.required_label, self.config.auxiliary_weight, class_weights=self.class_weights
        )
