"""Less memory for more time: blocks, and parts of a batch, that are recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

from udas_fast.errors import unknown

#: Parts of a network that each policy checkpoints, from the fastest policy to the one that needs least memory.
CHECKPOINTING: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "layer3": frozenset({"layer3"}),  # 23 of ResNet-101's 33 blocks
    "layers2-4": frozenset({"layer2", "layer3", "layer4", "discriminators"}),
    "all": frozenset({"stem", "layer1", "layer2", "layer3", "layer4", "discriminators"}),
}


def set_checkpointing(module: nn.Module, policy: str) -> int:
    """Apply ``policy`` to every part of ``module`` that has a ``checkpointed`` attribute; return their number.

    Losses, gradients and running statistics stay the same to the bit; a step takes up to one forward longer.

    Raises:
        InputError: an unknown policy.
    """
    if policy not in CHECKPOINTING:
        raise unknown("checkpointing", policy, CHECKPOINTING)
    parts: list[Any] = [part for part in module.modules() if hasattr(part, "checkpointed")]
    for part in parts:
        part.checkpointed = CHECKPOINTING[policy]
    return len(parts)


def set_micro_batch_size(module: nn.Module, size: int | None) -> int:
    """Set ``micro_batch_size`` of every part of ``module`` that has it to ``size`` images; return their number.

    Each micro-batch keeps only its input and its low-resolution output and is recomputed in the backward pass, so that
    the activations of one micro-batch exist at a time. Losses see the whole batch. Outputs and gradients stay the
    same up to rounding if no layer uses batch statistics (``norm="frozen"``); else these are a micro-batch's, and
    running statistics move once for each. None: the whole batch at once.
    """
    parts: list[Any] = [part for part in module.modules() if hasattr(part, "micro_batch_size")]
    for part in parts:
        part.micro_batch_size = size
    return len(parts)


def run_micro_batches(module: nn.Module, size: int, *inputs: Tensor) -> list[Any]:
    """Return the outputs of ``module`` for each ``size`` images of ``inputs``, checkpointed if there are gradients."""
    run = partial(_checkpointed, module) if torch.is_grad_enabled() else module
    return [run(*parts) for parts in zip(*(x.split(size) for x in inputs), strict=True)]


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, *others: Tensor, checkpointed: bool) -> Tensor:
    """Run ``blocks`` one after another, each of them checkpointed if asked for and gradients are enabled.

    others: further arguments of every block.
    """
    for block in blocks:
        run = partial(_checkpointed, block) if checkpointed and torch.is_grad_enabled() else block
        x = run(x, *others)
    return x


def _checkpointed(block: nn.Module, *inputs: Tensor) -> Any:
    recompute = False

    def run(*inputs: Tensor) -> Any:
        nonlocal recompute
        if recompute:
            # The second forward works on copies of the buffers: running statistics move once a step.
            return functional_call(block, {name: b.clone() for name, b in block.named_buffers()}, inputs)
        recompute = True
        return block(*inputs)

    return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=has_dropout(block))


def has_dropout(module: nn.Module) -> bool:
    """Check whether a layer of ``module`` draws random numbers.

    Only then is torch told to keep the states of its generators for the recomputation, which takes time and is
    impossible while a CUDA graph is recorded.
    """
    return any(isinstance(part, _DropoutNd) and part.p > 0 for part in module.modules())
