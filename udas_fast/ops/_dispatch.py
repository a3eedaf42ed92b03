"""From an operator's checked arguments to its compiled form or its twin in the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from udas_fast.ops import _library, reference
from udas_fast.ops._check import REDUCTIONS


def dispatch(
    name: str, *maps: Tensor | Sequence[Tensor], schema: dict[str, Any] | None = None, **options: Any
) -> Any:
    """Run operator ``name`` where it is compiled for the device of the first map, else its twin.

    Args:
        name: the operator.
        maps: the leading arguments, which the compiled operator and its twin have in common.
        schema: by name, arguments that the compiled operator has instead of, or beside, those of the twin.
        options: by name, the other arguments of the twin. The compiled operator gets those of its schema.
    """
    first = maps[0] if isinstance(maps[0], Tensor) else maps[0][0]
    if not _library.is_compiled(name, first):
        return getattr(reference, name)(*maps, **options)
    values = options if schema is None else options | schema
    return _library.call(name, *maps, *[values[key] for key in _library.ARGUMENTS[name][len(maps) :]])


def dispatch_loss(name: str, *maps: Tensor, reduction: str, **options: Any) -> Tensor:
    """Run loss ``name``, whose ``maps`` have a gradient; the other arguments are by name.

    The compiled operator computes the gradient with the loss, where autograd will ask for one.
    """
    with_grad = torch.is_grad_enabled() and any(m.requires_grad for m in maps)
    schema = {"reduction": REDUCTIONS[reduction], "with_grad": with_grad}
    found = dispatch(name, *maps, schema=schema, reduction=reduction, **options)
    return found if isinstance(found, Tensor) else found[0]


def register_loss(name: str) -> None:
    """Register loss ``name``: shapes and gradient by the convention at the head of csrc/ops.cpp.

    Its maps with a gradient come first, one for each gradient among its results.
    """
    if _library.REASON:
        _library.COMPILED[name] = frozenset()
        return
    operator, schema = _library.overload(name), _library.schema(name)
    names = [argument.name for argument in schema.arguments]
    maps = len(schema.returns) - 2  # after the loss and its scale
    size_at = names.index("size" if "size" in names else "target")
    weight_at, reduction_at = names.index("pixel_weight"), names.index("reduction")

    def fake(*args: Any) -> tuple[Tensor, ...]:
        size, with_grad = args[size_at], args[-1]
        height, width = size.shape[1:] if isinstance(size, Tensor) else size
        per_pixel = args[reduction_at] == REDUCTIONS["none"]
        new = args[0].new_empty
        loss = new((args[0].shape[0], height, width) if per_pixel else (), dtype=torch.float32)
        grads = (new(m.shape if with_grad else (0,), dtype=torch.float32) for m in args[:maps])
        return loss, new((), dtype=torch.float32), *grads

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, scale, *grads = output
        ctx.mark_non_differentiable(scale, *grads)
        ctx.set_materialize_grads(False)
        ctx.per_pixel = inputs[reduction_at] == REDUCTIONS["none"]
        ctx.dtypes = [m.dtype for m in inputs[:maps]]
        ctx.plan, tensors = _flatten(inputs)
        ctx.save_for_backward(*(tensors if ctx.per_pixel else (scale, *grads)))

    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        if grad is None:
            grads: list[Tensor | None] = [None] * maps
        elif ctx.per_pixel:
            grads = [*pixel_gradients(_unflatten(ctx.plan, ctx.saved_tensors), grad)]
        else:
            scale, *sums = ctx.saved_tensors
            grads = [g * (grad * scale) for g in sums]
        grads = [None if g is None else g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True)]
        rest = ctx.plan[maps:]  # for a list of tensors, torch expects a list of gradients
        return *grads, *([None] * (s.stop - s.start) if isinstance(s, slice) else None for s in rest)

    def pixel_gradients(inputs: list[Any], grad: Tensor) -> Sequence[Tensor]:
        """Return the gradient of Σ grad · loss: the incoming gradient is one more weight per pixel."""
        weight = inputs[weight_at]
        inputs[weight_at] = grad if weight is None else grad * weight
        inputs[reduction_at], inputs[-1] = REDUCTIONS["sum"], True
        return operator(*inputs)[2:]

    _library.register(name, fake)
    torch.library.register_autograd(f"udas_fast::{name}", backward, setup_context=setup_context)


def _flatten(inputs: Sequence[Any]) -> tuple[list[Any], list[Tensor]]:
    """Split ``inputs`` into a plan without tensors (a slice for a list of tensors) and the tensors."""
    plan: list[Any] = []
    tensors: list[Tensor] = []
    for value in inputs:
        if isinstance(value, Tensor):
            plan.append(len(tensors))
            tensors.append(value)
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            plan.append(slice(len(tensors), len(tensors) + len(value)))
            tensors.extend(value)
        else:
            plan.append((value,))
    return plan, tensors


def _unflatten(plan: Sequence[Any], tensors: Sequence[Tensor]) -> list[Any]:
    """Invert :func:`_flatten`."""
    return [
        step[0]
        if isinstance(step, tuple)
        else list(tensors[step])
        if isinstance(step, slice)
        else tensors[step]
        for step in plan
    ]
