"""Choice of checkpointing and micro-batches for a memory budget, and advice when a GPU's memory was not enough."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from udas_fast.engine.memory import GIB, MemoryConfig, Policy
from udas_fast.errors import bad
from udas_fast.memory.prediction import predict
from udas_fast.recipes import Recipe

#: Policies from the fastest to the one that needs least memory.
POLICIES: tuple[Policy, ...] = ("none", "layer3", "layers2-4", "all")


def needed(recipe: Recipe, memory: MemoryConfig, num_classes: int, labelled: bool) -> int:
    """Return the bytes that a GPU needs for every stage of ``recipe`` with ``memory``."""
    recipe = replace(recipe, memory=memory)
    return max(peak.needed for peak in predict(recipe, num_classes=num_classes, labelled=labelled))


def choose_memory(recipe: Recipe, *, num_classes: int, labelled: bool) -> MemoryConfig:
    """Return the settings that ``recipe.memory`` names; where it leaves one open, the fastest that fits its budget.

    Whether one fits is predicted. Without a budget nothing is checkpointed that is not named.

    Raises:
        InputError: nothing fits the budget, or the named settings do not.
    """
    memory = recipe.memory
    if memory.budget_bytes is None:
        return next(candidates(recipe))
    needs = {}
    for candidate in candidates(recipe):
        needs[candidate] = needed(recipe, candidate, num_classes, labelled)
        if needs[candidate] <= memory.budget_bytes:
            return candidate
    raise bad(
        f"memory.budget {memory.budget}",
        f"{_listed(needs)} by prediction",
        f"a larger one, or {_smaller(recipe)}",
    )


def advice(recipe: Recipe, memory: MemoryConfig, *, num_classes: int, labelled: bool) -> str:
    """Return advice for a run with ``memory`` that has run out of it, with predictions."""
    memory = replace(memory, budget=None)
    every = list(candidates(replace(recipe, memory=MemoryConfig())))
    after = every[every.index(memory) + 1 :] if memory in every else []
    needs = {candidate: needed(recipe, candidate, num_classes, labelled) for candidate in (memory, *after)}
    change = "one that needs less, or " if after else ""
    return f"by prediction it needs {_listed(needs)}; set {change}{_smaller(recipe)}"


def candidates(recipe: Recipe) -> Iterator[MemoryConfig]:
    """Yield the named settings with each choice for the open ones, from the fastest to the one that needs least memory.

    A micro-batch costs one more forward whatever its size, as much as checkpointing everything.
    """
    memory = recipe.memory
    policies: tuple[Policy, ...] = (memory.checkpointing,)
    if memory.checkpointing == "auto":
        policies = POLICIES if recipe.trains == "segmentation" else ("none",)  # CycleGAN has no backbone
    for policy in policies:
        yield replace(memory, checkpointing=policy)
    if memory.micro_batch_size is not None or any(
        recipe.model_of(stage.network).batch_statistics for stage in recipe.stages
    ):
        return
    for policy in dict.fromkeys((policies[0], policies[-1])):
        size = max(recipe.batch_sizes.values(), default=1) // 2
        while size:
            yield replace(memory, checkpointing=policy, micro_batch_size=size)
            size //= 2


def _listed(needs: dict[MemoryConfig, int]) -> str:
    return ", ".join(f"{size / GIB:.1f} GB with {_described(memory)}" for memory, size in needs.items())


def _described(memory: MemoryConfig) -> str:
    checkpointing = f"checkpointing {memory.checkpointing!r}"
    if memory.micro_batch_size is None:
        return checkpointing
    return f"{checkpointing} and memory.micro_batch_size {memory.micro_batch_size}"


def _smaller(recipe: Recipe) -> str:
    """Return settings that need less memory but change numbers."""
    several = any(size > 1 for size in recipe.batch_sizes.values())
    batch = "input.batch_size, memory.micro_batch_size or " if several else ""
    return f"a smaller {batch}size{', or 16-bit precision' if recipe.precision == 'fp32' else ''}"
