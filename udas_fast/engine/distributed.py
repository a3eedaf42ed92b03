"""How a step is shared: every process has the same networks and optimisers, and its part of the global batch.

After each step all processes hold the same bits. So any of them may score, label or write, and a checkpoint of one is
a checkpoint of all, whatever their number is when the run goes on.

Gradients are averaged once, right before the optimisers' step, and not by DistributedDataParallel: a step goes backward
several times, through networks that are used more than once, by turns or not at all (discriminators, teachers), which
DDP would have to be told of network by network (``no_sync``, unused parameters). What that gives up is the overlap of
the last backward with the exchange.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
from torch import Tensor, nn
from torch import distributed as dist

from udas_fast import distributed
from udas_fast.engine.precision import resolve_device
from udas_fast.errors import InputError, bad
from udas_fast.torchrun import processes

TIMEOUT = timedelta(hours=1)  # others wait while the main process reads every file before a run
BUCKET = 2**23  # numbers that are exchanged at a time, 32 MiB in float32: the extra memory of a step


def join(name: str) -> torch.device:
    """The device of this process, a member of the process group from here on where torchrun started it.

    Each process of a machine takes the GPU of its LOCAL_RANK. A group that a user's script has made is kept.

    Raises:
        InputError: no such device, one GPU for all, fewer GPUs than processes, a group without a CPU backend, or
            variables of torchrun that are missing or lead nowhere.
    """
    device = resolve_device(name)
    if device.type == "cuda" and device.index is not None:
        # Pinned memory, and whatever else names no device, belong to the current one.
        torch.cuda.set_device(device)
    if processes() > 1:
        if device.type == "cuda":
            device = _own_gpu(name, device)
        if not dist.is_initialized():
            # Its functions' default arguments keep the group that is there when it is first imported (an optimiser's
            # step does), and a group that is kept outlives leave(): its threads then abort the interpreter's end.
            importlib.import_module("torch.distributed.nn.functional")
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            try:
                dist.init_process_group(backend, timeout=TIMEOUT)
            except (ValueError, RuntimeError) as error:
                wanted = "RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as torchrun sets them"
                raise bad("torch.distributed", str(error).splitlines()[0], wanted) from error
    if distributed.world() > 1:
        try:
            dist.all_reduce(torch.zeros(1))
        except RuntimeError as error:
            raise bad(
                "torch.distributed", str(error).splitlines()[0], "backend cpu:gloo,cuda:nccl"
            ) from error
    return device


def leave() -> None:
    """Leave the process group at the end of a program in which no process failed."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def restarted() -> bool:
    """Whether torchrun has started the processes once more, after a failure or with others than before."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _own_gpu(name: str, device: torch.device) -> torch.device:
    if device.index is not None:
        raise bad("device", f"{name!r} for {os.environ['WORLD_SIZE']} processes", "auto or cuda")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise InputError(
            f"torchrun: found more processes on this machine than its {torch.cuda.device_count()} GPUs, wanted "
            "--nproc-per-node of at most that"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def same_everywhere(module: nn.Module) -> None:
    """Give all processes the main one's parameters and buffers."""
    distributed.broadcast([v for v in module.state_dict().values() if isinstance(v, Tensor)])


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Every gradient's mean over the processes; one that only some of them have counts as zero in the others.

    A parameter that has none in any process keeps none, so that the optimiser leaves it alone as it does in a
    program that is alone.
    """
    if distributed.world() == 1:
        return
    somewhere = distributed.any_of([p.grad is not None for p in parameters])
    gradients = []
    for parameter in (p for p, some in zip(parameters, somewhere, strict=True) if some):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        _average(bucket)


@torch.no_grad()
def average_buffers(module: nn.Module) -> None:
    """Every floating-point buffer's mean over the processes: what batch norms saw of the global batch.

    In float64, where a buffer that is the same everywhere comes back to the bit.
    """
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    if distributed.world() > 1 and buffers:
        wide = [b.double() for b in buffers]
        _average(wide)
        torch._foreach_copy_(buffers, wide)


def _average(tensors: list[Tensor]) -> None:
    flat = distributed.all_mean(torch.cat([t.reshape(-1) for t in tensors]))
    parts = flat.split([t.numel() for t in tensors])
    torch._foreach_copy_(tensors, [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)])


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """``tensors`` in their order, each bucket of one dtype and about :data:`BUCKET` numbers."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(t.numel() for t in bucket) + tensor.numel() > BUCKET
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
