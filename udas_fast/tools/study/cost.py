"""Cost of a method's step: networks, passes through them, and memory beside plain supervision."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from pydantic.dataclasses import dataclass
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from udas_fast.config import STRICT
from udas_fast.memory import predict
from udas_fast.models.segmentation import SegmentationNetwork
from udas_fast.recipes import Recipe, get_recipe
from udas_fast.testing import random_phase, tiny


@dataclass(frozen=True, config=STRICT)
class Cost:
    """Cost of a step of a recipe's longest stage.

    Attributes:
        networks: segmentation networks in memory: the one that learns, teachers and averages.
        forwards: passes of a batch through one of them.
        backwards: those that a gradient went back through.
        memory: predicted peak on a GPU, of all stages, as a multiple of plain supervision's at the same size.
    """

    networks: int
    forwards: int
    backwards: int
    memory: float

    @property
    def compute(self) -> float:
        """Passes as a multiple of plain supervision's one forward and backward, where a backward counts as two."""
        return (self.forwards + 2 * self.backwards) / 3


@functools.cache
def step_cost(recipe: Recipe, num_classes: int, *, labelled: bool) -> Cost:
    """Return the cost of ``recipe``: passes are counted in a step of a small network, memory is predicted.

    ``labelled``: whether there are labelled target images for the stages that may use them.
    """
    plain = get_recipe("supervised")
    stage = replace(plain.stages[0], optimizer=recipe.stages[-1].optimizer)
    plain = replace(
        plain, stages=(stage,), model=recipe.model, input=recipe.input, precision=recipe.precision
    )
    needed, baseline = (
        max(peak.needed for peak in predict(each, num_classes=num_classes, labelled=labelled))
        for each in (recipe, plain)
    )
    return Cost(*count_passes(recipe, labelled=labelled), needed / baseline)


def count_passes(recipe: Recipe, *, labelled: bool) -> tuple[int, int, int]:
    """Return (networks, forwards, backwards) of the last step of the longest stage of ``recipe``, the last of these."""
    lengths = [stage.steps * stage.rounds for stage in recipe.stages]
    index = max(range(len(lengths)), key=lambda i: (lengths[i], i))
    phase = random_phase(replace(tiny(recipe), ema=recipe.ema), index)
    step, objective = phase.step, phase.step.objective
    if not labelled and "labelled" not in recipe.stages[index].objective.requirements.streams:
        phase.loaders = {name: loader for name, loader in phase.loaders.items() if name != "labelled"}
    step.done = step.steps - 1  # the last step has every term
    passes = [0, 0]

    def forward(module: nn.Module, _: object, output: object) -> None:
        primary = getattr(output, "primary", None)
        if isinstance(module, SegmentationNetwork) and isinstance(primary, torch.Tensor):
            passes[0] += 1
            if primary.requires_grad:
                primary.register_hook(backward)

    def backward(_: torch.Tensor) -> None:
        passes[1] += 1

    hook = register_module_forward_hook(forward)
    try:
        phase.take_step()
    finally:
        hook.remove()
    named = recipe.stages[index].objective.requirements.networks
    parts = [step.model, objective, *(objective.networks[name] for name in named)]
    parts += [] if step.average is None else [step.average]
    networks = {id(m) for part in parts for m in part.modules() if isinstance(m, SegmentationNetwork)}
    return len(networks), passes[0], passes[1]
