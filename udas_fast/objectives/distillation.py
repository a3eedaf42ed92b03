"""DDM's student: taught by both domain-mixed teachers, and by the labelled target (Chen et al. 2021, 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from udas_fast import ops
from udas_fast.data import Batch
from udas_fast.models import MeanNetwork, set_domain, to_output
from udas_fast.objectives.base import STRICT, Learning, Objective, ObjectiveConfig, Weight
from udas_fast.objectives.supervised import segmentation_loss


@dataclass(frozen=True, config=STRICT)
class DistillationConfig(ObjectiveConfig):
    """L = λ_kd · KL(mean of the teachers ‖ student) on unlabelled + CE on labelled target images."""

    kind: Literal["distillation"] = "distillation"
    # Networks of the run.
    teachers: Annotated[tuple[str, ...], Field(min_length=1)] = ("region", "sample")
    distillation_weight: Weight = 0.5  # λ_kd (DDM)
    auxiliary_weight: Weight = 0.0  # DDM has one head

    @property
    def needs(self) -> tuple[str, ...]:
        return ("labelled", "unlabelled")

    def build(self, num_classes: int) -> Distillation:
        return Distillation(self)


class Distillation(Objective):
    """Multi-teacher knowledge distillation; the teachers stay as they are."""

    def __init__(self, config: DistillationConfig) -> None:
        super().__init__()
        self.config = config

    def scored(self) -> Mapping[str, nn.Module]:
        return {"teachers": MeanNetwork(self._teachers())}

    def learn(self, model: nn.Module, inputs: Mapping[str, Batch], step: Learning) -> dict[str, Tensor]:
        config = self.config
        set_domain(model, "target")

        # Unlabelled target images: what both teachers think on average.
        image = step.normalize(inputs["unlabelled"].image)
        with torch.no_grad():
            opinions = [to_output(teacher.eval()(image)).primary for teacher in self._teachers()]
        student = to_output(model(image))
        distilled = ops.distillation_kl(
            student.primary, opinions, image.shape[-2:], align_corners=student.align_corners
        )
        step.backward(config.distillation_weight * distilled)

        # Labelled target images.
        labelled = inputs["labelled"]
        loss = segmentation_loss(
            model(step.normalize(labelled.image)), labelled.label, config.auxiliary_weight
        )
        step.backward(loss)
        return {"distilled": distilled.detach(), "seg": loss.detach()}

    def _teachers(self) -> list[nn.Module]:
        return [self.networks[name] for name in self.config.teachers]
