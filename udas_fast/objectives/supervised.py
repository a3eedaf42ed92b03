"""Cross-entropy of both heads on labelled images: AdaptSegNet's and UDAS's L_seg, and the two baselines."""

from __future__ import annotations

from typing import Literal

from torch import nn

from udas_fast.config import Weight, config_dataclass
from udas_fast.data import Batch
from udas_fast.errors import bad
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
from udas_fast.objectives.mixing import FdaBeta, Translate, translated_source


@config_dataclass
class SupervisedConfig(ObjectiveConfig, kind="supervised"):
    """Train on one labelled domain and nothing else: no forward of the other domain ever happens.

    With ``translate`` the source is shown in the target's style, and unlabelled target images are read for that.
    """

    domain: Literal["source", "labelled"] = "source"  # "source": no adaptation; "labelled": labelled target
    auxiliary_weight: Weight = 0.1  # λ_seg (AdaptSegNet); 0.5 in MRNet's command lines
    translate: Translate = "none"  # the source in the target's style: the row ST of UDAS 4.3.1
    fda_beta: FdaBeta = 0.01

    def __post_init__(self) -> None:
        if self.translate != "none" and self.domain != "source":
            raise bad("translate", self.translate, '"none", or domain "source"')

    @property
    def requirements(self) -> Requirements:
        """One labelled stream; the unlabelled target images where the source is translated."""
        if self.translate == "none":
            return Requirements((self.domain,))
        return Requirements((self.domain, "unlabelled"), paired=(self.domain, "unlabelled"))

    def build(self, num_classes: int) -> Supervised:
        """Return the objective."""
        return Supervised(self)


class Supervised(Objective):
    """L_seg on labelled images of one domain."""

    def __init__(self, config: SupervisedConfig) -> None:
        super().__init__()
        self.config = config

    def prepare_batch(self, batch: Batches, ctx: PrepareContext) -> Batch:
        """Return the labelled images, translated where that is asked for."""
        if self.config.domain == "source":
            return translated_source(batch, self.config.translate, self.config.fda_beta)
        return batch.labelled

    def training_step(self, model: nn.Module, batch: Batch, ctx: StepContext) -> Losses:
        """Minimise L_seg."""
        # The target's statistics are those that score the network, and no other images move them.
        output = ctx.forward(model, batch.image, domain="target")
        loss = segmentation_loss(
            output, batch.required_label, self.config.auxiliary_weight, class_weights=self.class_weights
        )
        ctx.backward(loss)
        return {"seg": loss.detach()}
