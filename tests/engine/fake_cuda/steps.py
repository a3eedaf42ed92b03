"""Runs the last step of every stage of recipes on fake CUDA tensors; prints a line for each, "ok" or what a GPU
would have refused.

    python steps.py GUARD.so RECIPE,RECIPE [KEY=VALUE ...]
    python steps.py GUARD.so no_adaptation loss=EXPRESSION     # of loss and batch, in place of the loss
    python steps.py GUARD.so RECIPE file=FILE.py               # of a method file

Fake tensors have a device and no values: an operation on tensors of two devices raises, and so does one that reads a
value back. GUARD.so is guard.cpp compiled, which a torch without CUDA needs for them.
"""

from __future__ import annotations

import copy
import ctypes
import sys
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

if __name__ == "__main__":
    ctypes.CDLL(sys.argv[1])  # before torch looks for a device

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from udas_fast.data import Batch
from udas_fast.engine.precision import build_amp, memory_format
from udas_fast.engine.step import TrainStep, start_objective
from udas_fast.memory.prediction import _copy_fake, _Host
from udas_fast.models import CycleGenerators, build_model
from udas_fast.objectives import Batches, Losses, StepContext
from udas_fast.objectives.base import StreamName
from udas_fast.objectives.cyclegan import CycleGAN
from udas_fast.objectives.losses import segmentation_loss
from udas_fast.objectives.supervised import Supervised
from udas_fast.ops import _library
from udas_fast.recipes import Recipe, Stage, get_recipe, load_method_file, override, small
from udas_fast.recipes.cyclegan import small_cyclegan

CLASSES, BATCH, DEVICE = 5, 2, torch.device("cuda", 0)


def fake_batch(size: tuple[int, int], labelled: bool) -> Batch:
    """A batch on the device, as the prefetching thread leaves it."""
    image = torch.zeros((BATCH, 3, *size), dtype=torch.uint8, device=DEVICE)
    label = torch.zeros((BATCH, *size), dtype=torch.uint8, device=DEVICE)
    return Batch(image, label if labelled else None, [""] * BATCH)


class Gpu(TorchDispatchMode):
    """What a GPU would refuse, or wait for, beside what fake tensors themselves refuse."""

    learning = False
    """Whether the operations are those that a CUDA graph may hold."""

    def watch(self, objective: nn.Module) -> Any:
        """``training_step`` of ``objective``, whose operations are watched."""
        plain = objective.training_step

        def training_step(model: nn.Module, batch: Any, ctx: StepContext) -> Losses:
            self.learning = True
            try:
                return plain(model, batch, ctx)
            finally:
                self.learning = False

        return training_step

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name, kwargs or {}
        if (
            name == "aten::_to_copy"
            and args[0].device.type != torch.device(kwargs.get("device") or args[0].device).type
        ):
            onto = torch.device(kwargs["device"]).type
            if onto == "cuda" and self.learning:
                # A graph would read the same place in the host's memory again.
                raise RuntimeError(
                    f"a copy from the host that a CUDA graph cannot hold, {list(args[0].shape)}"
                )
            if not (onto == "cuda" and kwargs.get("non_blocking")):
                raise RuntimeError(f"a copy to {onto} that waits, {list(args[0].shape)}")
        if name == "aten::copy_" and args[0].device.type != args[1].device.type:
            raise RuntimeError(f"a copy from {args[1].device} into {args[0].device} that waits")
        if name.startswith("aten::_amp_"):
            return None  # in place; fake tensors have none of it
        if name.startswith("aten::_fused_"):
            lists = [value for value in args[:4] if isinstance(value, (list, tuple)) and value]
            for same in zip(*lists, strict=True):
                found = [(str(t.device), t.dtype, t.shape, _dense(t)) for t in same]
                if len(set(found)) != 1:
                    raise RuntimeError(f"{name}: other devices, dtypes or layouts: {found}")
            return None
        return func(*args, **kwargs)


def _dense(t: Tensor) -> tuple[int, ...]:
    """Its strides, without those along which there is one element."""
    return tuple(stride for side, stride in zip(t.shape, t.stride(), strict=True) if side > 1)


def to_cuda(module: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
    """``nn.Module._apply``, whose own way of replacing a parameter fake tensors do not take."""
    for child in module.children():
        to_cuda(child, function)
    for name, value in module._parameters.items():
        if value is not None:
            module._parameters[name] = nn.Parameter(function(value.detach()), value.requires_grad)
    for name, value in module._buffers.items():
        if value is not None:
            module._buffers[name] = function(value)
    return module


def run(recipe: Recipe, stage: Stage, networks: dict[str, nn.Module], labelled: bool) -> None:
    amp = build_amp(recipe.precision, DEVICE)
    model = networks[stage.network]
    recipe.memory.apply(model)
    if stage.objective.kind == "cyclegan":
        segmenter = build_model(get_recipe("udas").model, CLASSES)
        objective = CycleGAN(stage.objective, segmenter).to(DEVICE)
    else:
        objective = start_objective(
            stage.objective, model, networks, num_classes=CLASSES, memory=recipe.memory, device=DEVICE
        )
    optional = stage.objective.requirements.optional_streams
    pseudo_labels = getattr(stage.objective, "pseudo_labels", None)
    from_disk = pseudo_labels is not None and pseudo_labels.labels == "disk"
    batches: dict[StreamName, Batch] = {}
    for name, geometry in recipe.geometries(stage).items():
        if name not in optional or labelled:
            batches[name] = fake_batch(geometry.crop or geometry.size, name != "unlabelled" or from_disk)
    step = TrainStep(stage.name, stage.steps, model, objective, stage.optimizer, amp, seed=0, ema=recipe.ema)
    step.done = stage.steps - 1  # the last step has every term
    model.train()
    with _Host(), Gpu() as gpu:
        objective.training_step = gpu.watch(objective)
        losses = step(Batches(**batches))
        wrong = {
            k: str(v.device) for k, v in losses.items() if v.device != DEVICE or v.requires_grad or v.dim()
        }
        assert not wrong, f"losses that are no scalars on the device: {wrong}"
        torch.stack([v.float() for v in losses.values()])  # as the recorder does
        step.finish()
    if not amp.scaler.is_enabled():  # whose state is read back, as it may be between two steps
        step.load_state_dict(step.state_dict())


def run_recipe(name: str, settings: list[str]) -> None:
    recipe = get_recipe(name)
    if name == "cyclegan":
        recipe = small_cyclegan(recipe, crop=(64, 64), steps=4)
    else:
        recipe = small(recipe, size=(64, 96), steps=60, batch_size=BATCH)
    recipe = override(recipe, settings)
    capability = (7, 5) if recipe.precision == "fp16" else (9, 0)
    with patch.object(torch.cuda, "get_device_capability", lambda device: capability):
        amp = build_amp(recipe.precision, DEVICE)
        model = CycleGenerators(4, 1) if name == "cyclegan" else build_model(recipe.model, CLASSES)
        model.to(DEVICE, memory_format=memory_format(amp, model))
        networks = {stage.network: copy.deepcopy(model) for stage in recipe.stages}
        for stage in recipe.stages[:6]:  # the first two rounds of DDM have every kind of stage
            optional = "labelled" in stage.objective.requirements.optional_streams
            for labelled in (True, False) if optional else (True,):
                run(recipe, stage, networks, labelled)


def changed(expression: str) -> Any:
    """Supervised's step whose loss is ``expression`` of it and its batch."""

    def training_step(
        self: Supervised, model: nn.Module, batches: dict[str, Batch], ctx: StepContext
    ) -> Losses:
        batch = batches["seg"]
        loss = segmentation_loss(ctx.forward(model, batch.image), batch.label, 0.0)
        loss = eval(expression, {"torch": torch, "loss": loss, "batch": batch})
        ctx.backward(loss)
        return {"seg": loss.detach()}

    return training_step


def main() -> None:
    names, *settings = sys.argv[2:]
    lines = [s.removeprefix("loss=") for s in settings if s.startswith("loss=")]
    for setting in settings:
        if setting.startswith("file="):
            load_method_file(setting.removeprefix("file="))
    settings = [s for s in settings if not s.startswith(("loss=", "file="))]
    patches = [
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (torch.cuda, "is_bf16_supported", lambda *_: True),
        # As on a machine where every operator is compiled.
        (_library, "COMPILED", {name: frozenset({"cpu", "cuda"}) for name in _library.COMPILED}),
        (FakeTensor, "__deepcopy__", _copy_fake),
        (nn.Module, "_apply", to_cuda),
    ]
    with ExitStack() as stack:
        for target, attribute, value in patches:
            stack.enter_context(patch.object(target, attribute, value, create=True))
        for line in lines or [None]:
            for name in names.split(","):
                own = Supervised.training_step if line is None else changed(line)
                with (
                    patch.object(Supervised, "training_step", own),
                    FakeTensorMode(allow_non_fake_inputs=True),
                ):
                    print(line or name, answer(name, settings), sep=": ", flush=True)


def answer(name: str, settings: list[str]) -> str:
    try:
        run_recipe(name, settings)
    except Exception as error:
        return " ".join(f"{type(error).__name__} {error}".split())
    return "ok"


if __name__ == "__main__":
    main()
