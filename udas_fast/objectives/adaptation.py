"""UDAS's domain adaptation: segmentation, adversary, agreement and Domain CutMix (UDAS 3.3, 3.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from udas_fast.data import Batch
from udas_fast.models import set_domain
from udas_fast.objectives.adversarial import OutputAdversary
from udas_fast.objectives.base import STRICT, Objective, ObjectiveConfig, Step
from udas_fast.objectives.discrepancy import head_discrepancy
from udas_fast.objectives.mixing import MixingConfig, labelled_batches
from udas_fast.objectives.supervised import segmentation_loss


@dataclass(frozen=True, config=STRICT)
class AdaptationConfig(ObjectiveConfig):
    """L = L_seg + λ_adv · L_adv + λ_kl · L_kl; the defaults are the published ones."""

    kind: Literal["adaptation"] = "adaptation"
    auxiliary_weight: float = 0.1  # λ_seg (AdaptSegNet); 0.5 in MRNet's command lines
    adversarial_weights: tuple[float, float] = (0.001, 0.0002)  # primary, auxiliary (AdaptSegNet)
    real: Literal["primary", "ensemble"] = "primary"
    discriminator_width: int = 64
    discriminator_stride: Annotated[int, Field(ge=1)] = (
        1  # they see 1/stride of the image's size; 1 is published
    )
    kl: Literal["mean", "symmetric"] = "mean"
    kl_weight: float = 0.1  # MRNet
    kl_start: float = 0.1  # share of the stage: iteration 15,000 of 150,000 (MRNet)
    mixing: MixingConfig = field(default_factory=MixingConfig)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("source", "unlabelled")

    @property
    def uses(self) -> tuple[str, ...]:
        return ("labelled",)

    def build(self, num_classes: int) -> Adaptation:
        return Adaptation(self, num_classes)


class Adaptation(Objective):
    """One step of the figure "UDA" of UDAS: two labelled forwards, one target forward, two discriminators."""

    def __init__(self, config: AdaptationConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.adversary = OutputAdversary(
            num_classes,
            width=config.discriminator_width,
            weights=config.adversarial_weights,
            real=config.real,
        )

    def optimized(self) -> Sequence[nn.Parameter]:
        return list(self.adversary.parameters())

    def step(self, model: nn.Module, batches: Mapping[str, Batch], step: Step) -> dict[str, Tensor]:
        config, target = self.config, batches["unlabelled"]

        # Labelled images, translated and mixed: L_seg. Each forward goes backward on its own (memory).
        set_domain(model, "source")
        losses: dict[str, Tensor] = {}
        outputs = {}
        labelled = labelled_batches(batches, config.mixing, step.generator)
        for name, batch in labelled.items():
            outputs[name] = model(step.normalize(batch.image))
            losses[name] = segmentation_loss(outputs[name], batch.label, config.auxiliary_weight)
            step.backward(losses[name])

        # Target: look like the source to the discriminators (L_adv), and let the heads agree (L_kl).
        set_domain(model, "target")
        size = target.image.shape[-2:]
        target_out = model(step.normalize(target.image))
        losses["adv"] = loss = self.adversary.fool(target_out, self._seen(target))
        if config.kl_weight and step.progress >= config.kl_start:
            losses["kl"] = head_discrepancy(target_out, size, config.kl)
            loss = loss + config.kl_weight * losses["kl"]
        step.backward(loss)

        # Discriminators: source 0, target 1.
        source = next(iter(outputs))  # the plain source, unless the mixed batch replaces it
        losses["dis"] = self.adversary.discriminate(
            outputs[source], self._seen(labelled[source]), target_out, self._seen(target)
        )
        step.backward(losses["dis"])
        return {name: loss.detach() for name, loss in losses.items()}

    def _seen(self, batch: Batch) -> tuple[int, int]:
        """(height, width) at which the discriminators see the predictions of ``batch``."""
        stride = self.config.discriminator_stride
        height, width = batch.image.shape[-2:]
        return -(-height // stride), -(-width // stride)
