"""Seg-Uncertainty's second stage: pseudo-labels count as far as the two heads agree (Zheng and Yang 2020)."""

from __future__ import annotations

import copy
from dataclasses import field

from torch import nn

from udas_fast.config import Weight, config_dataclass
from udas_fast.data import Batch
from udas_fast.objectives.base import (
    Batches,
    Losses,
    Objective,
    ObjectiveConfig,
    PrepareContext,
    Requirements,
    StepContext,
)
from udas_fast.objectives.losses import rectified_loss
from udas_fast.objectives.mixing import image_size
from udas_fast.objectives.pseudo_labels import PseudoLabelConfig, PseudoLabeller

# Every pixel is labelled, by the mean over scales 1 and 1.25 and their mirror images of both heads' ensemble.
MRNET_LABELS = PseudoLabelConfig(
    views=("identity",),
    flip_view=True,
    scales=(1.25,),
    antialias=False,
    heads="ensemble",
    reduce="mean",
    threshold=0.0,
)


@config_dataclass
class RectificationConfig(ObjectiveConfig, kind="rectification"):
    """A student learns every pseudo-label of a frozen teacher; no threshold, the uncertainty weighs them."""

    pseudo_labels: PseudoLabelConfig = field(default_factory=lambda: MRNET_LABELS)
    auxiliary_weight: Weight = 0.5  # λ_seg of their command lines

    @property
    def requirements(self) -> Requirements:
        """Unlabelled target images, and a network with two heads."""
        return Requirements(("unlabelled",), auxiliary_head="the uncertainty of pseudo-labels")

    def build(self, num_classes: int) -> Rectification:
        """Return the objective."""
        return Rectification(self, num_classes)


class Rectification(Objective):
    """Teacher: mean over scales and mirror images of softmax(0.5·auxiliary + primary). Student: rectified CE."""

    def __init__(self, config: RectificationConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.labelling = PseudoLabeller(config.pseudo_labels, num_classes)

    def on_round_start(self, model: nn.Module) -> None:
        """Freeze a copy of the network as the teacher."""
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self.labelling.set_teacher(self.teacher)

    def prepare_batch(self, batch: Batches, ctx: PrepareContext) -> Batch:
        """Return the unlabelled target images."""
        return batch.unlabelled

    def training_step(self, model: nn.Module, batch: Batch, ctx: StepContext) -> Losses:
        """Minimise the rectified cross-entropy of the teacher's labels."""
        views, flips = self.labelling.views([batch.image], ctx.normalize)
        label = self.labelling.label(views, flips, image_size(batch), self.labelling.thresholds()).label
        output = ctx.forward(model, batch.image, domain="target")
        loss = rectified_loss(output, label, self.config.auxiliary_weight)
        ctx.backward(loss)
        return {"rectified": loss.detach()}
