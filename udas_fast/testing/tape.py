"""A stand-in for CUDA graphs on a CPU: operations are taped with their tensors, and run again on these.

A tape knows no more than a graph does: neither other tensors nor other numbers that the host would have taken. As with
a graph, nothing is done while it records: overwritten values are put back, and new tensors are NaN until the replay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Result = TypeVar("Result")

# Operations that give the host a value, or a shape that depends on values.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::equal",
}
# Arguments of torch's batch norm that it writes to without saying so in its schema.
RUNNING = {"aten::native_batch_norm": (3, 4)}


class TapeCapture:
    """:class:`udas_fast.engine.graph.Capture` by a :class:`Tape`."""

    def run(self, function: Callable[[], Result]) -> Result:
        """Return ``function()``."""
        return function()

    def record(self, function: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """Return the result of ``function()``, empty until the replay, and the function that replays."""
        tape, state = Tape(), torch.get_rng_state()
        with tape, patch.object(torch, "get_rng_state", _no_state):
            result = function()
        torch.set_rng_state(state)
        tape.undo()
        return result, tape.replay


def _no_state() -> Tensor:
    raise RuntimeError("Cannot call CUDAGeneratorImpl::current_seed during CUDA graph capture")


class Tape(TorchDispatchMode):
    """Dispatched operations while it is active, for :meth:`replay`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict[str, Any], list[Tensor]]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        """Tensors from before the recording and their values, by storage."""
        self.made: dict[int, Tensor] = {}
        """Tensors of the recording, one a storage."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name, kwargs or {}
        if name in WAITING:
            raise RuntimeError(f"{name} waits for the device")
        written = list(_written(func, args, kwargs))
        for tensor in written:
            place = _place(tensor)
            if place not in self.made and place not in self.before:
                whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                self.before[place] = whole, whole.clone()
        out = func(*args, **kwargs)
        given = {_place(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        new = [t for t in tree_leaves(out) if isinstance(t, Tensor) and _place(t) not in given]
        self.made.update((_place(t), t) for t in new)
        if new or written:
            self.calls.append((func, args, kwargs, new))
        return out

    def undo(self) -> None:
        """Put overwritten values back and fill new tensors with NaN."""
        for tensor, value in self.before.values():
            tensor.copy_(value)
        for tensor in self.made.values():
            if tensor.is_floating_point():
                tensor.detach().fill_(torch.nan)

    @torch.no_grad()
    def replay(self) -> None:
        """Run the operations again on the same tensors."""
        for func, args, kwargs, made in self.calls:
            out = func(*args, **kwargs)
            given = {_place(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            new = [t for t in tree_leaves(out) if isinstance(t, Tensor) and _place(t) not in given]
            for old, now in zip(made, new, strict=True):
                old.detach().copy_(now)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _written(func: Any, args: tuple, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the arguments that ``func`` writes to."""
    for i, argument in enumerate(func._schema.arguments):
        told = argument.alias_info is not None and argument.alias_info.is_write
        if told or i in RUNNING.get(func._schema.name, ()):
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            yield from (t for t in tree_leaves(value) if isinstance(t, Tensor))
