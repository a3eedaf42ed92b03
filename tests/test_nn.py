"""The loss modules: each is PyTorch's own computation at full resolution, with its options."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from udas_fast import nn
from udas_fast.errors import InputError

SIZE = (24, 40)


def logits(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 5, 3, 5, generator=generator).requires_grad_()


def labels() -> Tensor:
    target = torch.randint(0, 5, (2, *SIZE), generator=torch.Generator().manual_seed(9))
    target[:, :4] = 255
    return target


def log_probability(maps: Tensor) -> Tensor:
    return F.interpolate(maps.double(), SIZE, mode="bilinear").log_softmax(1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(1)


WEIGHT = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])


def cross_entropy(a: Tensor, b: Tensor) -> Tensor:
    upsampled = F.interpolate(a.double(), SIZE, mode="bilinear")
    return F.cross_entropy(upsampled, labels(), weight=WEIGHT.double(), ignore_index=255)


def rectified(a: Tensor, b: Tensor) -> Tensor:
    p, q = log_probability(a), log_probability(b)
    variance = kl(q, p)
    loss = F.nll_loss(p, labels(), ignore_index=255, reduction="none")
    return (loss * torch.exp(-variance) + variance).mean()


def symmetric(a: Tensor, b: Tensor) -> Tensor:
    p, q = log_probability(a), log_probability(b)
    return (kl(p, q) + kl(q, p)).mean()


def ensemble(a: Tensor, b: Tensor) -> Tensor:
    mean = log_probability(0.5 * b.double() + a.double()).detach()
    return (kl(mean, log_probability(a)) + kl(mean, log_probability(b))).mean()


def distillation(a: Tensor, b: Tensor) -> Tensor:
    return kl(log_probability(b.detach() / 2), log_probability(a / 2)).mean()


def entropy(a: Tensor, b: Tensor) -> Tensor:
    p = log_probability(a)
    return -(p.exp() * p).sum(1).mean() / torch.log(torch.tensor(5.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("module", "call", "expected"),
    [
        (nn.CrossEntropyLoss(WEIGHT), lambda m, a, b: m(a, labels()), cross_entropy),
        (nn.RectifiedCrossEntropyLoss(), lambda m, a, b: m(a, b, labels()), rectified),
        (nn.SymmetricKLLoss(), lambda m, a, b: m(a, b, SIZE), symmetric),
        (nn.EnsembleKLLoss(), lambda m, a, b: m(a, b, SIZE), ensemble),
        (nn.DistillationKLLoss(2.0), lambda m, a, b: m(a, [b], SIZE), distillation),
        (nn.EntropyLoss(), lambda m, a, b: m(a, SIZE), entropy),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_loss_and_gradient_are_those_at_full_resolution(
    module: torch.nn.Module,
    call: Callable[[torch.nn.Module, Tensor, Tensor], Tensor],
    expected: Callable[[Tensor, Tensor], Tensor],
) -> None:
    a, b = logits(0), logits(1)
    loss = call(module, a, b)
    reference = expected(a, b)
    torch.testing.assert_close(loss.double(), reference, rtol=1e-5, atol=1e-6)
    ours = torch.autograd.grad(loss, [a, b], allow_unused=True)
    theirs = torch.autograd.grad(reference, [a, b], allow_unused=True)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None and other is not None:
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_class_weights_are_a_buffer_that_moves_and_is_saved() -> None:
    module = nn.CrossEntropyLoss(WEIGHT)
    assert torch.equal(module.state_dict()["weight"], WEIGHT)
    assert module.half().weight.dtype == torch.float16
    assert not nn.CrossEntropyLoss().state_dict()


def test_options_are_shown_and_checked_when_the_module_is_made() -> None:
    shown = "CrossEntropyLoss(align_corners=True, reduction='sum', ignore_index=0)"
    assert repr(nn.CrossEntropyLoss(ignore_index=0, align_corners=True, reduction="sum")) == shown
    with pytest.raises(InputError, match="reduction: found 'avg', expected"):
        nn.EntropyLoss(reduction="avg")
    with pytest.raises(InputError, match="temperature: found 0"):
        nn.DistillationKLLoss(0)


def test_no_reduction_gives_a_loss_per_pixel_that_weights_scale() -> None:
    a = logits(0)
    plain = nn.EntropyLoss(reduction="none")
    weight = torch.rand(2, *SIZE)
    torch.testing.assert_close(plain(a, SIZE, weight), plain(a, SIZE) * weight)
