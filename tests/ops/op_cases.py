"""Shared by the operators' tests: devices, random maps, one entry per loss, and tolerances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from udas_fast.ops import reference

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[NO_GPU, pytest.mark.cuda])]
EXACT = {"derandomize": True, "deadline": None, "database": None}
LAYOUTS = ["contiguous", "channels_last", "transposed", "sliced"]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}


@st.composite
def map_situations(draw: st.DrawFn, samples: int = 1) -> dict[str, Any]:
    """Logits of at least ``samples`` samples and a size from 1×1 to more than a tile and a band."""
    side = st.integers(1, 9)
    full = st.one_of(st.integers(1, 12), st.integers(1, 90))
    classes = st.one_of(st.sampled_from([2, 11, 13, 16, 19, 21]), st.integers(2, 40), st.just(256))
    return {
        "shape": (draw(st.integers(samples, 3)), draw(classes), draw(side), draw(side)),
        "size": (draw(full), draw(full)),
        "dtype": draw(st.sampled_from([torch.float32, torch.float32, torch.float16, torch.bfloat16])),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "align_corners": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }


@dataclass(frozen=True)
class Loss:
    """A loss with ``maps`` logit maps that have a gradient; ``call(module, maps, target, **options)``."""

    name: str
    maps: int
    call: Callable[..., Tensor]
    labelled: bool = False
    masked: bool = False  # takes a mask
    constant: bool = False  # holds a part constant that is made from the maps


def _labelled(name: str) -> Callable[..., Tensor]:
    return lambda module, maps, target, **kw: getattr(module, name)(*maps, target, **kw)


def _unlabelled(name: str) -> Callable[..., Tensor]:
    return lambda module, maps, target, **kw: getattr(module, name)(*maps, tuple(target.shape[1:]), **kw)


def _distilled(module: ModuleType, maps: Sequence[Tensor], target: Tensor, **kw: object) -> Tensor:
    """Two teachers made from the student, at two other sizes."""
    student = maps[0]
    first = student.detach().flip(1) * 0.5
    second = student.detach().roll(1, 1)[:, :, : (student.shape[2] + 1) // 2]
    return module.distillation_kl(student, [first, second], tuple(target.shape[1:]), temperature=1.5, **kw)


def _softened(name: str) -> Callable[..., Tensor]:
    """``name`` against values from 0 to 1 made from the logits, at another size."""

    def call(module: ModuleType, maps: Sequence[Tensor], target: Tensor, **kw: object) -> Tensor:
        q = maps[0].detach().flip(1).clamp(0, 1)[:, :, : (maps[0].shape[2] + 1) // 2]
        return getattr(module, name)(maps[0], q, tuple(target.shape[1:]), **kw)

    return call


def _squared_to_labels(module: ModuleType, maps: Sequence[Tensor], target: Tensor, **kw: object) -> Tensor:
    return module.squared_error(maps[0], target, tuple(target.shape[1:]), **kw)


LOSSES = [
    Loss("cross_entropy", 1, _labelled("cross_entropy"), labelled=True),
    Loss("rectified_cross_entropy", 2, _labelled("rectified_cross_entropy"), labelled=True),
    Loss("symmetric_kl", 2, _unlabelled("symmetric_kl")),
    Loss("ensemble_kl", 2, _unlabelled("ensemble_kl"), constant=True),
    Loss("distillation_kl", 1, _distilled, masked=True, constant=True),
    Loss("soft_cross_entropy", 1, _softened("soft_cross_entropy"), masked=True, constant=True),
    Loss("squared_error", 1, _softened("squared_error"), masked=True, constant=True),
    Loss("squared_error-labels", 1, _squared_to_labels, labelled=True, masked=True),
    Loss("entropy", 1, _unlabelled("entropy")),
]
LOSS_PARAMS = [pytest.param(loss, id=loss.name) for loss in LOSSES]


ACTIVATIONS = ["none", "softmax", "self_information"]


def upsampled_with_gradient(
    module: ModuleType, logits: Tensor, incoming: Tensor, **options: object
) -> tuple[Tensor, Tensor]:
    """upsample to the size of ``incoming``, and what comes back for that gradient."""
    leaf = logits.detach().requires_grad_()
    value = module.upsample(leaf, tuple(incoming.shape[2:]), **options)
    return value.detach(), torch.autograd.grad(value, leaf, incoming)[0]


def random_map(
    shape: Sequence[int],
    seed: int,
    *,
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    scale: float = 3,
) -> Tensor:
    """Logits of ``shape`` on the CPU; ``layout`` is contiguous, channels_last, transposed or sliced."""
    n, c, h, w = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return (torch.randn(size, generator=generator) * scale).to(dtype)

    if layout == "channels_last":
        return normal(n, h, w, c).permute(0, 3, 1, 2)
    if layout == "transposed":
        return normal(n, c, w, h).transpose(2, 3)
    if layout == "sliced":
        return normal(n, c + 2, 2 * h, w + 3)[:, 1:-1, ::2, 3:]
    return normal(n, c, h, w)


def random_labels(
    shape: Sequence[int], classes: int, seed: int, *, dtype: torch.dtype = torch.uint8, ignored: float = 0.2
) -> Tensor:
    """Labels ``[N, H, W]`` below ``classes``, a share of them 255."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes, tuple(shape), generator=generator)
    label[torch.rand(tuple(shape), generator=generator) < ignored] = 255
    return label.to(dtype)


def with_gradients(
    loss: Loss, module: ModuleType, maps: Sequence[Tensor], target: Tensor, **options: object
) -> tuple[Tensor, list[Tensor]]:
    """The loss, and the gradient of its sum weighted by a fixed pattern (which distinguishes the pixels of "none")."""
    leaves = [m.detach().requires_grad_() for m in maps]
    value = loss.call(module, leaves, target, **options)
    pattern = torch.linspace(0.5, 1.5, max(value.numel(), 1), dtype=value.dtype, device=value.device)
    total = (value * pattern[: value.numel()].view(value.shape)).sum()
    return value.detach(), list(torch.autograd.grad(total, leaves))


def oracle(
    loss: Loss, maps: Sequence[Tensor], target: Tensor, **options: object
) -> tuple[Tensor, list[Tensor]]:
    """:func:`with_gradients` of the reference in float64."""
    options = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in options.items()
    }
    return with_gradients(loss, reference, [m.double() for m in maps], target, **options)


def assert_close(found: Tensor, expected: Tensor, tolerance: float, floor: float = 1e-6) -> None:
    """‖found − expected‖ ≤ tolerance·‖expected‖, plus ``floor`` per element where the expected is as good as 0."""
    assert found.shape == expected.shape
    assert bool(found.isfinite().all())
    error = float((found.double().cpu() - expected.double().cpu()).norm())
    limit = tolerance * float(expected.double().norm()) + floor * max(found.numel(), 1) ** 0.5
    assert error <= limit, f"error {error:.3g}, allowed {limit:.3g}"
