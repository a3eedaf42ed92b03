"""Stages of a recipe on random batches, with small networks and few steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor, nn

from udas_fast import distributed
from udas_fast.data import Batch
from udas_fast.data.classes import CITYSCAPES
from udas_fast.data.types import StreamName
from udas_fast.engine.faults import BadSteps
from udas_fast.engine.graph import Capture
from udas_fast.engine.precision import build_amp, memory_format
from udas_fast.engine.step import TrainStep, start_objective
from udas_fast.errors import bad
from udas_fast.models import build_model
from udas_fast.objectives import Batches, Losses
from udas_fast.recipes import Recipe, Stage, small

CLASSES, BATCH, SIZE = 5, 2, (64, 96)
NAMES = CITYSCAPES.names[-CLASSES:]
STEPS = 12


class RandomLoader:
    """A few random batches in turn, on the device; each of several processes gets its share of the images.

    Args:
        recipe, stage: the stage that is trained.
        name: the stream. Unlabelled images have labels where they are made before a round.
        seed: seed of the numbers.
        device: where the batches lie.
    """

    def __init__(
        self, recipe: Recipe, stage: Stage, name: StreamName, seed: int, device: torch.device
    ) -> None:
        requirements = stage.objective.requirements
        geometry = recipe.geometries(stage)[name]
        size, n = geometry.crop or geometry.size, recipe.input.batch_size_of(name)
        self.global_batch = n
        labelled = name != "unlabelled" or requirements.whole_images
        views = len(requirements.views) if name == "unlabelled" else 0
        generator = torch.Generator().manual_seed(seed)
        share = distributed.per_rank(n, f"batch size of {name}")
        rows = slice(distributed.get_rank() * share, (distributed.get_rank() + 1) * share)

        def numbers(high: int, *shape: int) -> Tensor:
            return torch.randint(0, high, shape, dtype=torch.uint8, generator=generator)

        def batch() -> Batch:
            image, label = numbers(256, n, 3, *size), numbers(CLASSES, n, *size)
            label[0, : size[0] // 4] = 255  # the processes' images have different numbers of labelled pixels
            others = numbers(256, n, views, 3, *size)[rows] if views else None
            ids = [f"{name}-{i}" for i in range(n)][rows]
            return Batch(image[rows], label[rows] if labelled else None, ids, others).to(device)

        self.made = [batch() for _ in range(5)]

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Yield the batches of steps ``start_step``, ``start_step`` + 1 and so on, new tensors each."""
        for step in count(start_step):
            yield copy.deepcopy(self.made[step % len(self.made)])


@dataclass
class RandomPhase:
    """One stage of a recipe with all its streams, from the same weights on every device."""

    step: TrainStep
    loaders: Mapping[StreamName, RandomLoader]

    def run(self, after_step: Callable[[Losses], None] = lambda losses: None) -> list[Losses]:
        """Take the steps that are left; return their losses."""
        found = []
        for losses in self.steps():
            found.append(losses)
            after_step(losses)
        return found

    def steps(self) -> Iterator[Losses]:
        """Take the steps that are left; yield the losses of each."""
        while self.step.done < self.step.steps:
            yield self.take_step()

    def take_step(self) -> Losses:
        """Take the next step; return its losses."""
        self.step.model.train()
        batches = {name: next(loader.batches(self.step.done)) for name, loader in self.loaders.items()}
        return self.step(Batches(**batches))


def tiny(recipe: Recipe, steps: int | None = None, size: tuple[int, int] = SIZE) -> Recipe:
    """Return ``recipe`` with a narrow network, for images of ``size`` (H, W) in batches of 2.

    Every stage has ``steps`` steps; None: 12 in all.

    Raises:
        InputError: a recipe of image translation.
    """
    if recipe.trains != "segmentation":
        raise bad(f"recipe {recipe.name}", f"one that trains {recipe.trains}", "one for segmentation")
    rounds = sum(stage.rounds for stage in recipe.stages)
    recipe = small(recipe, size=size, steps=max(STEPS, 3 * rounds), batch_size=BATCH)
    if steps is None:
        return recipe
    return replace(recipe, stages=tuple(replace(stage, steps=steps) for stage in recipe.stages))


def random_phase(
    recipe: Recipe,
    index: int = 0,
    device: str | torch.device = "cpu",
    capture: Capture | None = None,
    *,
    weights: int = 0,
    max_bad_steps: int = 0,
) -> RandomPhase:
    """Return stage ``index`` of ``recipe`` on random batches.

    Args:
        recipe: a recipe such as :func:`tiny` makes.
        index: number of the stage.
        device: where it runs.
        capture: records its steps.
        weights: seed of the trained network's first weights.
        max_bad_steps: steps that may be skipped.
    """
    stage, device = recipe.stages[index], torch.device(device)
    amp = build_amp(recipe.precision, device)
    networks: dict[str, nn.Module] = {}
    for name in dict.fromkeys([stage.network, *(other.network for other in recipe.stages)]):
        torch.manual_seed(weights if name == stage.network else len(networks))
        networks[name] = build_model(recipe.model_of(name), CLASSES).to(device)
    model = networks[stage.network]
    model = model.to(memory_format=memory_format(amp, model))  # type: ignore[call-overload]  # torch's stub lacks it
    recipe.memory.apply(model)
    torch.manual_seed(0)
    objective = start_objective(
        stage.objective,
        model,
        networks,
        num_classes=CLASSES,
        memory=recipe.memory,
        class_names=NAMES,
        device=device,
    )
    loaders = {
        name: RandomLoader(recipe, stage, name, seed, device)
        for seed, name in enumerate(recipe.geometries(stage))
    }
    step = TrainStep(
        stage.name,
        stage.steps,
        model,
        objective,
        stage.optimizer,
        amp,
        seed=0,
        ema=recipe.ema,
        bad_steps=BadSteps(max_bad_steps),
        capture=capture,
    )
    return RandomPhase(step, loaders)
