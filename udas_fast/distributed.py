"""The processes of a run (torchrun, torch.distributed): which one this is, and what all of them find out together.

In a program that is alone everything here is what that program does by itself. A function that speaks of all
processes is collective: all of them call it, in the same order. Tensors on the CPU are exchanged on the CPU also in a
run on GPUs (gloo beside NCCL), so that no decision of the host waits for a device.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from udas_fast.errors import bad

T = TypeVar("T")
_FAILURE = "udas_fast/failure"  # in the store: what stopped the run


class ProcessLost(Exception):
    """Another process of the run stopped first; the message tells what is known of the reason.

    ``interrupted``: it was asked to stop, and did not fail.
    """

    def __init__(self, reason: str, interrupted: bool = False) -> None:
        super().__init__(reason)
        self.interrupted = interrupted


def rank() -> int:
    """The number of this process, 0 in a program that is alone."""
    return dist.get_rank() if _joined() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _joined() else 1


def is_main() -> bool:
    """Whether this process writes the run's files and talks to the user."""
    return rank() == 0


def own(length: int) -> range:
    """This process's part of ``length`` things: each goes to one process, whether or not they divide."""
    return range(rank(), length, world())


def share(total: int, thing: str) -> int:
    """How many of ``total`` each process takes.

    Raises:
        InputError: ``total`` does not divide; ``thing`` names it.
    """
    if total % world():
        raise bad(thing, f"{total} for {world()} processes", f"a multiple of {world()}")
    return total // world()


def all_sum(tensor: Tensor) -> Tensor:
    """The sum of all processes' ``tensor``, in its place."""
    if world() > 1:
        with _connected():
            dist.all_reduce(tensor)
    return tensor


def all_mean(tensor: Tensor) -> Tensor:
    """The mean of all processes' floating ``tensor``, in its place."""
    return all_sum(tensor).div_(world()) if world() > 1 else tensor


def any_of(flags: list[bool]) -> list[bool]:
    """For each flag whether any process has set it."""
    if world() == 1:
        return flags
    numbers = torch.tensor(flags, dtype=torch.uint8)
    with _connected():
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
    return numbers.bool().tolist()


def all_rows(tensor: Tensor) -> Tensor:
    """The rows of all processes' ``tensor``, which have the same shape, by rank."""
    if world() == 1:
        return tensor
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world())]
    with _connected():
        dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def all_values(value: T) -> list[T]:
    """All processes' ``value`` (anything that can be pickled), by rank."""
    values = [value] * world()
    if world() > 1:
        with _connected():
            dist.all_gather_object(values, value)
    return values


def broadcast(tensors: list[Tensor]) -> None:
    """Overwrite all processes' ``tensors`` with the main one's."""
    if world() > 1:
        with _connected(), torch.no_grad():
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def on_main(function: Callable[[], T]) -> T:
    """``function()``, called in the main process while the others wait; all get its result, or raise its error."""
    if world() == 1:
        return function()
    outcome: list[object] = [None, None]
    if is_main():
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[1] = error
    with _connected():
        dist.broadcast_object_list(outcome, 0)
    result, error = outcome
    if error is not None:
        raise error
    return result


def balance(counted: Tensor) -> Tensor:
    """The factor that turns a mean over the ``counted`` pixels into this process's part of the mean over all of them.

    ``counted``: bool, any shape. The mean over the processes of factor · mean is then the mean over the pixels of the
    global batch, although the processes count different numbers of them: world · own / all; float32 scalar.
    """
    pixels = counted.sum()
    return world() * pixels / all_sum(pixels.clone()).clamp_min(1)


def stopped_first(error: BaseException) -> bool:
    """Whether ``error`` of this process is what stops the run; the first process to ask is told so, with any error."""
    mine = json.dumps({"rank": rank(), "kind": type(error).__name__, "error": str(error)})
    return _first_failure(mine) in (mine, None)


@contextmanager
def stopping_all() -> Iterator[None]:
    """Tells the other processes the reason of an exception that leaves this block: see :class:`ProcessLost`."""
    try:
        yield
    except BaseException as error:
        if stopped_first(error) and "TORCHELASTIC_ERROR_FILE" in os.environ:
            from torch.distributed.elastic.multiprocessing.errors import get_error_handler

            get_error_handler().record_exception(error)  # the root cause in torchrun's own words
        raise


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def _connected() -> Iterator[None]:
    """What a collective raises where another process is gone: a RuntimeError, of gloo's or of NCCL's."""
    try:
        yield
    except RuntimeError as error:
        first = _first_failure("")
        if not first:
            reason = f"another process was killed or cannot be reached ({str(error).splitlines()[0]})"
            raise ProcessLost(reason) from error
        failure = json.loads(first)
        reason = f"process {failure['rank']} stopped with {failure['kind']}: {failure['error']}"
        raise ProcessLost(reason, failure["kind"] in ("Interrupted", "KeyboardInterrupt")) from error


def _first_failure(mine: str) -> str | None:
    """The failure that was stored first, ``mine`` where there was none; None where there is no store (any more)."""
    if world() == 1:
        return None
    try:
        store = dist.distributed_c10d._get_default_store()  # the group's own; torch has no public name for it
        return store.compare_set(_FAILURE, "", mine).decode() or None
    except RuntimeError:  # its process is gone
        return None
