"""The losses as modules, against the operators to the bit and against plain PyTorch in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from udas_fast import nn, ops
from udas_fast.errors import InputError

SIZE = (13, 18)
WEIGHT = torch.linspace(0.5, 2, 5)


def random_logits(count: int) -> list[Tensor]:
    """Two samples of five classes each; the maps differ in size."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 5, 4 + i, 6, generator=generator) * 2 for i in range(count)]


def random_target() -> Tensor:
    """Labels at SIZE, some of them ignored."""
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(0, 5, (2, *SIZE), generator=generator)
    return torch.where(torch.rand(label.shape, generator=generator) < 0.2, 255, label)


def upsample(logits: Tensor, align_corners: bool) -> Tensor:
    return F.interpolate(logits, SIZE, mode="bilinear", align_corners=align_corners)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) per pixel."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def plain_cross_entropy(maps: list[Tensor], target: Tensor) -> Tensor:
    return F.cross_entropy(maps[0], target, weight=WEIGHT.double(), ignore_index=255)


def plain_rectified(maps: list[Tensor], target: Tensor) -> Tensor:
    variance = kl(maps[1].log_softmax(1), maps[0].log_softmax(1))
    loss = F.cross_entropy(maps[0], target, ignore_index=255, reduction="none")
    return (loss * torch.exp(-variance)).mean() + variance.mean()


def plain_symmetric(maps: list[Tensor], _: Tensor) -> Tensor:
    p, q = (m.log_softmax(1) for m in maps)
    return (kl(p, q) + kl(q, p)).mean()


def plain_ensemble(maps: list[Tensor], _: Tensor) -> Tensor:
    m = (0.5 * maps[1] + maps[0]).detach().log_softmax(1)
    return sum(kl(m, x.log_softmax(1)) for x in maps).mean()


def plain_distillation(maps: list[Tensor], target: Tensor) -> Tensor:
    student, *teachers = (m / 1.5 for m in maps)
    mean = torch.stack([t.detach().softmax(1) for t in teachers]).mean(0)
    return kl(mean.log(), student.log_softmax(1))[target != 255].mean()


def plain_entropy(maps: list[Tensor], _: Tensor) -> Tensor:
    p = maps[0].softmax(1)
    return -(p * p.log()).sum(1).mean() / math.log(5)


Case = tuple[
    Callable[..., torch.nn.Module],
    dict[str, Any],
    int,
    Callable[..., Any],
    Callable[[list[Tensor], Tensor], Tensor],
]
"""Module, its options, the number of maps, the tensors that it is called with, and the same in plain PyTorch."""

CASES: dict[str, Case] = {
    "cross_entropy": (
        nn.CrossEntropyLoss,
        {"weight": WEIGHT},
        1,
        lambda maps, target: (*maps, target),
        plain_cross_entropy,
    ),
    "rectified_cross_entropy": (
        nn.RectifiedCrossEntropyLoss,
        {},
        2,
        lambda maps, target: (*maps, target),
        plain_rectified,
    ),
    "symmetric_kl": (nn.SymmetricKLLoss, {}, 2, lambda maps, _: (*maps, SIZE), plain_symmetric),
    "ensemble_kl": (nn.EnsembleKLLoss, {}, 2, lambda maps, _: (*maps, SIZE), plain_ensemble),
    "distillation_kl": (
        nn.DistillationKLLoss,
        {"temperature": 1.5},
        3,
        lambda maps, target: (maps[0], maps[1:], SIZE, target != 255),
        plain_distillation,
    ),
    "entropy": (nn.EntropyLoss, {}, 1, lambda maps, _: (*maps, SIZE), plain_entropy),
}


def with_gradients(loss: Callable[..., Tensor], maps: list[Tensor]) -> list[Tensor]:
    """The loss of ``maps`` and the gradients that reach them."""
    leaves = [m.detach().requires_grad_() for m in maps]
    value = loss(leaves)
    gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    return [value.detach(), *(g for g in gradients if g is not None)]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_module_equals_plain_pytorch_in_float64(name: str, align_corners: bool) -> None:
    build, options, count, arguments, plain = CASES[name]
    module = build(**options, align_corners=align_corners)
    maps, target = random_logits(count), random_target()
    found = with_gradients(lambda leaves: module(*arguments(leaves, target)), maps)
    expected = with_gradients(
        lambda leaves: plain([upsample(m, align_corners) for m in leaves], target), [m.double() for m in maps]
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", CASES)
def test_module_equals_operator_to_the_bit(name: str, reduction: str) -> None:
    build, options, count, arguments, _ = CASES[name]
    module = build(**options, reduction=reduction)
    maps, target = random_logits(count), random_target()
    pixel_weight = torch.rand((2, *SIZE), generator=torch.Generator().manual_seed(2))

    def functional(leaves: list[Tensor]) -> Tensor:
        args = arguments(leaves, target)
        named = {"mask": args[3]} if name == "distillation_kl" else {}
        return getattr(ops, name)(
            *args[:3], pixel_weight=pixel_weight, reduction=reduction, **options, **named
        )

    found = with_gradients(lambda m: module(*arguments(m, target), pixel_weight=pixel_weight), maps)
    for one, other in zip(found, with_gradients(functional, maps), strict=True):
        assert torch.equal(one, other)
    assert found[0].shape == ((2, *SIZE) if reduction == "none" else ())


def test_compiles_without_a_break() -> None:
    loss, target = nn.CrossEntropyLoss(WEIGHT), random_target()
    head = torch.nn.Conv2d(3, 5, 1)
    x = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(3))
    torch._dynamo.reset()
    step = torch.compile(lambda x: loss(head(x), target), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(step(x), loss(head(x), target))
    step(x).backward()
    assert bool(head.weight.grad.isfinite().all())


def test_class_weights_are_a_buffer() -> None:
    loss = nn.CrossEntropyLoss(WEIGHT)
    assert not list(loss.parameters())
    assert torch.equal(loss.state_dict()["weight"], WEIGHT)
    assert nn.CrossEntropyLoss().state_dict() == {}
    moved = copy.deepcopy(loss).double()
    maps, target = random_logits(1), random_target()
    assert torch.equal(moved(*maps, target), loss(*maps, target))
    other = nn.CrossEntropyLoss(torch.ones(5))
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(*maps, target), loss(*maps, target))


def test_options_are_shown() -> None:
    shown = repr(torch.nn.Sequential(nn.CrossEntropyLoss(WEIGHT), nn.DistillationKLLoss(2)))
    assert "CrossEntropyLoss(weight=[5], ignore_index=255, align_corners=False, reduction='mean')" in shown
    assert "DistillationKLLoss(temperature=2.0, align_corners=False, reduction='mean')" in shown


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: nn.EntropyLoss(reduction="avg"), "reduction: found 'avg', expected one of"),
        (lambda: nn.SymmetricKLLoss(align_corners=1), "align_corners: found 1, expected True or False"),
        (lambda: nn.DistillationKLLoss(0), "temperature: found 0, expected a finite number above 0"),
        (lambda: nn.CrossEntropyLoss([1.0, 2.0]), r"weight: found list, expected a tensor \[C\]"),
        (lambda: nn.CrossEntropyLoss(torch.ones(5).int()), r"weight: found torch.int32 \[5\], expected"),
        (lambda: nn.RectifiedCrossEntropyLoss(ignore_index=2.5), "ignore_index: found 2.5, expected"),
    ],
)
def test_wrong_options_are_refused_by_the_constructor(
    build: Callable[[], torch.nn.Module], sentence: str
) -> None:
    with pytest.raises(InputError, match=f"^{sentence}"):
        build()
