"""A mean teacher outside of the package, and the mistakes that the checks have to find in it."""

from __future__ import annotations

import copy
import random
from typing import Any

import torch
from torch import Tensor, nn

import udas_fast as uf
from udas_fast import ops
from udas_fast.config import config_dataclass
from udas_fast.models import to_output
from udas_fast.objectives import (
    Batches,
    Losses,
    Objective,
    ObjectiveConfig,
    PrepareContext,
    Requirements,
    StepContext,
)
from udas_fast.objectives.losses import segmentation_loss


@config_dataclass
class SampleConfig(ObjectiveConfig, kind="sample"):
    mistake: str = ""
    values: Any = None

    @property
    def requirements(self) -> Requirements:
        return Requirements(streams=("source", "unlabelled"))

    def build(self, num_classes: int) -> Sample:
        return Sample(self.mistake)


class Sample(Objective):
    """CE on noisy source images and on the teacher's labels of target images."""

    count: Tensor
    light: Tensor

    def __init__(self, mistake: str) -> None:
        super().__init__()
        self.mistake, self.steps = mistake, 0
        self.hidden: list[nn.Module] = []
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("light", torch.zeros(()))

    def on_round_start(self, model: nn.Module) -> None:
        teacher = copy.deepcopy(model).requires_grad_(False)
        if self.mistake.startswith("hidden"):
            self.hidden = [teacher]
        else:
            self.teacher = teacher

    def prepare_batch(self, batch: Batches, ctx: PrepareContext) -> dict[str, Any]:
        images = batch.source.image

        def numbers(n: int) -> Tensor:
            return torch.randint(0, 40, (n, 1, 1, 1), generator=ctx.generator, dtype=torch.uint8)

        if self.mistake == "not ctx.draw":
            noise = numbers(len(images))
        elif self.mistake == "torch's own":
            noise = torch.randint(0, 40, (len(images), 1, 1, 1), dtype=torch.uint8)
        else:
            noise = ctx.draw(numbers, len(images))
        batch.source.image = images // 2 + noise.to(images.device, non_blocking=True)
        other = {"outline": ctx.step} if self.mistake == "outline" else {}
        if self.mistake == "Python's own":
            other = {"scale": torch.full((), random.random())}
        return {"source": batch.source, "target": batch.unlabelled, **other}

    def training_step(self, model: nn.Module, batch: dict[str, Any], ctx: StepContext) -> Losses:
        source, target, mistake = batch["source"], batch["target"], self.mistake
        self.steps += 1
        output = ctx.forward(model, source.image, domain="source")
        if mistake == "own pixels":
            seg = ops.cross_entropy(output.primary, source.label)
        else:
            seg = segmentation_loss(output, source.required_label, 0.0)
        seg = seg * batch.get("scale", 1.0)
        if mistake == "count on the host":
            seg = seg * self.steps
        elif mistake == "item":
            seg = seg * seg.item()
        elif mistake == "if":
            if seg > 3:
                seg = 3 * seg
        elif mistake == "mask":
            seg = seg * source.label[source.label != 255].float().mean()
        elif mistake == "cpu":
            seg = seg * seg.detach().cpu()
        elif mistake == "constant":
            seg = seg * torch.tensor(2.0, device=seg.device)
        elif mistake == "noise in the step":
            seg = seg * torch.rand((), device=seg.device)
        ctx.backward(seg)

        teacher = self.hidden[0] if self.hidden else self.teacher
        if mistake == "hidden, in the step":
            self.follow(model)
        with torch.no_grad():
            views = [to_output(teacher(ctx.normalize(target.image))).primary]
        height, width = target.image.shape[-2:]
        pseudo = ops.pseudo_label(views, (height, width), threshold=0.2)
        if mistake == "not averaged":
            self.light.copy_(target.image.float().mean())
        loss = segmentation_loss(ctx.forward(model, target.image), pseudo.label, 0.0)
        ctx.backward(loss)
        self.count += 1
        return {"seg": seg.detach(), "pseudo": loss.detach()}

    def after_step(self, model: nn.Module) -> None:
        if self.mistake != "hidden, in the step":
            self.follow(model)

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        teacher = self.hidden[0] if self.hidden else self.teacher
        keep = (1 - 1 / self.count.clamp_min(1)).clamp_max(0.9)
        for mean, value in zip(teacher.parameters(), model.parameters(), strict=True):
            mean.lerp_(value, 1 - keep)


def sample(mistake: str = "") -> uf.Recipe:
    """Return a recipe with the method and one mistake."""
    return uf.Recipe(
        "sample", "a mean teacher", stages=(uf.Stage("mixed", SampleConfig(mistake), steps=100),)
    )
