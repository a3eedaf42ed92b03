"""From an operator's checked arguments to its compiled form or its twin in the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from udas_fast.errors import bad
from udas_fast.ops import _library, reference
from udas_fast.ops._check import REDUCTIONS

_TWIN = "udas_fast.ops.reference."


def dispatch(
    name: str, *maps: Tensor | Sequence[Tensor], schema: dict[str, Any] | None = None, **options: Any
) -> Any:
    """Run operator ``name`` where it is compiled for the device of the first map, else its twin.

    Raises InputError in forward-mode differentiation, of which the compiled operators would give 0.

    Args:
        name: the operator.
        maps: the leading arguments, which the compiled operator and its twin have in common.
        schema: by name, arguments that the compiled operator has instead of, or beside, those of the twin.
        options: by name, the other arguments of the twin. The compiled operator gets those of its schema.
    """
    first = maps[0] if isinstance(maps[0], Tensor) else maps[0][0]
    _refuse_forward_mode(name, maps)
    if not _library.is_compiled(name, first):
        return getattr(reference, name)(*maps, **options)
    values = options if schema is None else options | schema
    return _library.call(name, *maps, *[values[key] for key in _library.ARGUMENTS[name][len(maps) :]])


def dispatch_loss(name: str, *maps: Tensor, reduction: str, **options: Any) -> Tensor:
    """Run loss ``name``, whose ``maps`` have a gradient; the other arguments are by name.

    The compiled operator computes the gradient with the loss, where autograd will ask for one. That of a loss per pixel
    depends on the incoming gradient, so that the backward pass computes it.
    """
    with_grad = torch.is_grad_enabled() and any(m.requires_grad for m in maps) and reduction != "none"
    schema = {"reduction": REDUCTIONS[reduction], "with_grad": with_grad}
    found = dispatch(name, *maps, schema=schema, reduction=reduction, **options)
    return found if isinstance(found, Tensor) else found[0]


def _refuse_forward_mode(name: str, maps: Sequence[Tensor | Sequence[Tensor]]) -> None:
    if forward_ad._current_level < 0 or torch.compiler.is_compiling():
        return
    tensors = [t for m in maps for t in ([m] if isinstance(m, Tensor) else m)]
    if any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise bad(name, "forward-mode differentiation", f"reverse mode, or {_TWIN}{name}, which has both")


def differentiable_once(name: str, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return ``gradients`` of operator ``name`` so that their own differentiation raises RuntimeError.

    Without this a gradient penalty would lose its term in silence. To be called in a backward pass, whose graph is
    recorded (grad mode is on) only if somebody means to differentiate it.
    """
    if not torch.is_grad_enabled():
        return list(gradients)
    message = (
        f"{name}: found a second derivative, expected the first one only, or {_TWIN}{name}, which has both"
    )
    raising = torch._C._functions.DelayedError(message, 1)
    return [g if g is None else raising(g.detach().requires_grad_()) for g in gradients]


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
        with torch.no_grad():
            grads = [None] * maps if grad is None else gradients(ctx, grad)
        rest = ctx.plan[maps:]  # for a list of tensors, torch expects a list of gradients
        return *differentiable_once(name, grads), *(
            [None] * (s.stop - s.start) if isinstance(s, slice) else None for s in rest
        )

    def gradients(ctx: Any, grad: Tensor) -> list[Tensor]:
        if ctx.per_pixel:
            found = pixel_gradients(_unflatten(ctx.plan, ctx.saved_tensors), grad)
        else:
            scale, *sums = ctx.saved_tensors
            found = [g * (grad * scale) for g in sums]
        return [g.to(dtype) for g, dtype in zip(found, ctx.dtypes, strict=True)]

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
