"""From an operator's checked arguments to its compiled form or its twin in the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from udas_fast.errors import bad
from udas_fast.ops import _library, reference
from udas_fast.ops._check import REDUCTIONS

_TWIN = "udas_fast.ops.reference."


def dispatch(name: str, *maps: Tensor | Sequence[Tensor], schema: Sequence[Any], **options: Any) -> Any:
    """Run operator ``name`` where it is compiled for the device of the first map, else its twin.

    Args:
        name: the operator.
        maps: the leading arguments, which the compiled operator and its twin have in common.
        schema: the other arguments of the compiled operator, in its order.
        options: the other arguments of the twin.
    """
    refuse_forward_mode(name, maps)
    if _library.is_compiled(name, maps[0] if isinstance(maps[0], Tensor) else maps[0][0]):
        return _library.call(name, *maps, *schema)
    return getattr(reference, name)(*maps, **options)


def dispatch_loss(name: str, *maps: Tensor, reduction: str, **options: Any) -> Tensor:
    """Run loss ``name``, whose ``maps`` have a gradient; the other arguments are in the order of its schema.

    The compiled operator computes the gradient with the loss, where autograd will ask for one. That of a loss per pixel
    depends on the incoming gradient, so that the backward pass computes it.
    """
    refuse_forward_mode(name, maps)
    if not _library.is_compiled(name, maps[0]):
        return getattr(reference, name)(*maps, **options, reduction=reduction)
    code = REDUCTIONS[reduction]
    if torch.is_grad_enabled() and any(m.requires_grad for m in maps):
        return _LossFunction.apply(name, (*options.values(), code, reduction != "none"), *maps)
    return _library.call(name, *maps, *options.values(), code, False)[0]


def refuse_forward_mode(name: str, maps: Sequence[Tensor | Sequence[Tensor]]) -> None:
    """Raise InputError in forward-mode differentiation, of which the compiled operators would give 0."""
    if forward_ad._current_level < 0 or torch.compiler.is_compiling():
        return
    tensors = [t for m in maps for t in ([m] if isinstance(m, Tensor) else m)]
    if any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise bad(name, "forward-mode differentiation", f"reverse mode, or {_TWIN}{name}, which has both")


def differentiable_once(name: str, gradients: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
    """Return ``gradients()`` of operator ``name`` so that their own differentiation raises RuntimeError.

    Without this a gradient penalty would lose its term in silence. To be called in a backward pass, whose graph is
    recorded (grad mode is on) only if somebody means to differentiate it.
    """
    if not torch.is_grad_enabled():
        return gradients()
    with torch.no_grad():
        found = gradients()
    if torch.compiler.is_compiling():  # which refuses a second derivative itself
        return found
    message = (
        f"{name}: found a second derivative, expected the first one only, or {_TWIN}{name}, which has both"
    )
    raising = torch._C._functions.DelayedError(message, 1)
    return [raising(g.detach().requires_grad_()) for g in found]


class _LossFunction(torch.autograd.Function):
    """Loss ``name`` of ``maps``, with their gradients; ``options`` are the other arguments of its schema.

    The operator's own results have the gradients, see the head of csrc/ops.cpp. An autograd formula of the dispatcher
    (torch.library.register_autograd) or a ``setup_context`` costs the host more than the rest of a call.
    """

    @staticmethod
    def forward(ctx: Any, name: str, options: tuple[Any, ...], *maps: Tensor) -> Tensor:
        loss, scale, *gradients = _library.call(name, *maps, *options)
        ctx.name = name
        if options[-1]:
            ctx.save_for_backward(scale, *gradients)
            ctx.plan = None
        else:
            ctx.plan, tensors = _flatten((*maps, *options))
            ctx.save_for_backward(*tensors)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = _sum_gradients if ctx.plan is None else _pixel_gradients
        return None, None, *differentiable_once(ctx.name, lambda: gradients(ctx, grad))


def _sum_gradients(ctx: Any, grad: Tensor) -> Sequence[Tensor]:
    """Return the gradients of a mean or sum: those of the sum, scaled. Autograd casts them to the maps' dtypes."""
    scale, *sums = ctx.saved_tensors
    return torch._foreach_mul(sums, grad * scale)


def _pixel_gradients(ctx: Any, grad: Tensor) -> Sequence[Tensor]:
    """Return the gradients of Σ grad · loss: the incoming gradient is one more weight per pixel."""
    names = _library.ARGUMENTS[ctx.name]
    values = dict(zip(names, _unflatten(ctx.plan, ctx.saved_tensors), strict=True))
    weight = values["pixel_weight"]
    values["pixel_weight"] = grad if weight is None else grad * weight
    values |= {"reduction": REDUCTIONS["sum"], "with_grad": True}
    return _library.call(ctx.name, *values.values())[2:]


def register_loss(name: str) -> None:
    """Register loss ``name``: the shapes of its results by the convention at the head of csrc/ops.cpp."""

    def fake(*args: Any) -> tuple[Tensor, ...]:
        values = dict(zip(_library.ARGUMENTS[name], args, strict=True))
        height, width = values["size"] if "size" in values else values["target"].shape[1:]
        per_pixel = values["reduction"] == REDUCTIONS["none"]
        maps = len(_library.schema(name).returns) - 2  # after the loss and its scale
        new = args[0].new_empty
        loss = new((args[0].shape[0], height, width) if per_pixel else (), dtype=torch.float32)
        shapes = (m.shape if values["with_grad"] else (0,) for m in args[:maps])
        grads = (new(shape, dtype=torch.float32) for shape in shapes)
        return loss, new((), dtype=torch.float32), *grads

    _library.register(name, fake)


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
