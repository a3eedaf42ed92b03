"""The table of `udas-fast plan`: memory of each stage by batch size and policy, and what fits which card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from udas_fast.engine.memory import CONTEXT, FRAGMENTATION, GIB, MemoryConfig
from udas_fast.memory.choose import candidates
from udas_fast.memory.prediction import KINDS, Peak, predict
from udas_fast.recipes import Recipe

CARDS = (4, 6, 8, 11, 16, 24)
"""Memory in GB of the cards in the table."""
MIB = 2**20


@dataclass(frozen=True)
class Row:
    """Peaks of a recipe's stages at one batch size under one policy."""

    batch_size: int
    memory: MemoryConfig
    peaks: list[Peak]

    @property
    def needed(self) -> int:
        """Bytes that a GPU needs for every stage."""
        return max(peak.needed for peak in self.peaks)

    @property
    def policy(self) -> str:
        """Checkpointing, and the micro-batch's size where there is one: "layer3", "all, 2 at once"."""
        return policy(self.memory.checkpointing, self.memory.micro_batch_size)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; sizes in bytes."""
        stages = {
            peak.stage: {**peak.kinds, "tensors": peak.tensors, "needed": peak.needed} for peak in self.peaks
        }
        return {
            "batch_size": self.batch_size,
            "checkpointing": self.memory.checkpointing,
            "micro_batch_size": self.memory.micro_batch_size,
            "stages": stages,
        }


def policy(checkpointing: str, micro_batch_size: int | None) -> str:
    """Return the tables' name of a way to need less memory."""
    return checkpointing if micro_batch_size is None else f"{checkpointing}, {micro_batch_size} at once"


def plan(
    recipe: Recipe,
    *,
    batch_sizes: Sequence[int] = (1, 2, 4),
    num_classes: int = 19,
    labelled: bool = True,
    progress: Callable[[], object] = lambda: None,
) -> list[Row]:
    """Predict every batch size under every policy that a budget may choose, or under the one that the recipe names."""
    rows = []
    for size in batch_sizes:
        of_size = replace(recipe, input=replace(recipe.input, batch_size=size))
        for memory in candidates(of_size):
            one = replace(of_size, memory=memory)
            rows.append(Row(size, memory, predict(one, num_classes=num_classes, labelled=labelled)))
            progress()
    return rows


def plan_table(rows: Sequence[Row]) -> str:
    """Return ``rows`` as text, in MiB by stage and kind; below, the fastest policy that fits each of :data:`CARDS`."""
    stages = max(len(peak.stage) for row in rows for peak in row.peaks)
    columns = (*KINDS, "tensors", "on a GPU")
    wide = max(14, *(len(row.policy) + 2 for row in rows))
    head = f"{'batch':<6}{'checkpointing':<{wide}}{'stage':<{stages}}" + "".join(f"{c:>12}" for c in columns)
    lines = ["MiB at the peak, by prediction:", head]
    for row in rows:
        for peak in row.peaks:
            sizes = (*(peak.kinds.get(kind, 0) for kind in KINDS), peak.tensors, peak.needed)
            cells = "".join(f"{size / MIB:>12.0f}" for size in sizes)
            lines.append(f"{row.batch_size:<6}{row.policy:<{wide}}{peak.stage:<{stages}}{cells}")
    batch_sizes = sorted({row.batch_size for row in rows})
    limits = {f"{card} GB": card * GIB for card in CARDS}
    memory = rows[0].memory
    if memory.budget_bytes is not None:
        limits[f"budget {memory.budget}"] = memory.budget_bytes
    first = max(map(len, limits)) + 2
    lines += [
        "",
        "checkpointing that fits, the fastest:",
        f"{'card':<{first}}" + "".join(f"{f'batch {n}':<{wide}}" for n in batch_sizes),
    ]
    for name, limit in limits.items():
        fits = [
            next((r.policy for r in rows if r.batch_size == n and r.needed <= limit), "-")
            for n in batch_sizes
        ]
        lines.append(f"{name:<{first}}" + "".join(f"{fit:<{wide}}" for fit in fits))
    lines += [
        "",
        f"On a GPU: tensors + {FRAGMENTATION:.0%} for the allocator's gaps + {CONTEXT // MIB} MiB for CUDA's",
    ]
    lines += ["context and cuDNN's workspace. Images that wait their turn and evaluation are not counted."]
    return "\n".join(lines)
