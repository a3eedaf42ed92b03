"""Settings by which a run needs less memory."""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError
from torch import nn

from udas_fast.config import config_dataclass
from udas_fast.models import set_checkpointing, set_micro_batch_size

GIB = 2**30
#: Memory of a GPU beside a step's tensors, until measured: the CUDA context and cuDNN's workspace …
CONTEXT = GIB // 2
#: … and the gaps between the caching allocator's blocks, as a share of the tensors.
FRAGMENTATION = 0.15


def _as_cards_are_sold(budget: object) -> object:
    if budget is None or (isinstance(budget, str) and re.fullmatch(r"\d{1,6}(\.\d+)?GB", budget)):
        return budget
    raise PydanticCustomError("budget", "expected a card's size such as 11GB")


Policy: TypeAlias = Literal["auto", "none", "layer3", "layers2-4", "all"]


@config_dataclass
class MemoryConfig:
    """Ways to need less memory at the price of time; the policies are :data:`udas_fast.models.CHECKPOINTING`'s.

    A budget chooses among ways that change no number: checkpointing and, where the network has no batch statistics,
    micro-batches.
    """

    # "auto": the first that the budget holds by prediction; "none" without a budget.
    checkpointing: Policy = "auto"
    # Images of a batch whose activations the networks hold at once; None: all. One more forward of each; batch
    # statistics, where there are any, become those of a micro-batch.
    micro_batch_size: Annotated[int, Field(gt=0)] | None = None
    budget: Annotated[str | None, BeforeValidator(_as_cards_are_sold)] = None  # such as 11GB

    @property
    def budget_bytes(self) -> int | None:
        """Budget in bytes; a card's GB are GiB."""
        return None if self.budget is None else int(float(self.budget.removesuffix("GB")) * GIB)

    def apply(self, module: nn.Module) -> tuple[int, int]:
        """Set up every part of ``module`` that can; return how many checkpoint, and how many take micro-batches."""
        policy = "none" if self.checkpointing == "auto" else self.checkpointing
        return set_checkpointing(module, policy), set_micro_batch_size(module, self.micro_batch_size)


def needed_on_gpu(tensors: int) -> int:
    """Return the bytes that a GPU needs for a step whose tensors take ``tensors`` bytes at their peak."""
    return int(tensors * (1 + FRAGMENTATION)) + CONTEXT
