"""Shared parts of all loss operators: dispatch, shapes and gradient by the convention at the head of csrc/ops.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from udas_fast.ops import _check, _library, reference
from udas_fast.ops._check import REDUCTIONS


def dispatch(name: str, maps: Sequence[Tensor], *args: Any, reduction: str, **options: Any) -> Tensor:
    """Return loss ``name`` of the logits ``maps`` by the compiled operator, or by its reference where there is none.

    The kernel computes the gradient with the loss, where autograd will ask for one.

    Args:
        name: of the operator and of its twin in :mod:`udas_fast.ops.reference`.
        maps: logits that have a gradient.
        args: the other positional arguments.
        reduction: "none", "mean" or "sum".
        options: keyword arguments, in the order of the operator's schema.
    """
    code = _check.reduction(reduction)
    if not _library.compiled(name, maps[0]):
        return getattr(reference, name)(*maps, *args, reduction=reduction, **options)
    with_grad = torch.is_grad_enabled() and any(m.requires_grad for m in maps)
    return _library.call(name, *maps, *args, *options.values(), code, with_grad)[0]


def register(name: str, maps: int, size_at: int) -> None:
    """Register shapes and gradient of loss ``name``, where it is compiled.

    Its first ``maps`` arguments are the logits that have a gradient; argument ``size_at`` is size or target.
    """
    if _library.REASON:
        return
    operator = getattr(torch.ops.udas_fast, name).default
    names = [argument.name for argument in operator._schema.arguments]
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
        ctx.plan, tensors = flatten(inputs)
        ctx.save_for_backward(*(tensors if ctx.per_pixel else (scale, *grads)))

    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        grads: Sequence[Tensor | None]
        if grad is None:
            grads = [None] * maps
        elif ctx.per_pixel:
            grads = pixel_gradients(unflatten(ctx.plan, ctx.saved_tensors), grad)
        else:
            scale, *sums = ctx.saved_tensors
            grads = [g * (grad * scale) for g in sums]
        grads = [None if g is None else g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True)]
        # a list of tensors needs a list of gradients
        rest = ([None] * (s.stop - s.start) if isinstance(s, slice) else None for s in ctx.plan[maps:])
        return *grads, *rest

    def pixel_gradients(inputs: list[Any], grad: Tensor) -> list[Tensor]:
        """Return the gradient of Σ grad · loss: the incoming gradient is one more weight per pixel."""
        weight = inputs[weight_at]
        inputs[weight_at] = grad if weight is None else grad * weight
        inputs[reduction_at], inputs[-1] = REDUCTIONS["sum"], True
        return list(operator(*inputs)[2:])

    torch.library.register_fake(operator._name, fake)
    torch.library.register_autograd(operator._name, backward, setup_context=setup_context)


def flatten(inputs: Sequence[Any]) -> tuple[list[Any], list[Tensor]]:
    """Return ``inputs`` as a plan without tensors (a place for each tensor or list of them) and the tensors."""
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


def unflatten(plan: Sequence[Any], tensors: Sequence[Tensor]) -> list[Any]:
    """Undo :func:`flatten`."""
    return [
        step[0]
        if isinstance(step, tuple)
        else list(tensors[step])
        if isinstance(step, slice)
        else tensors[step]
        for step in plan
    ]
