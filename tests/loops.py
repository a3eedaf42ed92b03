"""A small loop of one stage of a recipe, as the trainer makes it, with random batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import torch

from udas_fast.data import Batch
from udas_fast.engine.graph import Capture
from udas_fast.engine.loop import Loop, Phase
from udas_fast.engine.precision import build_amp, memory_format
from udas_fast.models import build_model
from udas_fast.recipes import Recipe, get_recipe, override, small

CLASSES, BATCH, SIZE = 5, 2, (64, 96)


class Few:
    """One of a few random batches, by the step, which are on the device; all images have labels, and views."""

    global_batch = BATCH

    def __init__(self, seed: int, views: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)

        def numbers(high: int, *shape: int) -> torch.Tensor:
            return torch.randint(0, high, shape, dtype=torch.uint8, generator=generator)

        def batch() -> Batch:
            image, label = numbers(256, BATCH, 3, *SIZE), numbers(CLASSES, BATCH, *SIZE)
            others = numbers(256, BATCH, views - 1, 3, *SIZE) if views > 1 else None
            return Batch(image, label, [""] * BATCH, others).to(device)

        self.made = [batch() for _ in range(5)]

    def batches(self, start_step: int, device: torch.device) -> Iterator[Batch]:
        for step in count(start_step):
            yield self.made[step % len(self.made)]


def tiny(name: str, *settings: str) -> Recipe:
    return override(small(get_recipe(name), size=SIZE, steps=12, batch_size=BATCH), settings)


def loop_of(
    recipe: Recipe, index: int = 0, device: str | torch.device = "cpu", capture: Capture | None = None
) -> Loop:
    """A loop of one stage with all streams, from the same weights on every device."""
    stage, device = recipe.stages[index], torch.device(device)
    torch.manual_seed(0)
    model = build_model(recipe.model, CLASSES)
    amp = build_amp(recipe.precision, device)
    model = model.to(device, memory_format=memory_format(amp, model))
    objective = stage.objective.build(CLASSES)
    for module in (model, objective):
        recipe.memory.apply(module)
    objective.networks = {s.network: build_model(recipe.model, CLASSES).to(device) for s in recipe.stages}
    objective.start(model)
    objective.to(device)
    names = (*stage.objective.needs, *stage.objective.uses)
    streams = {
        name: Few(i, stage.objective.stream_views if name == "unlabelled" else 1, device)
        for i, name in enumerate(names)
    }
    phase = Phase(stage.name, stage.steps, stage.optimizer)
    return Loop(phase, model, objective, streams, amp, 0, ema=recipe.ema, capture=capture)
