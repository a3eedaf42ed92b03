"""Phases of a recipe on random batches: recorded and replayed, cut and resumed, the same to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from udas_fast.data import Batch
from udas_fast.data.types import StreamName
from udas_fast.engine.graph import WARM_UP, Capture
from udas_fast.engine.precision import build_amp, memory_format
from udas_fast.engine.step import TrainStep, start_objective
from udas_fast.models import build_model
from udas_fast.objectives import Batches, Losses
from udas_fast.ops import _pseudo_label
from udas_fast.recipes import Recipe, small
from udas_fast.testing.tape import TapeCapture

CLASSES, BATCH, SIZE = 5, 2, (64, 96)


class RandomLoader:
    """A few random batches by turns, on the device; all images have labels, and ``views`` - 1 views."""

    global_batch = BATCH

    def __init__(self, seed: int, views: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)

        def numbers(high: int, *shape: int) -> Tensor:
            return torch.randint(0, high, shape, dtype=torch.uint8, generator=generator)

        def batch() -> Batch:
            image, label = numbers(256, BATCH, 3, *SIZE), numbers(CLASSES, BATCH, *SIZE)
            others = numbers(256, BATCH, views - 1, 3, *SIZE) if views > 1 else None
            return Batch(image, label, [""] * BATCH, others).to(device)

        self.made = [batch() for _ in range(5)]

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Yield the batches of steps ``start_step``, ``start_step`` + 1 and so on."""
        for step in count(start_step):
            yield self.made[step % len(self.made)]


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
        """Take the steps that are left, one by one; yield the losses of each and keep none."""
        batches = {name: loader.batches(self.step.done) for name, loader in self.loaders.items()}
        self.step.model.train()
        while self.step.done < self.step.steps:
            yield self.step(Batches(**{name: next(it) for name, it in batches.items()}))


def tiny(recipe: Recipe, steps: int | None = None) -> Recipe:
    """Return ``recipe`` for images of 64 × 96 in batches of 2, each stage of ``steps`` steps (None: 12 in all)."""
    recipe = small(recipe, size=SIZE, steps=max(12, 3 * len(recipe.stages)), batch_size=BATCH)
    if steps is None:
        return recipe
    return replace(recipe, stages=tuple(replace(stage, steps=steps) for stage in recipe.stages))


def random_phase(
    recipe: Recipe,
    index: int = 0,
    device: str | torch.device = "cpu",
    capture: Capture | None = None,
) -> RandomPhase:
    """Return stage ``index`` of ``recipe`` on random batches; ``capture`` records its steps."""
    stage, device = recipe.stages[index], torch.device(device)
    torch.manual_seed(0)
    model = build_model(recipe.model, CLASSES)
    amp = build_amp(recipe.precision, device)
    model = model.to(device)
    model = model.to(memory_format=memory_format(amp, model))  # type: ignore[call-overload]  # torch's stub lacks it
    recipe.memory.apply(model)
    networks = {s.network: build_model(recipe.model, CLASSES).to(device) for s in recipe.stages}
    objective = start_objective(
        stage.objective, model, networks, num_classes=CLASSES, memory=recipe.memory, device=device
    )
    loaders = {
        name: RandomLoader(i, stage.objective.requirements.views if name == "unlabelled" else 1, device)
        for i, name in enumerate(recipe.geometries(stage))
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
        capture=capture,
    )
    return RandomPhase(step, loaders)


def assert_replays(recipe: Recipe, *replays: int) -> None:
    """Assert that a CUDA graph can stand for the steps of every stage of ``recipe``.

    A tape takes the graph's place: each stage replays some of its steps, and ends with the losses and state of a run
    that replays none.

    Args:
        recipe: a recipe with at least 5 steps a stage, such as :func:`tiny` makes.
        replays: number of replayed steps of each stage; by default all but the first three.
    """
    with patch.object(_pseudo_label, "_on_host", lambda value: False):  # thresholds are out of reach
        for index, stage in enumerate(recipe.stages):
            expected = replays[index] if replays else stage.steps - WARM_UP
            plain, recorded = random_phase(recipe, index), random_phase(recipe, index, capture=TapeCapture())
            losses, found = plain.run(), recorded.run()
            assert recorded.step.graph is not None
            made = recorded.step.graph.replays
            assert made == expected, f"{stage.name}: {made} steps replayed, expected {expected}"
            assert_equal(found, losses, stage.name)
            assert_equal(recorded.step.state_dict(), plain.step.state_dict(), stage.name)


def assert_resumes(recipe: Recipe) -> None:
    """Assert that every stage of ``recipe``, stopped in the middle, goes on to the same bits."""
    for index, stage in enumerate(recipe.stages):
        whole = random_phase(recipe, index)
        states: list[dict[str, Any]] = []

        def keep(losses: Losses, phase: RandomPhase = whole, states: list[dict[str, Any]] = states) -> None:
            if phase.step.done == phase.step.steps // 2:
                states.append(copy.deepcopy(phase.step.state_dict()))

        losses = whole.run(keep)
        again = random_phase(recipe, index)
        again.step.load_state_dict(states[0])
        rest = again.run()
        assert_equal(rest, losses[len(losses) - len(rest) :], stage.name)
        assert_equal(again.step.state_dict(), whole.step.state_dict(), stage.name)


def assert_equal(found: object, expected: object, where: str) -> None:
    """Assert that two nested structures are equal to the bit; NaN equals NaN."""
    if isinstance(expected, Mapping):
        assert isinstance(found, Mapping), where
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_equal(found[key], value, f"{where}.{key}")
    elif isinstance(expected, Tensor):
        assert isinstance(found, Tensor), where
        assert torch.equal(found.nan_to_num(-1.5), expected.nan_to_num(-1.5)), where
    elif isinstance(expected, (list, tuple)):
        assert isinstance(found, (list, tuple)), where
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{where}[{i}]")
    else:
        assert found == expected, where
