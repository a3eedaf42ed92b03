"""Adaptation by labelled source and unlabelled target images: UDAS's (3.3, 3.4), and the methods that it joins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from udas_fast.config import Weight, config_dataclass
from udas_fast.data import Batch
from udas_fast.errors import bad
from udas_fast.models import SegmentationOutput
from udas_fast.objectives.adversary import (
    AdversaryConfig,
    OutputAdversary,
    backbone_of,
    features,
    seeing_features,
)
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
from udas_fast.objectives.losses import Agreement, agreement_loss, entropy_loss, segmentation_loss
from udas_fast.objectives.mixing import (
    FdaBeta,
    MixingConfig,
    Translate,
    image_size,
    labelled_batches,
    paired_streams,
    translated_source,
)


@config_dataclass
class EntropyConfig:
    """L_ent: the entropy of target predictions as a loss."""

    weights: tuple[Weight, Weight] = (0.001, 0.0002)  # primary, auxiliary (MinEnt)
    robust: Annotated[float, Field(gt=0)] | None = (
        None  # η of FDA's Charbonnier penalty; None: the plain mean
    )

    def __post_init__(self) -> None:
        if not any(self.weights):
            raise bad("weights", list(self.weights), "one above 0, or entropy: null")


@config_dataclass
class AgreementConfig:
    """L_kl: the two heads agree on target images (UDAS 3.3)."""

    # UDAS prints the cross-entropy of each head with the other and calls it a KL divergence, which is "symmetric".
    # "mean" is MRNet's, which the paper seems to cite here; see objectives.losses.agreement_loss.
    kl: Agreement = "cross_entropy"
    weight: Annotated[float, Field(gt=0)] = 1.0  # λ_kl: L_total = L_seg + L_adv + L_kl
    start: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of the stage without it


@config_dataclass
class AdaptationConfig(ObjectiveConfig, kind="adaptation"):
    """L = L_seg + λ_adv · L_adv + λ_ent · L_ent + λ_kl · L_kl; a component that is None is absent.

    Without any of them this is plain training on the source.
    """

    auxiliary_weight: Weight = 0.1  # λ_seg (AdaptSegNet); 0.5 in MRNet's command lines
    translate: Translate = "none"  # the source in the target's style: LAB statistics (DDM), or FDA
    fda_beta: FdaBeta = 0.01  # half of FDA's window, as a share of the side
    mixing: MixingConfig | None = None
    adversary: AdversaryConfig | None = None
    entropy: EntropyConfig | None = None
    agreement: AgreementConfig | None = None

    @property
    def adapts(self) -> bool:
        """True where there is a loss on target images."""
        return any((self.adversary, self.entropy, self.agreement))

    @property
    def requirements(self) -> Requirements:
        """Labelled source and unlabelled target images; labelled target images are mixed in where they are given."""
        target = self.adapts or self.translate != "none"
        return Requirements(
            streams=("source", "unlabelled") if target else ("source",),
            optional_streams=() if self.mixing is None else ("labelled",),
            paired=paired_streams(self.translate, self.mixing),
            min_size=1 if self.adversary is None else self.adversary.min_size,
            auxiliary_head=self._needs_auxiliary_head(),
        )

    def _needs_auxiliary_head(self) -> str | None:
        if self.agreement is not None:
            return "the agreement of the heads (agreement, which null leaves out)"
        for name, component in (("adversary", self.adversary), ("entropy", self.entropy)):
            if component is not None and not component.weights[0]:
                return f"{name}.weights, of which the primary head's is 0"
        return None

    def build(self, num_classes: int) -> Adaptation:
        """Return the objective."""
        return Adaptation(self, num_classes)

    def small(self) -> AdaptationConfig:
        """Return this configuration with narrow discriminators."""
        return self if self.adversary is None else replace(self, adversary=replace(self.adversary, width=8))


@dataclass
class AdaptationBatch:
    """Batches of one step: the labelled ones by their loss's name, and the target's."""

    labelled: dict[str, Batch]
    target: Batch | None
    agree: bool


class Adaptation(Objective):
    """One step of the figure "UDA" of UDAS: two labelled forwards, one target forward, two discriminators."""

    def __init__(self, config: AdaptationConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.adversary: OutputAdversary | None = None
        if config.adversary is not None and config.adversary.space != "feature":
            self.adversary = OutputAdversary((num_classes, num_classes), config.adversary)

    def on_round_start(self, model: nn.Module) -> None:
        """Build discriminators of the network's features where they see these."""
        if (adversary := self.config.adversary) is not None and adversary.space == "feature":
            *_, third, fourth = backbone_of(model).channels
            self.adversary = OutputAdversary((fourth, third), adversary)

    def discriminator_parameters(self) -> Sequence[nn.Parameter]:
        """Return the discriminators' parameters."""
        return [] if self.adversary is None else list(self.adversary.parameters())

    def prepare_batch(self, batch: Batches, ctx: PrepareContext) -> AdaptationBatch:
        """Translate and mix the labelled images; the heads begin to agree after a share of the stage."""
        config = self.config
        source = translated_source(batch, config.translate, config.fda_beta)
        return AdaptationBatch(
            labelled=labelled_batches(source, batch.get("labelled"), config.mixing, ctx),
            target=batch.unlabelled if config.adapts else None,
            agree=config.agreement is not None and ctx.progress >= config.agreement.start,
        )

    def training_step(self, model: nn.Module, batch: AdaptationBatch, ctx: StepContext) -> Losses:
        """Minimise L over the network, then the discriminators' loss over the discriminators."""
        config = self.config
        losses: Losses = {}

        # Labelled images, translated and mixed: L_seg. Each forward goes backward on its own (memory).
        judged = {}
        for name, labelled in batch.labelled.items():
            output, judged[name] = self._forward(model, labelled, "source", ctx)
            losses[name] = segmentation_loss(
                output,
                labelled.required_label,
                config.auxiliary_weight,
                class_weights=self.class_weights,
            )
            ctx.backward(losses[name])

        # Target: look like the source to the discriminators (L_adv), be sure (L_ent), let the heads agree (L_kl).
        if (target := batch.target) is None:
            return {name: loss.detach() for name, loss in losses.items()}
        target_out, target_judged = self._forward(model, target, "target", ctx)
        terms = []
        if self.adversary is not None:
            losses["adv"] = self.adversary.generator_loss(target_judged, target)
            terms.append(losses["adv"])
        if config.entropy is not None:
            entropy = config.entropy
            losses["ent"] = entropy_loss(target_out, image_size(target), entropy.weights, entropy.robust)
            terms.append(losses["ent"])
        if config.agreement is not None and batch.agree:
            losses["kl"] = agreement_loss(target_out, image_size(target), config.agreement.kl)
            terms.append(config.agreement.weight * losses["kl"])
        if terms:
            ctx.backward(torch.stack(terms).sum())

        # Discriminators: source 0, target 1. The plain source, unless the mixed batch replaces it, is the source.
        if self.adversary is not None:
            source = next(iter(judged))
            losses["dis"] = self.adversary.discriminator_loss(
                judged[source], batch.labelled[source], target_judged, target
            )
            ctx.backward(losses["dis"])
        return {name: loss.detach() for name, loss in losses.items()}

    def _forward(
        self, model: nn.Module, images: Batch, domain: Domain, ctx: StepContext
    ) -> tuple[SegmentationOutput, SegmentationOutput]:
        """Return the output for ``images``, and what the discriminators judge: itself, or the features."""
        if self.adversary is None or self.adversary.config.space != "feature":
            output = ctx.forward(model, images.image, domain=domain)
            return output, output
        with seeing_features(model) as maps:
            output = ctx.forward(model, images.image, domain=domain)
        return output, features(maps)
