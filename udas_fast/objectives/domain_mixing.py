"""DDM's teachers: labelled source and labelled target mixed by region or by sample (Chen et al. 2021, 3.1, 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from udas_fast.data import Batch, SegmentationDataset
from udas_fast.models import set_domain
from udas_fast.objectives.base import STRICT, Learning, Objective, ObjectiveConfig, Round, Step, Weight
from udas_fast.objectives.mixing import MixingConfig, domain_cutmix, translated_source
from udas_fast.objectives.self_training import SelfTraining, SelfTrainingConfig
from udas_fast.objectives.supervised import segmentation_loss


@dataclass(frozen=True, config=STRICT)
class DomainMixingConfig(ObjectiveConfig):
    """A domain-mixed teacher, learning from labelled source and labelled target images 1:1."""

    kind: Literal["domain_mixing"] = "domain_mixing"
    # A rectangle of one domain in the other, or both as they are.
    level: Literal["region", "sample"] = "region"
    # The source in the target's colours; x = M⊙x_t + (1−M)⊙x_s, a rectangle of the target in the source (DDM).
    mixing: MixingConfig = field(default_factory=lambda: MixingConfig(paste="target", augment=False))
    auxiliary_weight: Weight = 0.0  # DDM has one head
    # Progressive improvement: the network that labels unlabelled target images, and the share of the steps whose
    # target images are such; the thresholds by class keep the surer half, and all from a confidence of 0.9 on.
    labeller: str | None = None
    pseudo_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    # In every step, or of all images once before the first (DDM).
    labels: Literal["online", "disk"] = "online"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("source", "labelled", "unlabelled")

    @property
    def paired(self) -> tuple[str, ...]:
        translated = () if self.mixing.translate == "none" else ("unlabelled",)
        if self.level == "sample":
            return ("source", *translated)
        return ("source", "labelled", *(("unlabelled",) if self.labeller else translated))

    @property
    def teachers(self) -> tuple[str, ...]:
        return () if self.labeller is None else (self.labeller,)

    @property
    def by_number(self) -> bool:
        return self.labeller is not None and self.labels == "disk"

    def build(self, num_classes: int) -> DomainMixing:
        return DomainMixing(self, num_classes)


class DomainMixing(Objective):
    """L_RL = CE(M⊙x_t + (1−M)⊙x_s), or L_SL = CE(x_s) + CE(x_t)."""

    def __init__(self, config: DomainMixingConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        # What the last student says of one view, as self-training has it.
        self.labelling: SelfTraining | None = None
        if config.labeller is not None:
            labels = SelfTrainingConfig(views=1, threshold="balanced", labels=config.labels)
            self.labelling = labels.build(num_classes)

    def start(self, model: nn.Module) -> None:
        if self.labelling is not None:
            # It learns in none of the teachers' stages.
            self.labelling.teacher = self.networks[self.config.labeller]

    def prepare(self, round: Round) -> SegmentationDataset | None:
        return round.unlabelled if self.labelling is None else self.labelling.prepare(round)

    def finish(self, round: Round) -> None:
        if self.labelling is not None:
            self.labelling.finish(round)

    def label(self, target: Batch, step: Step) -> Batch:
        """``target`` with the labeller's class-balanced pseudo-labels."""
        if self.config.labels == "disk":
            return target
        views, flips = self.labelling.look([target.image], step.normalize)
        return replace(target, label=self.labelling.label_online(views, flips, target.image.shape[-2:]))

    def inputs(self, batches: Mapping[str, Batch], step: Step) -> dict[str, Batch]:
        config = self.config
        source = translated_source(batches, config.mixing.translate, config.mixing.fda_beta)

        # The labelled target images, which those with pseudo-labels have joined since the second round.
        target = batches["labelled"]
        joined = torch.rand((), generator=step.generator).item() < config.pseudo_share
        if self.labelling is not None and joined:
            target = self.label(batches["unlabelled"], step)

        if config.level == "region":
            return {"seg_mixed": domain_cutmix(source, target, config.mixing, step)}
        return {"seg": source, "seg_target": target}

    def learn(self, model: nn.Module, inputs: Mapping[str, Batch], step: Learning) -> dict[str, Tensor]:
        config = self.config
        losses = {}
        for name, batch in inputs.items():
            # The target's statistics are those that score it, and mixed images are all that teach them.
            set_domain(model, "source" if name == "seg" else "target")
            loss = segmentation_loss(model(step.normalize(batch.image)), batch.label, config.auxiliary_weight)
            step.backward(loss)
            losses[name] = loss.detach()
        return losses
