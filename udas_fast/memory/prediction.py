"""Predict the peak memory of a recipe's stages without a GPU: real steps on tensors without values."""

from __future__ import annotations

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
from udas_fast.engine.memory import needed_on_gpu
from udas_fast.engine.precision import build_amp
from udas_fast.engine.step import TrainStep, start_objective
from udas_fast.errors import bad
from udas_fast.memory.tracker import MemoryTracker
from udas_fast.models import CycleGenerators, build_model
from udas_fast.objectives import Batches
from udas_fast.objectives.cyclegan import CycleGANConfig
from udas_fast.recipes import Recipe, Stage

KINDS = ("weights", "gradients", "optimiser", "activations", "inputs", "temporary")


@dataclass(frozen=True)
class Peak:
    """Memory in use at the peak of a stage's step.

    ``kinds``: bytes of tensors by purpose; "activations" are made by a network's forward, "temporary" is the rest, such
    as losses and the workspace of a backward pass.
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
    """Return the peak of each stage of ``recipe`` on a GPU, at its input and batch sizes, precision and checkpointing.

    One training step of each stage runs with all its terms, on tensors that have a size and no values. Precision
    "auto" counts as 16 bits, checkpointing "auto" as "none".

    Args:
        recipe: the recipe, with its own network.
        num_classes: classes of the data.
        labelled: whether there are labelled target images for the stages that may use them.

    Raises:
        InputError: a stage's step reads values of tensors on the GPU.
    """
    with _without_values() as tracker:
        networks = _networks(recipe, num_classes)
        return [
            _stage_peak(recipe, stage, networks, num_classes, labelled, tracker) for stage in recipe.stages
        ]


def _networks(recipe: Recipe, num_classes: int) -> dict[str, nn.Module]:
    """Return every network that a stage trains, as the trainer has them."""
    objective = recipe.stages[0].objective
    if isinstance(objective, CycleGANConfig):
        return {recipe.stages[0].network: CycleGenerators(objective.width, objective.blocks)}
    names = {stage.network for stage in recipe.stages}
    return {name: build_model(recipe.model_of(name), num_classes) for name in names}


def _stage_peak(
    recipe: Recipe,
    stage: Stage,
    networks: dict[str, nn.Module],
    num_classes: int,
    labelled: bool,
    tracker: MemoryTracker,
) -> Peak:
    model = networks[stage.network]
    recipe.memory.apply(model)
    # Not on a device: tensors without values cannot be moved while they are tracked.
    objective = start_objective(
        stage.objective, model, networks, num_classes=num_classes, memory=recipe.memory
    )
    amp = build_amp("fp32" if recipe.precision == "fp32" else "bf16", torch.device("cpu"))
    step = TrainStep(stage.name, stage.steps, model, objective, stage.optimizer, amp, seed=0, ema=recipe.ema)
    average = [] if step.average is None else [step.average]
    for network in (*networks.values(), objective, *average):
        tracker.hold("weights", [*network.parameters(), *network.buffers()])
    step.done = stage.steps - 1  # the last step has every term
    hooks = [
        p.register_post_accumulate_grad_hook(lambda p: tracker.hold("gradients", [p.grad]))
        for p in step.parameters()
    ]
    _make_states(step)
    tracker.hold(
        "optimiser", [t for o in step.optimizers.values() for s in o.state.values() for t in s.values()]
    )
    model.train()
    tracker.reset_peak()
    try:
        step(_batches(recipe, stage, labelled, tracker))
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        asked = str(error.func)
        raise bad(
            f"stage {stage.name}", f"a step that waits for the GPU ({asked})", "one that does not"
        ) from error
    step.finish()
    for hook in hooks:
        hook.remove()
    return Peak(stage.name, {kind: tracker.peak_by_kind.get(kind, 0) for kind in KINDS})


def _make_states(step: TrainStep) -> None:
    """Let the optimisers allocate, which they do in their first step; a later step is measured."""
    for optimizer in step.optimizers.values():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _batches(recipe: Recipe, stage: Stage, labelled: bool, tracker: MemoryTracker) -> Batches:
    """Return one batch of each stream in its size."""
    found = {}
    for name, geometry in recipe.geometries(stage).items():
        if name == "labelled" and name not in stage.objective.requirements.streams and not labelled:
            continue
        size, count = geometry.crop or geometry.size, recipe.input.batch_size_of(name)
        with tracker.making("inputs"):
            label = torch.zeros((count, *size), dtype=torch.uint8)  # unlabelled images: pseudo-labels
            image = torch.zeros((count, 3, *size), dtype=torch.uint8)
        found[name] = Batch(image, label, [""] * count)
    return Batches(**found)


@contextmanager
def _without_values() -> Iterator[MemoryTracker]:
    """Give tensors that are made inside no values, and count them with the tracker that is returned."""
    tracker = MemoryTracker()
    with ExitStack() as stack:
        stack.enter_context(patch.object(FakeTensor, "__deepcopy__", _copy_fake, create=True))
        # It draws until the values fit.
        stack.enter_context(
            patch.object(nn.init, "_no_grad_trunc_normal_", lambda tensor, *_args, **_options: tensor)
        )
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(tracker)
        stack.enter_context(_Host())
        stack.enter_context(_forwards_make_activations(tracker))
        yield tracker


class _Host(TorchDispatchMode):
    """Keeps the values of host tensors of a GPU run: numbers drawn from a step's generator, and results from them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        drawn = kwargs.get("generator") is not None
        # lift_fresh is torch.tensor(…): a constant of the program, which any device may hold.
        computed = bool(tensors) and func is not torch.ops.aten.lift_fresh.default
        moved = torch.device(kwargs.get("device") or "cpu").type != "cpu"  # to a device, which has no values
        if (
            (drawn or computed)
            and not moved
            and not any(isinstance(tensor, FakeTensor) for tensor in tensors)
        ):
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
    """Copy a fake tensor; Tensor's own deepcopy reads the data."""
    new = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        new = nn.Parameter(new, requires_grad=tensor.requires_grad)
    memo[id(tensor)] = new
    return new
