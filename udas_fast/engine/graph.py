"""A training step as a CUDA graph: recorded once and replayed, without the host's time for each kernel.

A graph holds :meth:`udas_fast.objectives.Objective.training_step`: forwards, losses and backwards. Loading, mixing and
augmentation come before it, as random numbers decide which kernels they run; optimisers and averages come after it.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from udas_fast import distributed
from udas_fast.data import Batch
from udas_fast.errors import bad, first_line
from udas_fast.objectives import Batches, Losses
from udas_fast.objectives.base import parts

Result = TypeVar("Result")

WARM_UP = 3  # steps that run as they are before one is recorded: libraries load, and cuDNN chooses


class Capture(Protocol):
    """A recorder of operations: :class:`CudaCapture`, or a test's stand-in for it."""

    def run(self, function: Callable[[], Result]) -> Result:
        """Return ``function()``, run as it will be recorded later."""
        ...

    def record(self, function: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """Return (result of ``function()``, function that does its work); until that is called nothing is done."""
        ...


class CudaCapture:
    """CUDA's own, on a stream of its own that the steps before it run on as well: autograd's nodes belong to one."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def run(self, function: Callable[[], Result]) -> Result:
        """Return ``function()``, run on the stream of the recording."""
        outside = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            result = function()
        outside.wait_stream(self._stream)
        return result

    def record(self, function: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """Record ``function`` as a CUDA graph; return its empty result and the graph's replay."""
        gc.collect()  # a graph that dies while another is recorded ends that
        graph, failure = torch.cuda.CUDAGraph(), None
        outside = torch.cuda.stream(torch.cuda.current_stream(self._stream.device))  # also after a failure
        # Threads that read ahead may allocate and wait meanwhile.
        recording = torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local")
        try:
            with outside, recording:
                try:
                    result = function()
                except Exception as error:
                    failure = error  # the recording may end with another
                    raise
        except Exception as error:
            failure = failure or error
            if not isinstance(failure, RuntimeError) or isinstance(failure, torch.OutOfMemoryError):
                raise failure from None
            found = f"a step that cannot be recorded ({first_line(failure):.200})"
            raise bad("cuda_graphs", found, "cuda_graphs: false") from failure
        return result, graph.replay


class StepGraph:
    """Steps of which one is recorded after :data:`WARM_UP` of one outline, and replayed from then on.

    A batch of another outline (other shapes or plain values) warms up and is recorded anew in its place.

    Args:
        parameters: whose gradients a step adds to, None before it; after a replay they are the recorded tensors.
        capture: what records.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], capture: Capture) -> None:
        self._parameters, self._capture = list(parameters), capture
        self._outline: object = None
        self._warmed = 0
        self._recorded: _Recorded | None = None
        self.replays = 0
        """Steps that were replayed."""

    def step(self, training_step: Callable[[Any], Losses], batch: Any) -> Losses:
        """Return the losses of ``training_step(batch)``, always the same function; their tensors are the caller's."""
        outline, tensors = flatten(batch)
        if outline != self._outline:
            self._outline, self._warmed, self._recorded = outline, 0, None
        if self._warmed < WARM_UP:
            self._warmed += 1
            return self._capture.run(lambda: training_step(batch))
        if self._recorded is None:
            self._recorded = _Recorded(training_step, batch, self._parameters, self._capture)
        self.replays += 1
        return self._recorded.replay(tensors)

    def forget(self) -> None:
        """Give back the memory of what is recorded; the next steps warm up."""
        self._outline = self._recorded = None


class _Recorded:
    """One graph with the tensors that it reads and writes, wherever the step's own may lie."""

    def __init__(
        self,
        training_step: Callable[[Any], Losses],
        batch: Any,
        parameters: Sequence[nn.Parameter],
        capture: Capture,
    ) -> None:
        own = copy.deepcopy(batch)
        _, self._inputs = flatten(own)
        self._losses, self._run = capture.record(lambda: training_step(own))
        self._gradients = [(p, p.grad) for p in parameters if p.grad is not None]

    def replay(self, tensors: Sequence[Tensor]) -> Losses:
        for own, new in zip(self._inputs, tensors, strict=True):
            own.copy_(new)
        self._run()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return {name: loss.clone() for name, loss in self._losses.items()}


def flatten(batch: object) -> tuple[object, list[Tensor]]:
    """Return (outline, tensors) of a prepared batch: one graph serves one outline; images' ids are in neither."""
    tensors: list[Tensor] = []

    def outline(value: object) -> object:
        if isinstance(value, Tensor):
            tensors.append(value)
            # One tensor in two places is one tensor of the recording.
            return value.shape, value.dtype, next(i for i, tensor in enumerate(tensors) if tensor is value)
        if isinstance(value, Batch):
            return [outline(part) for part in (value.image, value.label, value.views)]
        if isinstance(value, Batches):
            return {name: outline(batch) for name, batch in value}
        if (fields := parts(value)) is not None:
            return {name: outline(part) for name, part in fields.items()}
        if isinstance(value, Mapping):
            return {key: outline(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [outline(part) for part in value]
        return value

    return outline(batch), tensors


def check_graphs(device: torch.device) -> None:
    """Raise InputError where no step can be recorded: on a CPU, or among several processes."""
    if device.type != "cuda":
        raise bad("cuda_graphs", f"device {device.type}", "a CUDA device, or cuda_graphs: false")
    if (world := distributed.get_world_size()) > 1:
        raise bad("cuda_graphs", f"{world} processes", "one process, or cuda_graphs: false")
