"""What a run may do to need less memory; none of it changes a number."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from udas_fast.objectives.base import STRICT

Checkpointing = Literal["none", "layer3", "layers2-4", "all"]


@dataclass(frozen=True, config=STRICT)
class MemoryConfig:
    """How a step trades time for memory (:func:`udas_fast.models.set_checkpointing`)."""

    checkpointing: Checkpointing = "none"
