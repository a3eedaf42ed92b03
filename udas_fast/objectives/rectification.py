"""Seg-Uncertainty's second stage: pseudo-labels count as far as the two heads agree (Zheng and Yang 2020)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from udas_fast import ops
from udas_fast.data import Batch
from udas_fast.errors import InputError
from udas_fast.models import SegmentationOutput, set_domain, to_output
from udas_fast.objectives.base import STRICT, Learning, Objective, ObjectiveConfig, Weight


@dataclass(frozen=True, config=STRICT)
class RectificationConfig(ObjectiveConfig):
    """A student learns every pseudo-label of a frozen teacher; no threshold, the uncertainty weighs them."""

    kind: Literal["rectification"] = "rectification"
    # The teacher's, each with its mirror image.
    scales: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (1.0, 1.25)
    auxiliary_weight: Weight = 0.5  # λ_seg of their command lines

    @property
    def needs(self) -> tuple[str, ...]:
        return ("unlabelled",)

    @property
    def two_heads(self) -> str | None:
        return "the uncertainty of pseudo-labels"

    def build(self, num_classes: int) -> Rectification:
        return Rectification(self)


def rectified_loss(output: object, label: Tensor, auxiliary_weight: float) -> Tensor:
    """R(primary, auxiliary) + λ_seg · R(auxiliary, primary), R of :func:`udas_fast.ops.rectified_cross_entropy`.

    R(p, a) = mean(CE(p)·exp(−var)) + mean(var) with var = KL(a‖p) (their equation 8): a label that the heads
    disagree about counts less, and disagreeing has its price. ``label``: uint8 ``[N, H, W]``.

    Raises:
        InputError: the network has no auxiliary head.
    """
    primary, auxiliary = logits = _both(output)
    corners = logits.align_corners
    loss = ops.rectified_cross_entropy(primary, auxiliary, label, align_corners=corners)
    second = ops.rectified_cross_entropy(auxiliary, primary, label, align_corners=corners)
    return loss + auxiliary_weight * second


class Rectification(Objective):
    """Teacher: mean over scales and mirror images of softmax(0.5·auxiliary + primary). Student: rectified CE."""

    def __init__(self, config: RectificationConfig) -> None:
        super().__init__()
        self.config = config

    def start(self, model: nn.Module) -> None:
        self.teacher = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def label(self, image: Tensor) -> Tensor:
        """uint8 ``[N, H, W]``, the teacher's label of every pixel of a normalised ``image`` ``[N, 3, H, W]``."""
        self.teacher.eval()
        views = []
        for scale in self.config.scales:
            size = [round(scale * side) for side in image.shape[-2:]]
            scaled = F.interpolate(image, size, mode="bilinear", align_corners=False)
            for view in (scaled, scaled.flip(-1)):
                logits = _both(self.teacher(view))
                views.append(logits.ensemble())
        return ops.pseudo_label(
            views,
            image.shape[-2:],
            threshold=0.0,
            flips=[False, True] * len(self.config.scales),
            reduce="mean",
            align_corners=logits.align_corners,
        ).label

    def learn(self, model: nn.Module, inputs: Mapping[str, Batch], step: Learning) -> dict[str, Tensor]:
        image = step.normalize(inputs["unlabelled"].image)
        label = self.label(image)
        set_domain(model, "target")
        loss = rectified_loss(model(image), label, self.config.auxiliary_weight)
        step.backward(loss)
        return {"rectified": loss.detach()}


def _both(output: object) -> SegmentationOutput:
    logits = to_output(output)
    if logits.auxiliary is None:
        raise InputError("the uncertainty of pseudo-labels needs a network with an auxiliary head")
    return logits
