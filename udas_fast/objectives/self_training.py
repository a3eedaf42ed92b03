"""UDAS's self-training: a frozen teacher labels K views, a student learns from the sure ones (3.5)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from udas_fast import distributed, ops
from udas_fast.data import Batch, SegmentationDataset
from udas_fast.data.types import IGNORE
from udas_fast.models import Logits, heads, set_domain
from udas_fast.objectives.base import STRICT, Learning, Objective, ObjectiveConfig, Round, Step, Weight
from udas_fast.objectives.labelling import label_to_disk, report_round
from udas_fast.objectives.mixing import MixingConfig, labelled_batches
from udas_fast.objectives.supervised import segmentation_loss
from udas_fast.objectives.views import geometric_views

Share = Annotated[float, Field(gt=0, le=1)]
MOST_VIEWS = 16  # that ops.pseudo_label takes


@dataclass(frozen=True, config=STRICT)
class SelfTrainingConfig(ObjectiveConfig):
    """A round of self-training; at the round's end the student becomes the teacher."""

    kind: Literal["self_training"] = "self_training"
    views: Annotated[int, Field(ge=1)] = 3  # identity and photometric ones (UDAS 4.2.5: K = 3)
    flip_view: bool = False  # a mirrored view as well, at every scale
    # Views of these scales as well; MRNet: 1.25, flipped.
    scales: tuple[Annotated[float, Field(gt=0)], ...] = ()
    # Keep from this confidence on (UDAS 4.2.5); "balanced": by class.
    threshold: Annotated[float, Field(ge=0, le=1)] | Literal["balanced"] = 0.6
    portion: Share = 0.5  # "balanced": the share of each class's pixels that is kept (DDM)
    cap: Share = 0.9  # "balanced": no class needs more confidence than this (DDM)
    reduce: Literal["max", "mean"] = "max"  # maximum confidence map (UDAS 3.5); "mean": MixMatch
    # In every step, or of all images once before the round's first.
    labels: Literal["online", "disk"] = "online"
    student: Literal["teacher", "fresh"] = "teacher"  # what a round's student starts from (UDAS 3.5)
    pseudo_weight: Weight = 1.0
    auxiliary_weight: Weight = 0.1
    # Of KL(mean of the teacher's views ‖ the student's view) (UDAS's overview figure).
    consistency_weight: Weight = 0.0
    temperature: Annotated[float, Field(gt=0)] = 1.0  # of both sides of that KL
    augment: bool = True  # photometric AutoAugment on the target images that the student sees
    mixing: MixingConfig = field(default_factory=MixingConfig)

    @model_validator(mode="after")
    def _check(self) -> SelfTrainingConfig:
        count = self.views + (1 + len(self.scales)) * (1 + self.flip_view) - 1
        if count > MOST_VIEWS:
            raise ValueError(f"views: found {count} with scales and flips, expected at most {MOST_VIEWS}")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        return ("source", "unlabelled")

    @property
    def uses(self) -> tuple[str, ...]:
        return ("labelled",)

    @property
    def paired(self) -> tuple[str, ...]:
        return self.mixing.paired

    @property
    def by_number(self) -> bool:
        return self.labels == "disk"

    @property
    def stream_views(self) -> int:
        return self.views if self.labels == "online" else 1

    @property
    def fresh_start(self) -> bool:
        return self.student == "fresh"

    def build(self, num_classes: int) -> SelfTraining:
        return SelfTraining(self, num_classes)


def balanced_thresholds(histogram: Tensor, portion: float = 0.5, cap: float = 0.9) -> Tensor:
    """Float32 ``[C]``: the confidence that ``portion`` of a class's pixels reach, and ``cap`` where that is more.

    A fixed threshold drops the classes that a teacher is never sure of; this keeps the surer half of each (DDM,
    "portion 0.5, confidence 0.9"). ``histogram`` is :func:`udas_fast.ops.pseudo_label`'s, summed over images; a
    class without pixels gets ``cap``.
    """
    counts = histogram.sum(1)
    reach = counts.flip(1).cumsum(1).flip(1)  # pixels of at least each bin's confidence
    bins = (reach >= portion * counts.sum(1, keepdim=True)).sum(1) - 1
    return torch.where(counts.sum(1) > 0, (bins / histogram.shape[-1]).clamp(max=cap), cap).float()


class SelfTraining(Objective):
    """Teacher: K views, maximum confidence, threshold. Student: pseudo-labels and labelled images."""

    def __init__(self, config: SelfTrainingConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        # Confidences of the round by class, [C, kept or dropped, 64 bins]: what balanced thresholds are made of.
        self.register_buffer("histogram", torch.zeros(num_classes, 2, 64, dtype=torch.int64))

    def start(self, model: nn.Module) -> None:
        self.teacher = copy.deepcopy(model).requires_grad_(False)

    def prepare(self, round: Round) -> SegmentationDataset | None:
        if self.config.labels == "online":
            return round.unlabelled
        return label_to_disk(self, round)

    def finish(self, round: Round) -> None:
        if round.unlabelled is not None:
            distributed.on_main(lambda: report_round(self, round))

    def thresholds(self, histogram: Tensor) -> float | Tensor:
        """The confidence to keep a pixel from, by class where the configuration says so."""
        config = self.config
        if config.threshold == "balanced":
            return balanced_thresholds(histogram, config.portion, config.cap)
        return config.threshold

    def photometric_views(self, target: Batch, augment: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """The images of ``target`` and their augmented versions, each uint8 ``[N, 3, H, W]``."""
        if target.views is not None:
            return [target.image, *target.views.unbind(1)]
        return [target.image] + [augment(target.image) for _ in range(self.config.views - 1)]

    @torch.no_grad()
    def look(
        self, photometric: Sequence[Tensor], normalize: Callable[[Tensor], Tensor]
    ) -> tuple[list[Logits], list[bool]]:
        """The teacher's logits ``[N, C, h, w]`` of each of its K views; whether a view is mirrored.

        ``photometric`` are :meth:`photometric_views`, of whose first one the geometric views are.
        """
        self.teacher.eval()
        config = self.config
        views = [(normalize(view), False) for view in photometric]
        views += geometric_views(views[0][0], config.scales, config.flip_view)
        return [heads(self.teacher(view)) for view, _ in views], [mirrored for _, mirrored in views]

    def label(
        self, views: list[Logits], flips: list[bool], size: tuple[int, int], threshold: float | Tensor
    ) -> ops.PseudoLabel:
        """Pseudo-labels from what :meth:`look` saw."""
        return ops.pseudo_label(
            [view.primary for view in views],
            size,
            threshold=threshold,
            flips=flips,
            reduce=self.config.reduce,
            align_corners=views[0].align_corners,
        )

    def label_online(self, views: list[Logits], flips: list[bool], size: tuple[int, int]) -> Tensor:
        """uint8 ``[N, H, W]`` at the thresholds of the round so far, which these confidences join."""
        pseudo = self.label(views, flips, size, self.thresholds(self.histogram))
        self.histogram += distributed.all_reduce_sum(pseudo.histogram)
        return pseudo.label

    def inputs(self, batches: Mapping[str, Batch], step: Step) -> dict[str, Any]:
        config, target = self.config, batches["unlabelled"]

        def augmented(images: Tensor) -> Tensor:
            return step.augment(images) if config.augment else images

        found: dict[str, Any] = {"label": target.label}
        if config.labels == "online" or config.consistency_weight:
            found["views"] = self.photometric_views(target, step.augment)
        found["image"] = augmented(target.image)
        found["mixed"] = labelled_batches(batches, config.mixing, step)
        if "labelled" in batches:
            labelled = batches["labelled"]
            found["labelled"] = replace(labelled, image=augmented(labelled.image))
        return found

    def learn(self, model: nn.Module, inputs: Mapping[str, Any], step: Learning) -> dict[str, Tensor]:
        config, label = self.config, inputs["label"]
        size = inputs["image"].shape[-2:]

        # Teacher: sure labels of its K views, now or before the round.
        if "views" in inputs:
            views, flips = self.look(inputs["views"], step.normalize)
        if config.labels == "online":
            label = self.label_online(views, flips, size)

        # Student: the same images, strongly augmented.
        set_domain(model, "target")
        output = model(step.normalize(inputs["image"]))
        losses = {"pseudo": segmentation_loss(output, label, config.auxiliary_weight)}
        total = config.pseudo_weight * losses["pseudo"]
        if config.consistency_weight:
            pairs = zip(views, flips, strict=True)
            student = heads(output)
            losses["consistency"] = ops.distillation_kl(
                student.primary,
                [view.primary.flip(-1) if flip else view.primary for view, flip in pairs],
                size,
                temperature=config.temperature,
                align_corners=student.align_corners,
            )
            total = total + config.consistency_weight * losses["consistency"]
        step.backward(total)
        losses["kept"] = (label != IGNORE).float().mean()

        # Labelled images: translated source, and its Domain CutMix with labelled target images.
        set_domain(model, "source")
        for name, batch in inputs["mixed"].items():
            loss = segmentation_loss(model(step.normalize(batch.image)), batch.label, config.auxiliary_weight)
            step.backward(loss)
            losses[name] = loss

        # Labelled target images themselves, augmented: the student agrees with the ground truth.
        if "labelled" in inputs:
            set_domain(model, "target")
            batch = inputs["labelled"]
            loss = segmentation_loss(model(step.normalize(batch.image)), batch.label, config.auxiliary_weight)
            step.backward(loss)
            losses["seg_labelled"] = loss
        return {name: loss.detach() for name, loss in losses.items()}
