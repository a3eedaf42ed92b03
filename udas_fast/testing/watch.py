"""Checks of what the code of a step may not do: wait for the device, or draw random numbers of its own."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeAlias
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
)
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from udas_fast.errors import first_line
from udas_fast.memory import predict
from udas_fast.objectives import Objective
from udas_fast.recipes import Recipe
from udas_fast.testing.phases import CLASSES, random_phase

#: How users write operations that wait.
SPELLINGS = {
    "_local_scalar_dense": ".item(), float(), bool() or `if`",
    "nonzero": "nonzero(), or a mask as an index",
    "_unique2": "unique()",
    "masked_select": "masked_select()",
    "equal": "torch.equal()",
}
READS = {Tensor.cpu: ".cpu()", Tensor.numpy: ".numpy()", Tensor.tolist: ".tolist()"}
CONSTANTS = {
    torch.tensor: "torch.tensor",
    torch.as_tensor: "torch.as_tensor",
    Tensor.new_tensor: ".new_tensor",
}
NAMES = ("bernoulli", "multinomial", "normal", "poisson", "rand", "randint", "randn", "randperm")
DRAWS = {getattr(torch, name): f"torch.{name}" for name in NAMES}
DRAWS |= {getattr(torch, f"{name}_like"): f"torch.{name}_like" for name in ("rand", "randint", "randn")}
IN_PLACE = ("bernoulli", "cauchy", "exponential", "geometric", "log_normal", "normal", "random", "uniform")
DRAWS |= {getattr(Tensor, f"{name}_"): f".{name}_()" for name in IN_PLACE}
STEP = ("prepare_batch", "training_step", "after_step")

#: A file and a line of it.
Place: TypeAlias = tuple[str, int]


def assert_no_host_sync(recipe: Recipe, *, num_classes: int = CLASSES) -> None:
    """Assert that no step of ``recipe`` waits for the device; the message names the operation and the line.

    Each stage takes its last step, which has all terms, on tensors without values (:func:`udas_fast.memory.predict`),
    with and without labelled target images where they are optional. Waits are: a value that the host reads, a shape
    that depends on values, a copy to the CPU, and numbers that ``torch.tensor(…, device=…)`` brings to the device.

    Args:
        recipe: a recipe such as :func:`tiny` makes.
        num_classes: classes of the data.
    """
    optional = any("labelled" in stage.objective.requirements.optional_streams for stage in recipe.stages)
    for labelled in (True, False) if optional else (True,):
        watch = _Waits()
        with watch.built(recipe):
            try:
                predict(recipe, num_classes=num_classes, labelled=labelled)
            except Exception as error:
                raise AssertionError(watch.explain(error)) from error
        watch.report("expected none in a step")


def assert_seeded(recipe: Recipe) -> None:
    """Assert that the steps of ``recipe`` draw random numbers from ``ctx.generator`` alone; the message names the line.

    Dropout and other random layers inside of a network's forward may draw from torch's own generator.
    """
    for index, stage in enumerate(recipe.stages):
        watch = _Draws()
        with watch.built(recipe):
            phase = random_phase(recipe, index)
            before = _host_generators()
            phase.take_step()
        watch.report("expected ctx.generator, in prepare_batch")
        changed = [name for name, state in _host_generators().items() if state != before[name]]
        assert not changed, (
            f"stage {stage.name}: found numbers drawn from {' and '.join(changed)}, expected ctx.generator"
        )


def _host_generators() -> dict[str, str]:
    """Return the states of the generators that are not torch's."""
    return {"random": repr(random.getstate()), "numpy.random": repr(np.random.get_state(legacy=False))}  # noqa: NPY002


class _Watch(TorchFunctionMode):
    """Notes calls inside the step of an objective, with their lines."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.objective: Objective | None = None
        self.part: str | None = None
        """Method of the objective that runs."""

    def finding(self, function: Any, args: tuple, kwargs: dict[str, Any]) -> str | None:
        """Return a name for a call that is not allowed, None for any other."""
        raise NotImplementedError

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.part is not None and (what := self.finding(func, args, kwargs)) is not None:
            self.found.append(f"{self.where(_frames(sys._getframe()))}found {what}")
        return func(*args, **kwargs)

    @contextmanager
    def built(self, recipe: Recipe) -> Iterator[None]:
        """Watch the steps of all objectives that are built inside."""
        with ExitStack() as stack:
            for cls in {type(stage.objective) for stage in recipe.stages}:
                stack.enter_context(patch.object(cls, "build", self._watched(cls.build)))
            yield

    def _watched(self, build: Callable[..., Objective]) -> Callable[..., Objective]:
        def built(config: Any, num_classes: int) -> Objective:
            self.objective = objective = build(config, num_classes)
            if isinstance(objective, nn.Module):
                for name in STEP:
                    setattr(objective, name, self._inside(name, getattr(objective, name)))
            return objective

        return built

    def _inside(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any) -> Any:
            self.part = name
            try:
                with self:
                    return method(*args)
            finally:
                self.part = None

        return watched

    def where(self, frames: Iterable[Place]) -> str:
        """Return ``FILE:LINE: `` of the innermost of ``frames`` in the objective's own file, else the class's name."""
        files = [file for cls in type(self.objective).__mro__ if (file := _file(cls))]
        for file, line in frames:
            if file in files:
                return f"{Path(file).name}:{line}: "
        return f"{type(self.objective).__name__}: "

    def report(self, expected: str) -> None:
        """Assert that nothing was found."""
        found = "; ".join(dict.fromkeys(self.found))
        assert not found, f"{found}, {expected}"


class _Waits(_Watch):
    """Notes reads and constants that tensors without values let pass."""

    def finding(self, function: Any, args: tuple, kwargs: dict[str, Any]) -> str | None:
        if function in CONSTANTS and (kwargs.get("device") is not None or function is Tensor.new_tensor):
            return f"a copy from the host ({CONSTANTS[function]} on the device)"
        if not args or not isinstance(args[0], FakeTensor):
            return None
        if function in READS:
            return f"a wait for the device ({READS[function]})"
        if function is Tensor.to and any(
            isinstance(a, str) and a == "cpu" for a in (*args[1:], *kwargs.values())
        ):
            return 'a wait for the device (.to("cpu"))'
        return None

    def explain(self, error: Exception) -> str:
        """Return a sentence for what ended the step."""
        cause = error.__cause__ if error.__cause__ is not None else error
        place = self.where(reversed([*_lines(cause.__traceback__)]))
        if isinstance(cause, (DataDependentOutputException, DynamicOutputShapeException)):
            name = str(cause.func).removeprefix("aten.").split(".")[0]
            what = f"a wait for the device ({SPELLINGS.get(name, name)}; aten::{name})"
            return f"{place}found {what}, expected none in a step"
        if self.found:
            return "; ".join(self.found)
        return f"{place}found a step that does not run on tensors without values ({first_line(error)})"


class _Draws(_Watch):
    """Notes random numbers that are drawn outside of a network's forward."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = 0

    @contextmanager
    def built(self, recipe: Recipe) -> Iterator[None]:
        hooks = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]
        try:
            with super().built(recipe):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def finding(self, function: Any, args: tuple, kwargs: dict[str, Any]) -> str | None:
        if self.forwards or function not in DRAWS:
            return None
        if self.part != "prepare_batch":
            return f"random numbers in {self.part} ({DRAWS[function]})"
        return None if kwargs.get("generator") is not None else f"torch's own generator ({DRAWS[function]})"

    def _enter(self, *_: Any) -> None:
        self.forwards += 1

    def _leave(self, *_: Any) -> None:
        self.forwards -= 1


def _file(cls: type) -> str | None:
    """Return the file of a class that is not torch's or Python's, nor the base of all objectives."""
    if cls.__module__.partition(".")[0] in ("torch", "builtins") or cls is Objective:
        return None
    try:
        return inspect.getfile(cls)
    except (TypeError, OSError):
        return None


def _frames(frame: FrameType | None) -> Iterator[Place]:
    """Yield the places of ``frame`` and its callers, innermost first."""
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


def _lines(trace: TracebackType | None) -> Iterator[Place]:
    """Yield the places of a traceback, outermost first."""
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next
