"""Predicts the peak memory of a recipe's stages without a GPU: real steps on tensors without values."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from udas_fast.data import Batch
from udas_fast.engine.loop import Loop, Phase
from udas_fast.engine.memory import needed_on_gpu
from udas_fast.engine.precision import build_amp
from udas_fast.errors import bad
from udas_fast.memory.tracker import MemoryTracker
from udas_fast.models import CycleGenerators, build_model
from udas_fast.objectives.cyclegan import CycleGANConfig
from udas_fast.recipes import Recipe, Stage

KINDS = ("weights", "gradients", "optimiser", "activations", "inputs", "temporary")


@dataclass(frozen=True)
class Peak:
    """The moment of a stage's step at which most memory is in use.

    ``kinds`` are the bytes of tensors by what they are for: "activations" is what any network's forward made,
    "temporary" all that fits nowhere else, such as losses and what a backward pass works with.
    """

    stage: str
    kinds: dict[str, int]

    @property
    def tensors(self) -> int:
        """Bytes of all tensors."""
        return sum(self.kinds.values())

    @property
    def needed(self) -> int:
        """Bytes that a GPU needs, with the allowance of :mod:`udas_fast.engine.memory`."""
        return needed_on_gpu(self.tensors)


def predict(recipe: Recipe, *, num_classes: int = 19, labelled: bool = True) -> list[Peak]:
    """The peak of each stage of ``recipe`` on a GPU, in its input sizes, batch size, precision and checkpointing.

    One step of each stage's objective runs, with all its terms, by the training loop itself, on tensors that have a
    size and no values. Precision "auto" counts as 16 bits, checkpointing "auto" as "none".

    Args:
        recipe: what would be trained, on its own network.
        num_classes: classes of the data.
        labelled: whether labelled target images are there for the stages that may use them.

    Raises:
        InputError: the objective of a stage asks for the values of tensors on the GPU.
    """
    with _without_values() as tracker:
        networks = _networks(recipe, num_classes)
        return [
            _stage_peak(recipe, stage, networks, num_classes, labelled, tracker) for stage in recipe.stages
        ]


def _networks(recipe: Recipe, num_classes: int) -> dict[str, nn.Module]:
    """Every network that a stage trains, as the trainer has them."""
    objective = recipe.stages[0].objective
    if isinstance(objective, CycleGANConfig):
        model: nn.Module = CycleGenerators(objective.width, objective.blocks)
    else:
        model = build_model(recipe.model, num_classes)
    return {name: copy.deepcopy(model) for name in {stage.network for stage in recipe.stages}}


def _stage_peak(
    recipe: Recipe,
    stage: Stage,
    networks: dict[str, nn.Module],
    num_classes: int,
    labelled: bool,
    tracker: MemoryTracker,
) -> Peak:
    model = networks[stage.network]
    objective = stage.objective.build(num_classes)
    for module in (model, objective):
        recipe.memory.apply(module)
    objective.networks = networks
    objective.start(model)
    device = torch.device("cpu")
    amp = build_amp("fp32" if recipe.precision == "fp32" else "bf16", device)
    phase = Phase(stage.name, stage.steps, stage.optimizer)
    streams = _streams(recipe, stage, labelled, tracker)
    loop = Loop(phase, model, objective, streams, amp, seed=0, ema=recipe.ema)
    for network in filter(None, (*networks.values(), objective, loop.average and loop.average.model)):
        tracker.hold("weights", [*network.parameters(), *network.buffers()])
    loop.done = stage.steps - 1  # the last step has every term
    parameters = [p for o in loop.optimizers.values() for group in o.param_groups for p in group["params"]]
    hooks = [
        p.register_post_accumulate_grad_hook(lambda p: tracker.hold("gradients", [p.grad]))
        for p in parameters
    ]
    _make_states(loop)
    tracker.hold(
        "optimiser", [t for o in loop.optimizers.values() for s in o.state.values() for t in s.values()]
    )
    tracker.reset_peak()
    try:
        loop.run(lambda losses: None)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        asked = str(error.func)
        raise bad(
            f"stage {stage.name}", f"a step that waits for the GPU ({asked})", "one that does not"
        ) from error
    for optimizer in loop.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    for hook in hooks:
        hook.remove()
    return Peak(stage.name, {kind: tracker.peak_by_kind.get(kind, 0) for kind in KINDS})


def _make_states(loop: Loop) -> None:
    """Optimisers allocate in their first step; the step to be measured is a later one."""
    for optimizer in loop.optimizers.values():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@dataclass(frozen=True)
class _Stream:
    """Endless batches of one shape, in place of a :class:`udas_fast.data.TrainLoader`."""

    size: tuple[int, int]
    global_batch: int
    tracker: MemoryTracker

    def batches(self, start_step: int, device: torch.device) -> Iterator[Batch]:
        while True:
            with self.tracker.making("inputs"):
                shape = (self.global_batch, *self.size)
                label = torch.zeros(shape, dtype=torch.uint8)  # unlabelled images: a round's pseudo-labels
                image = torch.zeros((shape[0], 3, *self.size), dtype=torch.uint8)
            yield Batch(image, label, [""] * self.global_batch)


def _streams(recipe: Recipe, stage: Stage, labelled: bool, tracker: MemoryTracker) -> dict[str, Any]:
    objective, inputs = stage.objective, recipe.input
    names = (*objective.needs, *(n for n in objective.uses if labelled or n != "labelled"))
    # As Domains.streams has it: labelled target images take the source's size where they are mixed with it.
    source_like = {"source", "labelled"} if "source" in objective.needs else {"source"}
    geometries = {name: inputs.source if name in source_like else inputs.target for name in names}
    return {
        name: _Stream(geometry.crop or geometry.size, inputs.batch_size_of(name), tracker)
        for name, geometry in geometries.items()
    }


@contextmanager
def _without_values() -> Iterator[MemoryTracker]:
    """Tensors that are made inside have no values; the tracker counts them."""
    tracker = MemoryTracker()
    with ExitStack() as stack:
        stack.enter_context(patch.object(FakeTensor, "__deepcopy__", _copy_fake, create=True))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(tracker)
        stack.enter_context(_Host())
        stack.enter_context(_forwards_make_activations(tracker))
        yield tracker


class _Host(TorchDispatchMode):
    """What a GPU run has on the host keeps its values: numbers drawn from a step's generator, and what they give."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        drawn = kwargs.get("generator") is not None
        # lift_fresh is torch.tensor(…): a constant of the program, which any device may hold.
        computed = bool(tensors) and func is not torch.ops.aten.lift_fresh.default
        if (drawn or computed) and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            with _disable_current_modes():
                return func(*args, **kwargs)
        if func._schema.name.startswith("aten::_fused_"):
            return None  # in place, in one kernel; not every one of them is known to fake tensors
        return func(*args, **kwargs)


@contextmanager
def _forwards_make_activations(tracker: MemoryTracker) -> Iterator[None]:
    inside: list[Any] = []

    def before(*_: Any) -> None:
        inside.append(tracker.making("activations"))
        inside[-1].__enter__()

    def after(*_: Any) -> None:
        inside.pop().__exit__(None, None, None)

    hooks = register_module_forward_pre_hook(before), register_module_forward_hook(after, always_call=True)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _copy_fake(tensor: FakeTensor, memo: dict[int, Any]) -> Tensor:
    """Tensor's own deepcopy reads the data."""
    new = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        new = nn.Parameter(new, requires_grad=tensor.requires_grad)
    memo[id(tensor)] = new
    return new
