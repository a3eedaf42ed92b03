"""Which checkpointing a run takes, and what to try when a GPU's memory was not enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from udas_fast.engine.memory import GIB, MemoryConfig
from udas_fast.errors import bad
from udas_fast.models import CHECKPOINTING
from udas_fast.plan.predict import predict
from udas_fast.recipes import Recipe

POLICIES = tuple(CHECKPOINTING)


def needed(recipe: Recipe, policy: str, num_classes: int, labelled: bool) -> int:
    """Bytes that a GPU needs for every stage of ``recipe`` under checkpointing ``policy``."""
    recipe = replace(recipe, memory=MemoryConfig(checkpointing=policy))
    return max(peak.needed for peak in predict(recipe, num_classes=num_classes, labelled=labelled))


def choose_checkpointing(recipe: Recipe, *, num_classes: int, labelled: bool) -> str:
    """The policy that ``recipe.memory`` names, or the first that its budget holds; "none" without a budget.

    Raises:
        InputError: the budget holds none, or not the one that is named.
    """
    memory = recipe.memory
    named = memory.checkpointing != "auto"
    if memory.budget_bytes is None:
        return memory.checkpointing if named else "none"
    needs = {}
    for policy in [memory.checkpointing] if named else POLICIES:
        needs[policy] = needed(recipe, policy, num_classes, labelled)
        if needs[policy] <= memory.budget_bytes:
            return policy
    raise bad(
        f"memory.budget {memory.budget}",
        f"{_listed(needs)} by prediction",
        f"at least that, a smaller input.batch_size or size{'' if named else ', or 16-bit precision'}",
    )


def advice(recipe: Recipe, policy: str, *, num_classes: int, labelled: bool) -> str:
    """What to change when a run under ``policy`` has run out of memory, with predictions."""
    after: Sequence[str] = POLICIES[POLICIES.index(policy) + 1 :]
    needs = {p: needed(recipe, p, num_classes, labelled) for p in (policy, *after)}
    change = "set memory.checkpointing, or a smaller" if after else "set a smaller"
    return f"by prediction it needs {_listed(needs)}; {change} input.batch_size or size"


def _listed(needs: dict[str, int]) -> str:
    return ", ".join(f"{size / GIB:.1f} GB with checkpointing {policy!r}" for policy, size in needs.items())
