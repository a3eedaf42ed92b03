"""The processes of a run (torchrun, torch.distributed): which one this is, and everything that they exchange.

In a program of one process every function here does what that process would do alone. A function documented as
collective must be called by all processes in the same order. CPU tensors are exchanged on the CPU even in a run on GPUs
(gloo beside NCCL), so that no decision of the host waits for a device.

Every process has the same networks and optimisers and its part of the global batch. After each step all processes hold
the same bits, so any of them may score, label or write, and a checkpoint of one is a checkpoint of all, whatever their
number is when the run goes on. Gradients are averaged once, right before the optimiser step, and not by
DistributedDataParallel: a step goes backward several times through networks that are used more than once, by turns or
not at all (discriminators, teachers), which DDP would have to be told network by network (``no_sync``, unused
parameters). The price is the overlap of the last backward with the exchange.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from udas_fast.errors import InputError, bad

T = TypeVar("T")
_FAILURE = "udas_fast/failure"  # key in the store: the failure that stopped the run
TIMEOUT = timedelta(hours=1)  # the other processes wait while the main one reads every file before a run
BUCKET = 2**23  # numbers exchanged at a time, 32 MiB in float32: the extra memory of a step


class ProcessLost(Exception):
    """Another process of the run stopped first; the message gives the reason as far as it is known.

    ``interrupted`` is true where that process was asked to stop and did not fail.
    """

    def __init__(self, reason: str, interrupted: bool = False) -> None:
        super().__init__(reason)
        self.interrupted = interrupted


def launched_processes() -> int:
    """Return the number of processes that torchrun launched: WORLD_SIZE, 1 where it is not set.

    Raises:
        InputError: WORLD_SIZE is not a number.
    """
    found = os.environ.get("WORLD_SIZE", "1")
    if not found.isdecimal():
        raise bad("WORLD_SIZE", repr(found), "the number of processes, as torchrun sets it")
    return int(found)


def get_rank() -> int:
    """Return the number of this process, 0 in a program of one process."""
    return dist.get_rank() if _joined() else 0


def get_world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _joined() else 1


def is_main() -> bool:
    """Return whether this process writes the run's files and prints messages."""
    return get_rank() == 0


def shard_indices(length: int) -> range:
    """Return this process's part of ``range(length)``; each index belongs to exactly one process."""
    return range(get_rank(), length, get_world_size())


def per_rank(total: int, thing: str) -> int:
    """Return each process's equal share of ``total``.

    Raises:
        InputError: ``total`` does not divide by the number of processes; ``thing`` names it in the message.
    """
    if total % get_world_size():
        raise bad(thing, f"{total} for {get_world_size()} processes", f"a multiple of {get_world_size()}")
    return total // get_world_size()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Replace ``tensor`` by its sum over the processes and return it (collective)."""
    if get_world_size() > 1:
        with _connected():
            dist.all_reduce(tensor)
    return tensor


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Replace the floating-point ``tensor`` by its mean over the processes and return it (collective)."""
    return all_reduce_sum(tensor).div_(get_world_size()) if get_world_size() > 1 else tensor


def all_reduce_any(flags: list[bool]) -> list[bool]:
    """Return for each flag whether any process has set it (collective)."""
    if get_world_size() == 1:
        return flags
    numbers = torch.tensor(flags, dtype=torch.uint8)
    with _connected():
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
    return numbers.bool().tolist()


def all_gather(tensor: Tensor) -> Tensor:
    """Return the rows of all processes' ``tensor``, equal in shape, ordered by rank (collective)."""
    if get_world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(get_world_size())]
    with _connected():
        dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def all_gather_object(value: T) -> list[T]:
    """Return all processes' ``value``, anything that can be pickled, ordered by rank (collective)."""
    values = [value] * get_world_size()
    if get_world_size() > 1:
        with _connected():
            dist.all_gather_object(values, value)
    return values


def broadcast(tensors: list[Tensor]) -> None:
    """Overwrite all processes' ``tensors`` with the main process's (collective)."""
    if get_world_size() > 1:
        with _connected(), torch.no_grad():
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def on_main(function: Callable[[], T]) -> T:
    """Call ``function`` in the main process while the others wait; return its result or raise its error in all."""
    if get_world_size() == 1:
        return function()
    outcome: list[Any] = [None, None]
    if is_main():
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[1] = error
    with _connected():
        dist.broadcast_object_list(outcome, 0)
    result, failure = outcome
    if failure is not None:
        raise failure
    return result


def loss_scale_for_valid_pixels(valid: Tensor) -> Tensor:
    """Return the factor that turns a mean over this process's ``valid`` pixels into its part of the global mean.

    ``valid``: bool of any shape, or the weight of each pixel where the mean is a weighted one. The mean over the
    processes of factor · mean is the mean over the valid pixels of the
    global batch, although processes have different numbers of them: world size · own / all; float32 scalar
    (collective).
    """
    pixels = valid.sum()
    least = torch.finfo(pixels.dtype).tiny if pixels.is_floating_point() else 1
    return get_world_size() * pixels / all_reduce_sum(pixels.clone()).clamp_min(least)


def stopped_first(error: BaseException) -> bool:
    """Return whether ``error`` of this process is what stopped the run: the first process to ask is told so."""
    mine = json.dumps({"rank": get_rank(), "kind": type(error).__name__, "error": str(error)})
    return _first_failure(mine) in (mine, None)


@contextmanager
def stopping_all() -> Iterator[None]:
    """Pass the reason of an exception that leaves this block on to the other processes; see :class:`ProcessLost`."""
    try:
        yield
    except BaseException as error:
        if stopped_first(error) and "TORCHELASTIC_ERROR_FILE" in os.environ:
            from torch.distributed.elastic.multiprocessing.errors import get_error_handler

            get_error_handler().record_exception(error)  # the root cause in torchrun's own words
        raise


def resolve_device(name: str) -> torch.device:
    """Return the device ``name``; ``auto`` is the current CUDA device where torch sees one, else the CPU.

    TF32 is switched off on CUDA.

    Raises:
        InputError: the device does not exist here, or ``name`` is not a device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise bad("device", repr(name), "auto, cpu, cuda or cuda:INDEX") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        reason = "a CPU-only torch" if torch.version.cuda is None else "no GPU that torch can use"
        raise bad(
            f"device {name!r}",
            reason,
            "a CUDA torch and a GPU (`udas-fast doctor` says more), or --device cpu",
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise bad(f"device {name!r}", f"{torch.cuda.device_count()} GPUs", "the index of one of them")
    if device.type == "cuda":
        # fp32 is fp32: torch's own default for convolutions is TF32, with a rounding error of a tenth of a percent.
        # Set by the older of torch's two names, after which both can be read.
        torch.backends.cudnn.allow_tf32 = False
    return device


def join(name: str) -> torch.device:
    """Join the process group where torchrun started this process, and return its device.

    Each process of a machine takes the GPU of its LOCAL_RANK. A group that a user's script has made is kept.

    Raises:
        InputError: no such device, one GPU for all, fewer GPUs than processes, a group without a CPU backend, or
            torchrun's variables are missing or lead nowhere.
    """
    device = resolve_device(name)
    if device.type == "cuda" and device.index is not None:
        # Pinned memory, and whatever else names no device, belong to the current one.
        torch.cuda.set_device(device)
    if launched_processes() > 1:
        if device.type == "cuda":
            device = _own_gpu(name, device)
        if not dist.is_initialized():
            # Default arguments in this module keep the group that exists when it is first imported (an optimiser's
            # step imports it), and a group that is kept outlives leave(): its threads then abort the interpreter's
            # end.
            importlib.import_module("torch.distributed.nn.functional")
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            try:
                dist.init_process_group(backend, timeout=TIMEOUT)
            except (ValueError, RuntimeError) as error:
                expected = "RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as torchrun sets them"
                raise bad("torch.distributed", str(error).splitlines()[0], expected) from error
    if get_world_size() > 1:
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
    """Return whether torchrun has restarted the processes, after a failure or with another number of them."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def same_everywhere(module: nn.Module) -> None:
    """Give all processes the main one's parameters and buffers of ``module`` (collective)."""
    broadcast([v for v in module.state_dict().values() if isinstance(v, Tensor)])


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Average every gradient over the processes; a gradient missing in some of them counts as zero there (collective).

    A parameter without a gradient in any process keeps none, so that the optimiser skips it as it does in a program of
    one process.
    """
    if get_world_size() == 1:
        return
    somewhere = all_reduce_any([p.grad is not None for p in parameters])
    gradients = []
    for parameter in (p for p, some in zip(parameters, somewhere, strict=True) if some):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        _average(bucket)


@torch.no_grad()
def average_buffers(module: nn.Module) -> None:
    """Average every floating-point buffer over the processes: the batch norms' statistics of the global batch.

    Computed in float64, where a buffer that is the same everywhere stays the same to the bit (collective).
    """
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    if get_world_size() > 1 and buffers:
        wide = [b.double() for b in buffers]
        _average(wide)
        torch._foreach_copy_(buffers, wide)


def _own_gpu(name: str, device: torch.device) -> torch.device:
    if device.index is not None:
        raise bad("device", f"{name!r} for {os.environ['WORLD_SIZE']} processes", "auto or cuda")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise InputError(
            f"torchrun: found more processes on this machine than its {torch.cuda.device_count()} GPUs, expected "
            "--nproc-per-node of at most that"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _average(tensors: list[Tensor]) -> None:
    flat = all_reduce_mean(torch.cat([t.reshape(-1) for t in tensors]))
    parts = flat.split([t.numel() for t in tensors])
    torch._foreach_copy_(tensors, [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)])


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield ``tensors`` in their order, in buckets of one dtype and about :data:`BUCKET` numbers."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(t.numel() for t in bucket) + tensor.numel() > BUCKET
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def _connected() -> Iterator[None]:
    """Turn the RuntimeError that gloo or NCCL raise where another process is gone into :class:`ProcessLost`."""
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
    """Return the failure stored first, ``mine`` where there was none; None where there is no store (any more)."""
    if get_world_size() == 1:
        return None
    try:
        store = dist.distributed_c10d._get_default_store()  # the group's own; torch has no public name for it
        return store.compare_set(_FAILURE, "", mine).decode() or None
    except RuntimeError:  # its process is gone
        return None
