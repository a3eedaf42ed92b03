"""UDAS's self-training: a frozen teacher labels K views, a student learns from the sure ones (3.5)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import field
from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from udas_fast import ops
from udas_fast.data import Batch, auto_augment
from udas_fast.models import heads, set_domain
from udas_fast.objectives.base import STRICT, Objective, ObjectiveConfig, Step
from udas_fast.objectives.mixing import MixingConfig, labelled_batches
from udas_fast.objectives.supervised import segmentation_loss


@dataclass(frozen=True, config=STRICT)
class SelfTrainingConfig(ObjectiveConfig):
    """A round of self-training; at the round's end the student becomes the teacher."""

    kind: Literal["self_training"] = "self_training"
    views: int = 3  # K, the identity among them (UDAS 4.2.5)
    threshold: float | Literal["balanced"] = (
        0.6  # keep from this confidence on (UDAS 4.2.5); "balanced": by class
    )
    reduce: Literal["max", "mean"] = "max"  # maximum confidence map (UDAS 3.5); "mean": MixMatch
    pseudo_weight: float = 1.0
    auxiliary_weight: float = 0.1
    augment: bool = True  # photometric AutoAugment on the target images that the student sees
    mixing: MixingConfig = field(default_factory=MixingConfig)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("source", "unlabelled")

    @property
    def uses(self) -> tuple[str, ...]:
        return ("labelled",)

    def build(self, num_classes: int) -> SelfTraining:
        return SelfTraining(self, num_classes)


def balanced_thresholds(histogram: Tensor, portion: float = 0.5, most: float = 0.9) -> Tensor:
    """Float32 ``[C]``: the confidence that ``portion`` of a class's pixels reach, and ``most`` where that is more.

    A fixed threshold drops the classes that a teacher is never sure of; this keeps the surer half of each (DDM,
    "portion 0.5, confidence 0.9"). ``histogram`` is :func:`udas_fast.ops.pseudo_label`'s, summed over images; a
    class without pixels gets ``most``.
    """
    counts = histogram.sum(1)
    reach = counts.flip(1).cumsum(1).flip(1)  # pixels of at least each bin's confidence
    bins = (reach >= portion * counts.sum(1, keepdim=True)).sum(1) - 1
    return torch.where(counts.sum(1) > 0, (bins / histogram.shape[-1]).clamp(max=most), most).float()


class SelfTraining(Objective):
    """Teacher: K views, maximum confidence, threshold. Student: pseudo-labels and labelled images."""

    def __init__(self, config: SelfTrainingConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        # Confidences of the round by class, [C, kept or dropped, 64 bins]: what balanced thresholds are made of.
        self.register_buffer("histogram", torch.zeros(num_classes, 2, 64, dtype=torch.int64))

    def start(self, model: nn.Module) -> None:
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self.histogram.zero_()

    @torch.no_grad()
    def label(self, target: Batch, step: Step) -> ops.PseudoLabel:
        """The teacher's pseudo-labels of the images of ``target``: photometric views, so none moves a pixel."""
        self.teacher.eval()
        image = target.image
        if target.views is not None:
            views = [image, *target.views.unbind(1)]
        else:
            views = [image] + [auto_augment(image, step.generator) for _ in range(self.config.views - 1)]
        threshold = self.config.threshold
        if threshold == "balanced":
            threshold = balanced_thresholds(self.histogram)
        logits = [heads(self.teacher(step.normalize(view)))[0] for view in views]
        pseudo = ops.pseudo_label(logits, image.shape[-2:], threshold=threshold, reduce=self.config.reduce)
        self.histogram += pseudo.histogram
        return pseudo

    def step(self, model: nn.Module, batches: Mapping[str, Batch], step: Step) -> dict[str, Tensor]:
        config, target = self.config, batches["unlabelled"]

        # Pseudo-labelled target images, strongly augmented for the student.
        pseudo = self.label(target, step)
        set_domain(model, "target")
        image = auto_augment(target.image, step.generator) if config.augment else target.image
        loss = segmentation_loss(model(step.normalize(image)), pseudo.label, config.auxiliary_weight)
        step.backward(config.pseudo_weight * loss)
        losses = {"pseudo": loss, "kept": (pseudo.label != 255).float().mean()}

        # Labelled images: translated source, and its Domain CutMix with labelled target images.
        set_domain(model, "source")
        for name, batch in labelled_batches(batches, config.mixing, step.generator).items():
            loss = segmentation_loss(model(step.normalize(batch.image)), batch.label, config.auxiliary_weight)
            step.backward(loss)
            losses[name] = loss

        # Labelled target images themselves, augmented: the student agrees with the ground truth.
        if "labelled" in batches:
            set_domain(model, "target")
            labelled = batches["labelled"]
            image = auto_augment(labelled.image, step.generator) if config.augment else labelled.image
            loss = segmentation_loss(model(step.normalize(image)), labelled.label, config.auxiliary_weight)
            step.backward(loss)
            losses["seg_labelled"] = loss
        return {name: loss.detach() for name, loss in losses.items()}
