"""Cross-entropy of both heads on labelled images: AdaptSegNet's and UDAS's L_seg, and the baselines."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import nn

from udas_fast.config import Weight, config_dataclass
from udas_fast.data import Batch
from udas_fast.errors import bad
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
from udas_fast.objectives.mixing import FdaBeta, Translate, translated_source


@config_dataclass
class SupervisedConfig(ObjectiveConfig, kind="supervised"):
    """Train on labelled images and nothing else: on one domain, of which alone a forward happens, or on both.

    With ``translate`` the source is shown in the target's style, and unlabelled target images are read for that.
    """

    # "source": no adaptation; "labelled": labelled target; "both": both together, no adaptation.
    domain: Literal["source", "labelled", "both"] = "source"
    auxiliary_weight: Weight = 0.1  # λ_seg (AdaptSegNet); 0.5 in MRNet's command lines
    translate: Translate = "none"  # the source in the target's style: the row ST of UDAS 4.3.1
    fda_beta: FdaBeta = 0.01
    augment: bool = False  # photometric AutoAugment on every image

    def __post_init__(self) -> None:
        if self.translate != "none" and self.domain == "labelled":
            raise bad("translate", self.translate, '"none", or domain "source" or "both"')

    @property
    def requirements(self) -> Requirements:
        """Labelled images of the domains; unlabelled target images where the source is translated."""
        streams: tuple[StreamName, ...] = ("source", "labelled") if self.domain == "both" else (self.domain,)
        if self.translate == "none":
            return Requirements(streams)
        return Requirements((*streams, "unlabelled"), paired=("source", "unlabelled"))

    def build(self, num_classes: int) -> Supervised:
        """Return the objective."""
        return Supervised(self)


class Supervised(Objective):
    """L_seg on labelled images of one domain, or the sum of both domains'."""

    def __init__(self, config: SupervisedConfig) -> None:
        super().__init__()
        self.config = config

    def prepare_batch(self, batch: Batches, ctx: PrepareContext) -> dict[str, Batch]:
        """Return the labelled images by the loss's name, translated and augmented where that is asked for."""
        config, found = self.config, {}
        if config.domain != "labelled":
            found["seg"] = translated_source(batch, config.translate, config.fda_beta)
        if config.domain != "source":
            found["seg_labelled" if config.domain == "both" else "seg"] = batch.labelled
        if not config.augment:
            return found
        return {name: replace(images, image=ctx.augment(images.image)) for name, images in found.items()}

    def training_step(self, model: nn.Module, batch: dict[str, Batch], ctx: StepContext) -> Losses:
        """Minimise L_seg."""
        losses = {}
        for name, images in batch.items():
            # The target's statistics score the network; where all images are the source's, it learns them from these.
            domain: Domain = "source" if name == "seg" and len(batch) > 1 else "target"
            output = ctx.forward(model, images.image, domain=domain)
            loss = segmentation_loss(
                output, images.required_label, self.config.auxiliary_weight, class_weights=self.class_weights
            )
            ctx.backward(loss)
            losses[name] = loss.detach()
        return losses
