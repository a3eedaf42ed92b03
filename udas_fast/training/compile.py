"""torch.compile of the networks' backbones."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from udas_fast.engine.memory import MemoryConfig
from udas_fast.errors import bad, first_line
from udas_fast.models import ResNet


def compile_backbones(networks: Iterable[nn.Module], memory: MemoryConfig, device: torch.device) -> None:
    """Give the ResNet of each of ``networks`` to torch.compile, in its place; losses stay the same up to rounding.

    It compiles in the first steps, once for each size of images. Copies of a network (teachers, averages) are not
    compiled.

    Raises:
        InputError: a network without a ResNet of ours, checkpointing or micro-batches, or no compiler that works here.
    """
    backbones = []
    for network in networks:
        backbone = getattr(network, "backbone", None)
        if not isinstance(backbone, ResNet):
            raise bad("compile", f"{type(network).__name__} without a ResNet of ours", "compile: false")
        backbones.append(backbone)
    if memory.checkpointing != "none" or memory.micro_batch_size is not None:
        # Parts that run again do so by closures, which torch.compile is not made for.
        found = f"checkpointing {memory.checkpointing!r}, micro_batch_size {memory.micro_batch_size}"
        raise bad("compile", found, "memory.checkpointing none and no micro_batch_size")
    _try_compiler(device)
    for backbone in backbones:
        backbone.compile()


def _try_compiler(device: torch.device) -> None:
    """Compile a line, so that a missing compiler is told before the first step."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(1, device=device))
    except Exception as error:  # whatever inductor, Triton or the C++ compiler raise
        needs = "a C++ compiler" if device.type == "cpu" else "Triton and a C compiler"
        raise bad(
            "compile", f"none that works ({first_line(error):.200})", f"{needs}, or compile: false"
        ) from error
