"""Cross-entropy of both heads on labelled images: AdaptSegNet's and UDAS's L_seg, and the two baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from udas_fast import distributed, ops
from udas_fast.data import Batch
from udas_fast.data.types import IGNORE
from udas_fast.errors import bad
from udas_fast.models import heads, set_domain
from udas_fast.objectives.base import STRICT, Learning, Objective, ObjectiveConfig, Step, Weight
from udas_fast.objectives.mixing import FdaBeta, Translate, translated_source


def segmentation_loss(output: object, label: Tensor, auxiliary_weight: float) -> Tensor:
    """L_seg = CE(primary) + λ_seg · CE(auxiliary) at the label's size (UDAS section 3.3).

    Args:
        output: what a segmentation network returns (:func:`udas_fast.models.heads`).
        label: uint8 ``[N, H, W]`` train ids; 255 is ignored, and a batch of nothing else gives zero. Where several
            processes share a batch, each one's mean counts by its labelled pixels.
        auxiliary_weight: λ_seg; unused where the network has no auxiliary head.
    """
    primary, auxiliary = logits = heads(output)
    loss = ops.cross_entropy(primary, label, align_corners=logits.align_corners)
    if auxiliary is not None and auxiliary_weight:
        second = ops.cross_entropy(auxiliary, label, align_corners=logits.align_corners)
        loss = loss + auxiliary_weight * second
    return (
        loss
        if distributed.get_world_size() == 1
        else loss * distributed.loss_scale_for_valid_pixels(label != IGNORE)
    )


@dataclass(frozen=True, config=STRICT)
class SupervisedConfig(ObjectiveConfig):
    """Train on one labelled domain and nothing else: no forward of the other domain ever happens.

    With ``translate`` the source is seen in the target's look, and unlabelled target images are read for that.
    """

    kind: Literal["supervised"] = "supervised"
    domain: Literal["source", "labelled"] = "source"  # "source": no adaptation; "labelled": labelled target
    auxiliary_weight: Weight = 0.1  # AdaptSegNet; 0.5 in MRNet's command lines
    translate: Translate = "none"  # the source in the target's look: the row ST of UDAS 4.3.1
    fda_beta: FdaBeta = 0.01

    def __post_init__(self) -> None:
        if self.translate != "none" and self.domain != "source":
            raise bad("translate", self.translate, '"none", or domain "source"')

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.domain,) if self.translate == "none" else (self.domain, "unlabelled")

    @property
    def paired(self) -> tuple[str, ...]:
        return self.needs

    def build(self, num_classes: int) -> Supervised:
        return Supervised(self)


class Supervised(Objective):
    """L_seg on labelled images of one domain."""

    def __init__(self, config: SupervisedConfig) -> None:
        super().__init__()
        self.config = config

    def inputs(self, batches: Mapping[str, Batch], step: Step) -> dict[str, Batch]:
        if self.config.domain == "source":
            return {"seg": translated_source(batches, self.config.translate, self.config.fda_beta)}
        return {"seg": batches["labelled"]}

    def learn(self, model: nn.Module, inputs: Mapping[str, Batch], step: Learning) -> dict[str, Tensor]:
        set_domain(model, "target")  # whose statistics score it, and no other images teach them
        batch = inputs["seg"]
        loss = segmentation_loss(
            model(step.normalize(batch.image)), batch.label, self.config.auxiliary_weight
        )
        step.backward(loss)
        return {"seg": loss.detach()}
