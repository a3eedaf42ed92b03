"""Meta pseudo labels for segmentation (Pham et al., CVPR 2021, arXiv 2003.10580)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from udas_fast import distributed, ops
from udas_fast.config import Weight, config_dataclass
from udas_fast.data import Batch
from udas_fast.evaluation import evaluating
from udas_fast.models import keep_statistics
from udas_fast.objectives.base import (
    Batches,
    Losses,
    Objective,
    ObjectiveConfig,
    PrepareContext,
    Requirements,
    StepContext,
)
from udas_fast.objectives.losses import segmentation_loss
from udas_fast.objectives.mixing import image_size
from udas_fast.objectives.online_self_training import labelled_images
from udas_fast.objectives.semi_supervised import (
    LabelledDomain,
    Share,
    domain_of,
    learn_labelled,
    ramp,
    requirements,
)
from udas_fast.objectives.uda_xie import sharpened_kl


@config_dataclass
class MetaPseudoLabelsConfig(ObjectiveConfig, kind="meta_pseudo_labels"):
    """The student learns its teacher's labels of unlabelled images, and the teacher from what they do to the student.

    Student θ: CE of f_θ(A(x)) with ŷ = argmax f_T(A(x)), and nothing else.

    Teacher T: L = CE on labelled images + λ(t) · UDA + w · h · CE(f_T(A(x)), ŷ), with UDA =
    mean of 1[max p ≥ τ] · KL(q ‖ f_T(A(x))) of the teacher's own labels of x (:mod:`udas_fast.objectives.uda_xie`).

    Feedback: h = η · ⟨∇_θ L_labelled(θ), ∇_θ CE(f_θ(A(x)), ŷ)⟩, by how much the student's step lowers its loss on
    labelled images, s_old − s_new, to the first order in its rate η.

    The paper takes the first gradient at the new weights, and its code measures both losses; all are the same to that
    order. The student's loss on labelled images is that of evaluation mode. In adaptation without target labels, h
    rewards labels that help on the source.
    """

    # Labelled images: the target's (semi-supervised), the source's, or the source's and the target's where given. The
    # feedback is about the target's where there are some.
    domain: LabelledDomain = "labelled"
    feedback_weight: Weight = 1.0  # w
    # "paper": h = s_old − s_new, which strengthens labels that helped; "google": its negative, as the authors' code
    # and its copies have it.
    sign: Literal["paper", "google"] = "paper"
    weight: Weight = 8.0  # λ
    rise: Share = 1 / 60  # share of the stage in which λ(t) rises from 0: 5,000 of 300,000 steps
    temperature: Annotated[float, Field(gt=0)] = 0.7
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.6
    auxiliary_weight: Weight = 0.0  # λ_seg; one head, as in the paper

    @property
    def requirements(self) -> Requirements:
        """Labelled and unlabelled images; the student begins anew, the teacher where the last stage ended."""
        return requirements(self.domain, fresh_start=True)

    def build(self, num_classes: int) -> MetaPseudoLabels:
        """Return the objective."""
        return MetaPseudoLabels(self)


@dataclass
class MetaPseudoLabelsBatch:
    """Labelled images by the loss's name; target images, and A of them, uint8 ``[N, 3, H, W]``; λ(t) and η."""

    labelled: dict[str, Batch]
    target: Batch
    augmented: Tensor
    weight: Tensor
    lr: Tensor


class MetaPseudoLabels(Objective):
    """Two networks that learn: the student is the run's model, the teacher has an optimiser like its."""

    teacher: nn.Module

    def __init__(self, config: MetaPseudoLabelsConfig) -> None:
        super().__init__()
        self.config = config

    def on_round_start(self, model: nn.Module) -> None:
        """Copy the network as the teacher."""
        self.teacher = copy.deepcopy(model).train()

    def companions(self) -> Mapping[str, nn.Module]:
        """Return the teacher."""
        return {"teacher": self.teacher}

    def scored(self) -> Mapping[str, nn.Module]:
        """Return the teacher."""
        return {"teacher": self.teacher}

    def prepare_batch(self, batch: Batches, ctx: PrepareContext) -> MetaPseudoLabelsBatch:
        """Augment the target images."""
        config, target = self.config, batch.unlabelled
        return MetaPseudoLabelsBatch(
            labelled_images(batch, config.domain),
            target,
            ctx.augment(target.image),
            ramp(config.weight, config.rise, ctx, target.image.device),
            torch.full((), ctx.lr, device=target.image.device),
        )

    def training_step(self, model: nn.Module, batch: MetaPseudoLabelsBatch, ctx: StepContext) -> Losses:
        """Minimise the student's loss over the student, then the teacher's over the teacher."""
        config, size = self.config, image_size(batch.target)

        # Teacher: labels of the augmented images.
        with torch.no_grad(), keep_statistics(self.teacher):
            weak = ctx.forward(self.teacher, batch.target.image, domain="target")
        strong = ctx.forward(self.teacher, batch.augmented, domain="target")
        logits, corners = strong.primary.detach(), strong.align_corners
        label = ops.pseudo_label([logits], size, threshold=0.0, align_corners=corners).label

        # Student: these labels. A loss of 1 · scale tells by how much mixed precision scales gradients.
        scale = torch.ones((), device=label.device, requires_grad=True)
        output = ctx.forward(model, batch.augmented, domain="target")
        losses = {"student": segmentation_loss(output, label, config.auxiliary_weight)}
        ctx.backward(losses["student"] + scale)
        assert scale.grad is not None

        # Feedback: what the student's step does to its loss on labelled images.
        losses["feedback"] = batch.lr * self._alignment(model, batch.labelled, scale.grad, ctx)
        h = losses["feedback"] if config.sign == "paper" else -losses["feedback"]

        # Teacher: consistency and feedback on the augmented images, then labelled images.
        losses["consistency"], losses["sure"] = sharpened_kl(
            strong, weak, size, temperature=config.temperature, threshold=config.threshold
        )
        own = segmentation_loss(strong, label, 0.0)
        ctx.backward(batch.weight * losses["consistency"] + config.feedback_weight * h * own)
        losses |= learn_labelled(
            self, self.teacher, batch.labelled, config.domain, config.auxiliary_weight, ctx
        )
        return {name: loss.detach() for name, loss in losses.items()}

    def _alignment(
        self, model: nn.Module, labelled: dict[str, Batch], scale: Tensor, ctx: StepContext
    ) -> Tensor:
        """Return ⟨∇ L_labelled, gradient of the step⟩ over the weights of ``model``, over all processes (collective).

        Gradients of the step are in the weights' ``grad``, multiplied by ``scale``.
        """
        *_, (name, images) = labelled.items()  # the target's where there are some
        weights = [p for p in model.parameters() if p.grad is not None]
        with evaluating(model):
            output = ctx.forward(model, images.image, domain=domain_of(name, self.config.domain))
            loss = segmentation_loss(
                output,
                images.required_label,
                self.config.auxiliary_weight,
                class_weights=self.class_weights,
            )
            found = torch.autograd.grad(scale * loss, weights, allow_unused=True)
        products = [
            (distributed.all_reduce_mean(ours / scale) * step.grad).sum() / scale
            for ours, step in zip(found, weights, strict=True)
            if ours is not None and step.grad is not None
        ]
        return distributed.all_reduce_mean(torch.stack(products).sum())
