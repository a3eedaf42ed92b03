"""Adaptation by labelled source and unlabelled target images: UDAS's (3.3, 3.4), and the methods that it joins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from udas_fast.data import Batch
from udas_fast.errors import bad
from udas_fast.models import set_domain, shortest_side
from udas_fast.objectives.adversary import Gan, OutputAdversary, Space
from udas_fast.objectives.base import STRICT, Learning, Objective, ObjectiveConfig, Step, Weight
from udas_fast.objectives.discrepancy import head_discrepancy
from udas_fast.objectives.entropy import target_entropy
from udas_fast.objectives.mixing import MixingConfig, labelled_batches
from udas_fast.objectives.supervised import segmentation_loss


@dataclass(frozen=True, config=STRICT)
class AdaptationConfig(ObjectiveConfig):
    """L = L_seg + λ_adv · L_adv + λ_ent · L_ent + λ_kl · L_kl; a term of weight 0 is left out. Defaults: UDAS."""

    kind: Literal["adaptation"] = "adaptation"
    auxiliary_weight: Weight = 0.1  # λ_seg (AdaptSegNet); 0.5 in MRNet's command lines
    adversarial_weights: tuple[Weight, Weight] = (0.001, 0.0002)  # primary, auxiliary (AdaptSegNet)
    real: Literal["primary", "ensemble"] = "primary"
    space: Space = "probability"  # "entropy": AdvEnt; "score": CyCADA
    gan: Gan = "bce"  # "lsgan": MRNet
    discriminator: Literal["patch", "pixel"] = "patch"  # "pixel": CyCADA's, of 1x1 convolutions
    # L_adv counts while the discriminators are right more often than this; CyCADA: 0.6.
    gate: Annotated[float, Field(gt=0, lt=1)] | None = None
    discriminator_scales: Annotated[int, Field(ge=1)] = 1  # 3: MRNet
    discriminator_width: Annotated[int, Field(ge=1)] = 64
    # They see the predictions at 1/stride of the image's size; 1 is published.
    discriminator_stride: Annotated[int, Field(ge=1)] = 1
    entropy_weights: tuple[Weight, Weight] = (0.0, 0.0)  # primary, auxiliary; MinEnt: 0.001, 0.0002
    # η of FDA's Charbonnier penalty; None: the plain mean.
    entropy_robust: Annotated[float, Field(gt=0)] | None = None
    kl: Literal["mean", "symmetric"] = "mean"
    kl_weight: Weight = 0.1  # MRNet
    # Share of the stage: iteration 15,000 of 150,000 (MRNet).
    kl_start: Annotated[float, Field(ge=0, le=1)] = 0.1
    mixing: MixingConfig = field(default_factory=MixingConfig)

    def __post_init__(self) -> None:
        if self.discriminator == "pixel" and self.discriminator_scales != 1:
            raise bad("discriminator_scales", self.discriminator_scales, '1 with discriminator "pixel"')

    @property
    def needs(self) -> tuple[str, ...]:
        return ("source", "unlabelled")

    @property
    def uses(self) -> tuple[str, ...]:
        return () if self.mixing.paste == "none" else ("labelled",)

    @property
    def paired(self) -> tuple[str, ...]:
        return self.mixing.paired

    @property
    def shortest_side(self) -> int:
        if self.discriminator == "pixel" or not any(self.adversarial_weights):
            return 1
        return (shortest_side(self.discriminator_scales) - 1) * self.discriminator_stride + 1

    @property
    def two_heads(self) -> str | None:
        if self.kl_weight:
            return "the agreement of the heads (kl_weight, which 0 leaves out)"
        for name in ("adversarial_weights", "entropy_weights"):
            primary, auxiliary = getattr(self, name)
            if auxiliary and not primary:
                return f"{name}, of which the primary head's is 0"
        return None

    def build(self, num_classes: int) -> Adaptation:
        return Adaptation(self, num_classes)


class Adaptation(Objective):
    """One step of the figure "UDA" of UDAS: two labelled forwards, one target forward, two discriminators."""

    def __init__(self, config: AdaptationConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.adversary = None
        if any(config.adversarial_weights):
            self.adversary = OutputAdversary(
                num_classes,
                width=config.discriminator_width,
                weights=config.adversarial_weights,
                real=config.real,
                space=config.space,
                gan=config.gan,
                scales=config.discriminator_scales,
                pixel=config.discriminator == "pixel",
                gate=config.gate,
            )

    def discriminator_parameters(self) -> Sequence[nn.Parameter]:
        return [] if self.adversary is None else list(self.adversary.parameters())

    def inputs(self, batches: Mapping[str, Batch], step: Step) -> dict[str, Any]:
        return {
            "labelled": labelled_batches(batches, self.config.mixing, step),
            "target": batches["unlabelled"],
            "agree": bool(self.config.kl_weight) and step.progress >= self.config.kl_start,
        }

    def learn(self, model: nn.Module, inputs: Mapping[str, Any], step: Learning) -> dict[str, Tensor]:
        config, labelled, target = self.config, inputs["labelled"], inputs["target"]

        # Labelled images, translated and mixed: L_seg. Each forward goes backward on its own (memory).
        set_domain(model, "source")
        losses: dict[str, Tensor] = {}
        outputs = {}
        for name, batch in labelled.items():
            outputs[name] = model(step.normalize(batch.image))
            losses[name] = segmentation_loss(outputs[name], batch.label, config.auxiliary_weight)
            step.backward(losses[name])

        # Target: look like the source to the discriminators (L_adv), be sure (L_ent), let the heads agree (L_kl).
        set_domain(model, "target")
        size = target.image.shape[-2:]
        target_out = model(step.normalize(target.image))
        weighted = []
        if self.adversary is not None:
            losses["adv"] = self.adversary.generator_loss(target_out, self._seen(target))
            weighted.append(losses["adv"])
        if any(config.entropy_weights):
            losses["ent"] = target_entropy(target_out, size, config.entropy_weights, config.entropy_robust)
            weighted.append(losses["ent"])
        if inputs["agree"]:
            losses["kl"] = head_discrepancy(target_out, size, config.kl)
            weighted.append(config.kl_weight * losses["kl"])
        if weighted:
            step.backward(torch.stack(weighted).sum())

        # Discriminators: source 0, target 1.
        if self.adversary is not None:
            source = next(iter(outputs))  # the plain source, unless the mixed batch replaces it
            losses["dis"] = self.adversary.discriminator_loss(
                outputs[source], self._seen(labelled[source]), target_out, self._seen(target)
            )
            step.backward(losses["dis"])
        return {name: loss.detach() for name, loss in losses.items()}

    def _seen(self, batch: Batch) -> tuple[int, int]:
        """(height, width) at which the discriminators see the predictions of ``batch``."""
        stride = self.config.discriminator_stride
        height, width = batch.image.shape[-2:]
        return -(-height // stride), -(-width // stride)
